"""An evaluation is a mean over tokens, of every held-out set, the same in every process and for every run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import toy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanSquaredError, Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from flops_fit.errors import PlanError, RunError
from flops_fit.examples import GPT, next_token_loss
from flops_fit.train.data import SweepData, sweep_data
from flops_fit.train.evaluate import Evaluation, evaluate
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import PythonRecipe, recipe_from

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
]


def module(kind: type[ScalingModule] = ScalingModule, **options: Any) -> ScalingModule:
    torch.manual_seed(0)
    made = kind(toy.Net, toy.squared_error, **options)
    made.begin({"width": 8}, 10)
    return made


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False}
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1} | quiet | options)


def data(val: Any) -> SweepData:
    return sweep_data(toy.regression(64), val, 16)


def error_on(made: ScalingModule, dataset: Any) -> float:
    x, y = dataset[:]
    with torch.no_grad():
        return toy.squared_error(made.net.eval()(x), y).item()


NEAR, FAR = toy.regression(100, seed=1), toy.regression(30, seed=2)


def test_one_set_gives_the_loss_and_nothing_else() -> None:
    made = module()
    found = evaluate(trainer(), made, data(DataLoader(NEAR, batch_size=64)))
    assert found == Evaluation(loss=pytest.approx(error_on(made, NEAR), rel=1e-6), metrics={}, num_tokens=100)


def test_it_is_what_the_trainer_alone_would_have_said_to_the_bit() -> None:
    made = module()
    (alone,) = trainer().validate(made, DataLoader(NEAR, batch_size=64), verbose=False)
    assert evaluate(trainer(), made, data(DataLoader(NEAR, batch_size=64))).loss == alone["val_loss"]


def test_further_sets_stand_beside_the_first_by_name() -> None:
    made = module(metrics={"mse": MeanSquaredError()})
    found = evaluate(trainer(), made, data({"near": NEAR, "far": FAR}))
    near, far = error_on(made, NEAR), error_on(made, FAR)
    assert found.loss == pytest.approx(near, rel=1e-6)
    assert found.metrics == pytest.approx({"mse": near, "loss/far": far, "mse/far": far}, rel=1e-6)
    assert found.num_tokens == 130
    alone = evaluate(trainer(), made, data({"near": NEAR}))
    assert alone.loss == found.loss
    assert set(alone.metrics) == {"mse"}


def test_the_mean_is_over_tokens() -> None:
    class Varying(IterableDataset[Any]):
        def __iter__(self):
            ids = toy.Words(40, 12).ids
            return iter([(ids[:30, :4], ids[:30, 1:5]), (ids[30:], ids[30:])])

    torch.manual_seed(0)
    made = ScalingModule(GPT, next_token_loss, metrics={"sum": CountTokens()})
    made.begin({"d_model": 8}, 10)
    found = evaluate(trainer(), made, sweep_data(toy.Words(), DataLoader(Varying(), batch_size=None), 16))
    losses = [made.compute_loss(made.net, batch).item() for batch in Varying()]
    assert found.num_tokens == 30 * 4 + 10 * 13
    assert found.loss == pytest.approx((120 * losses[0] + 130 * losses[1]) / 250, rel=1e-6)
    assert found.metrics == {"sum": 250}


class CountTokens(SumMetric):
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(targets.numel())


def test_what_the_held_out_data_draws_is_the_same_for_every_run() -> None:
    class Augmented(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            return torch.rand(toy.FEATURES), torch.rand(())

    made = module()
    loader = DataLoader(Augmented(), batch_size=8, shuffle=True)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.get_rng_state()
        losses.append(evaluate(trainer(), made, data(loader)).loss)
        assert torch.equal(torch.get_rng_state(), expected)
    assert losses[0] == losses[1]


class Own(ScalingModule):
    """Logs something of its own beside what is there."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        error = (self(batch[0]) - batch[1]).abs().mean()
        self.log("absolute_error", error, on_epoch=True, batch_size=len(batch[0]))


class Silent(ScalingModule):
    """Forgets the loss."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("absolute_error", torch.ones(()))


class Uncounted(ScalingModule):
    """Evaluates by itself."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(2.5))


def test_what_a_module_logs_itself_is_kept_for_every_set() -> None:
    found = evaluate(trainer(), module(Own), data({"near": NEAR, "far": FAR}))
    assert set(found.metrics) == {"absolute_error", "loss/far", "absolute_error/far"}
    assert evaluate(trainer(), module(Uncounted), data(NEAR)) == Evaluation(loss=2.5, metrics={}, num_tokens=None)


def test_a_step_without_a_loss_is_told() -> None:
    with pytest.raises(RunError, match=r"Silent.validation_step logged no val_loss on the validation data 'far'"):
        evaluate(trainer(), module(Silent), data({"far": FAR}))


# Metrics -------------------------------------------------------------------------------------------------------------


