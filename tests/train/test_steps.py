"""Steps taken in chunks give the numbers of steps taken one by one, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from test_run import FACTS, STEPS, experiment, final_weights, recipe, write

from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import PythonRecipe, run_parts
from flops_fit.train.run import train_run
from flops_fit.train.steps import StepChunks, watches_single_steps


class OneByOne(pl.Callback):
    """Watches single steps, which forbids chunks."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert isinstance(batch, (tuple, list))
        assert isinstance(batch[0], torch.Tensor)
        assert outputs["loss"].ndim == 0


def trained(folder: Path, source: PythonRecipe, chunked: bool, interval: float = 60.0) -> RunDirectory:
    facts = FACTS | {"checkpoint_interval": interval}
    run = write(folder / f"{chunked}", experiment(), source)

    def parts():
        parts = run_parts(source, facts)
        if not chunked:
            parts.trainer["callbacks"] = [OneByOne()]
        return parts

    assert train_run(run, experiment(), parts) is RunState.COMPLETED, run.details()
    return run


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
    ],
    ids=str,
)
def test_chunks_change_no_bit(tmp_path: Path, trainer: dict) -> None:
    source = recipe(dropout=0.3, trainer=trainer)
    chunks, single = trained(tmp_path, source, True), trained(tmp_path, source, False)
    assert chunks.metrics.read_bytes() == single.metrics.read_bytes()
    for name, weights in final_weights(single).items():
        assert torch.equal(weights, final_weights(chunks)[name]), name


class Doubled(ScalingModule):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


class OwnLoss(ScalingModule):
    def compute_loss(self, net, batch):
        return super().compute_loss(net, batch) + 0


def test_what_watches_single_steps_forbids_chunks() -> None:
    def reason(cls: type[ScalingModule] = ScalingModule, **trainer: object) -> str | None:
        source = recipe()
        source.module_cls = cls
        return watches_single_steps(source.module(), trainer)

    assert reason() is None
    assert reason(OwnLoss) is None
    assert reason(callbacks=[pl.Callback()], accelerator="cpu", devices=1, precision="bf16-mixed") is None
    assert reason(Doubled) == "Doubled.training_step"
    assert reason(callbacks=[OneByOne()]) == "OneByOne.on_train_batch_end"
    assert reason(strategy="ddp") == "trainer.strategy=ddp"
    assert reason(devices=2) == "trainer.devices=2"
    assert reason(precision="16-mixed") == "trainer.precision=16-mixed"
    assert reason(profiler="simple") == "trainer.profiler"


def test_an_overridden_step_keeps_its_meaning(tmp_path: Path) -> None:
    source = recipe()
    plain = trained(tmp_path / "plain", source, True)
    source.module_cls = Doubled
    doubled = trained(tmp_path / "doubled", source, True)

    def first_loss(run: RunDirectory) -> float:
        return float(run.metrics.read_text().splitlines()[1].split(",")[3])

    assert first_loss(doubled) == pytest.approx(2 * first_loss(plain))


def test_a_chunk_is_whole_steps_and_grows_while_it_is_quick() -> None:
    def chunks(steps: int, **options: int) -> list[int]:
        loader = [torch.zeros(2)] * 400
        options = {"start": 0, "accumulate": 1} | options
        return [len(chunk) for chunk in StepChunks(loader, steps, **options)]

    assert chunks(100) == [1, 2, 4, 8, 16, 32, 32, 5]
    assert chunks(100, start=90) == [1, 2, 4, 3]
    assert chunks(6, longest=1) == [1] * 6
    accumulated = list(StepChunks([torch.zeros(2)] * 20, 10, start=0, accumulate=2))
    assert {len(step) for chunk in accumulated for step in chunk} == {2}
    huge = [torch.zeros(2**22)] * 40  # 16 MiB each
    assert max(len(c) for c in StepChunks(huge, 40, start=0, accumulate=1)) <= 5


def test_a_run_resumes_with_other_micro_batches_than_it_began_with(tmp_path: Path) -> None:
    from test_run import _StopAt

    whole = trained(tmp_path, recipe(), True)
    run = write(tmp_path / "mixed", experiment(), recipe())
    for stop_at, accumulate, single in [(7, 1, True), (13, 4, False), (20, 2, True), (33, 1, False), (None, 8, True)]:

        def parts(stop_at=stop_at, accumulate=accumulate, single=single):
            parts = run_parts(recipe(trainer={"accumulate_grad_batches": accumulate}), FACTS)
            callbacks = [_StopAt(stop_at)] if stop_at else []
            parts.trainer["callbacks"] = callbacks + ([OneByOne()] if single else [])
            return parts

        expected = RunState.INTERRUPTED if stop_at else RunState.COMPLETED
        assert train_run(run, experiment(), parts) is expected, run.details()
    rows = [line.split(",")[0] for line in run.metrics.read_text().splitlines()[1:]]
    assert rows == [str(i + 1) for i in range(STEPS)] + [str(STEPS)]
    assert run.result()["loss"] == pytest.approx(whole.result()["loss"], rel=1e-4)


def test_the_module_is_automatic_unless_it_takes_chunks() -> None:
    module = recipe().module()
    assert module.automatic_optimization
    assert module.step_taker is None
    assert partial(run_parts, recipe(), FACTS)().module.automatic_optimization