class Counting(toy.Net):
    """Counts its forward passes."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        return super().forward(x)


def test_metrics_take_no_second_forward_pass() -> None:
    made = ScalingModule(Counting, toy.squared_error, metrics={"mse": MeanSquaredError(), "more": MeanSquaredError()})
    made.begin({"width": 8}, 10)
    Counting.passes = 0
    evaluate(trainer(), made, data(DataLoader(NEAR, batch_size=50)))
    assert Counting.passes == 2


def test_beside_a_loss_of_ones_own_metrics_get_the_outputs_too() -> None:
    class OwnLoss(ScalingModule):
        def compute_loss(self, net: nn.Module, batch: Any) -> Tensor:
            return 2 * super().compute_loss(net, batch)

    made = module(OwnLoss, metrics={"mse": MeanSquaredError()})
    found = evaluate(trainer(), made, data(NEAR))
    assert found.loss == pytest.approx(2 * found.metrics["mse"], rel=1e-6)


def test_metrics_do_not_change_the_loss_or_what_is_saved() -> None:
    plain, measured = module(), module(metrics={"mse": MeanSquaredError()})
    losses = [evaluate(trainer(), made, data(DataLoader(NEAR, batch_size=7))).loss for made in (plain, measured)]
    assert losses[0] == losses[1]
    assert plain.state_dict().keys() == measured.state_dict().keys()


def test_metrics_may_be_plain_values_that_reach_other_processes() -> None:
    spec = {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}}
    made = module(metrics={"rmse": spec})
    assert evaluate(trainer(), made, data(NEAR)).metrics["rmse"] == pytest.approx(error_on(made, NEAR) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": MeanSquaredError()}, "a metric cannot be called 'loss'"),
        ({"seed": MeanSquaredError()}, "a metric cannot be called 'seed'"),
        ({"loss/far": MeanSquaredError()}, "a metric cannot be called 'loss/far'"),
        ({"": MeanSquaredError()}, "a metric cannot be called ''"),
        ([MeanSquaredError()], "metrics is list, not a mapping"),
        ({"mse": MeanSquaredError}, "metrics: mse is the class MeanSquaredError, not an instance"),
        ({"mse": "MeanSquaredError"}, "metrics: mse is 'MeanSquaredError', not a mapping with class_path"),
        ({"mse": {"class_path": "torchmetrics.MeanSquareError"}}, "did you mean MeanSquaredError?"),
        ({"mse": {"class_path": "torch.nn.ReLU"}}, "torch.nn.ReLU is not a Metric"),
        (
            {"a": {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"square": 1}}},
            "does not take square\n\nhint: did you mean squared?",
        ),
    ],
)
def test_what_is_no_metric_is_told_when_the_module_is_made(metrics: Any, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        module(metrics=metrics)
    assert message in str(caught.value)


class Shape(Metric):
    """No single number."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.zeros(3)


def test_metrics_that_do_not_fit_the_outputs_are_told_before_training() -> None:
    made = module(metrics={"mse": MeanSquaredError(), "accuracy": MulticlassAccuracy(5), "shape": Shape()})
    with pytest.raises(PlanError) as caught:
        made.check_metrics(toy.Net(8), toy.regression(10)[:])
    message = str(caught.value)
    assert "accuracy (MulticlassAccuracy) fails: " in message
    assert "shape (Shape) gives (3,), not a number" in message
    assert "mse" not in message
    assert "on outputs (10,) float32 and targets (10,) float32" in message
    assert "override ScalingModule.compute_outputs" in message


def test_metrics_that_fit_pass_and_leave_nothing_behind() -> None:
    made = module(metrics={"mse": MeanSquaredError()})
    net = toy.Net(8).train()
    made.check_metrics(net, toy.regression(10)[:])
    assert net.training
    found = evaluate(trainer(), made, data(NEAR))
    assert found.metrics["mse"] == pytest.approx(found.loss, rel=1e-6)
    module().check_metrics(net, None)  # there are none
    made.check_metrics(toy.Failing(8), toy.regression(10)[:])  # a network that does not run here is not judged


# In other processes --------------------------------------------------------------------------------------------------


def near() -> Any:
    return DataLoader(toy.regression(100, seed=1), batch_size=16)


def far() -> Any:
    return DataLoader(toy.regression(30, seed=2), batch_size=16)


def test_sets_and_metrics_reach_a_process_that_only_has_the_config() -> None:
    recipe = PythonRecipe(
        model_cls=toy.Net,
        model_kwargs={},
        loss_fn=toy.squared_error,
        dataset=toy.regression,
        val_dataset={"near": near, "far": far},
        batch_size=16,
        module_kwargs={"metrics": {"mse": {"class_path": "MeanSquaredError"}}},
    )
    config = recipe.to_config()
    assert config is not None
    again = recipe_from(json.loads(json.dumps(config)))
    made = again.module()
    made.begin({"width": 8}, 10)
    found = evaluate(trainer(), made, again.data())
    assert set(found.metrics) == {"mse", "loss/far", "mse/far"}
    recipe.val_dataset = {"near": near, "far": toy.regression(30)}
    assert recipe.to_config() is None


_SCRIPT = """
import sys, warnings
sys.path[:0] = {paths!r}
warnings.simplefilter("ignore")
from torchmetrics import MeanSquaredError, SumMetric
from test_evaluate import CountTokens, evaluate, data, module, near, far, trainer
devices = int(sys.argv[1])
made = module(metrics={{"mse": MeanSquaredError(), "sum": CountTokens()}})
fitted = trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
found = evaluate(fitted, made, data({{"near": near(), "far": far()}}))
if fitted.is_global_zero:
    print("found", found)
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_any_number_of_processes_finds_the_same_to_the_bit(tmp_path: Path) -> None:
    script = tmp_path / "evaluated.py"
    here = Path(__file__).parent
    script.write_text(_SCRIPT.format(paths=[str(here), str(here.parent)]))
    told = []
    for devices in (1, 2):
        done = subprocess.run([sys.executable, str(script), str(devices)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stdout.splitlines() if line.startswith("found")])
    assert len(told[0]) == 1
    assert told[0] == told[1]
    assert "'sum': 100.0" in told[0][0]
