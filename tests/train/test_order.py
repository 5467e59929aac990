"""The samples of a step are a function of seed and step, whoever asks and however often it was interrupted."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler

from flops_fit.errors import DataError
from flops_fit.train import order as order_module
from flops_fit.train.order import BatchOrder, RepeatedBatches, not_plain


def order(num_samples: int = 50, batch: int = 8, steps: int = 20, seed: int = 0, **changes: int) -> BatchOrder:
    placed = {"start": 0, "rank": 0, "world": 1, "accumulate": 1} | changes
    return BatchOrder(num_samples, batch, steps, seed, **placed)


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@given(st.integers(8, 60), st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=50)
def test_a_resumed_order_is_the_tail_of_the_whole(
    num_samples: int, batch: int, steps: int, seed: int, data: st.DataObject
) -> None:
    whole = list(order(num_samples, batch, steps, seed))
    start = data.draw(st.integers(0, steps))
    assert list(order(num_samples, batch, steps, seed, start=start)) == whole[start:]
    assert list(order(num_samples, batch, steps, seed)) == whole


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (4, 1), (2, 2), (8, 1)])
def test_devices_and_micro_batches_share_the_single_process_batch(world: int, accumulate: int) -> None:
    whole = list(order())
    ranks = [list(order(rank=rank, world=world, accumulate=accumulate)) for rank in range(world)]
    assert all(len(micro) == 8 // (world * accumulate) for rank in ranks for micro in rank)
    for step, batch in enumerate(whole):
        parts = [rank[step * accumulate + i] for i in range(accumulate) for rank in ranks]
        assert joined(parts) == batch


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=50)
def test_every_sample_comes_once_an_epoch(num_samples: int, batch: int, seed: int) -> None:
    epochs = 3
    steps = -(-epochs * num_samples // batch)
    seen = joined(order(num_samples, batch, steps, seed))[: epochs * num_samples]
    for epoch in range(epochs):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    first, second = (joined(order(100, 10, 20))[i * 100 : (i + 1) * 100] for i in range(2))
    other = joined(order(100, 10, 10, seed=1))
    assert first != sorted(first)
    assert first != second
    assert first != other


def test_the_order_does_not_depend_on_the_length_of_the_run() -> None:
    assert list(order(steps=5)) == list(order(steps=20))[:5]


def test_the_length_is_that_of_the_whole_run_also_after_a_resume() -> None:
    # Lightning compares it with the number of batches done, which a resume restores.
    assert len(order(start=15)) == 20
    assert len(order(accumulate=4, start=3)) == 80
    assert len(RepeatedBatches(loader(), 4, 20, start=3, accumulate=2)) == 40


def test_an_order_leaves_the_global_random_states_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(order())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


@pytest.mark.parametrize(("world", "accumulate"), [(3, 1), (1, 3), (2, 8)])
def test_a_batch_that_cannot_be_shared_is_told(world: int, accumulate: int) -> None:
    message = f"a batch of 8 samples cannot be cut into {world} devices x {accumulate} micro-batches"
    with pytest.raises(DataError, match=message):
        order(world=world, accumulate=accumulate)


# Loaders whose order is their own ------------------------------------------------------------------------------------

X = torch.arange(22)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, count: int = 22) -> None:
        self.count = count

    def __iter__(self):
        return ((x, x) for x in X[: self.count])


class Shuffled(Stream):
    """Draws its order from Python's and numpy's generators while it goes, as shuffle buffers do."""

    def __iter__(self):
        rest = list(X[: self.count])
        while rest:
            x = rest.pop(int(random.random() * len(rest)))
            yield x, x + int(np.random.randint(1000))


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments with torch's generator."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], torch.rand(())


class Backwards(Sampler[int]):
    def __iter__(self):
        return iter(range(21, -1, -1))

    def __len__(self) -> int:
        return 22


def loader(kind: str = "stream") -> DataLoader:
    weighted = WeightedRandomSampler(torch.ones(22).tolist(), 22)
    return {
        "stream": lambda: DataLoader(Stream(), batch_size=4),
        "shuffled stream": lambda: DataLoader(Shuffled(), batch_size=4),
        "own sampler": lambda: DataLoader(TensorDataset(X, X), batch_size=4, sampler=Backwards()),
        "random sampler": lambda: DataLoader(Noisy(), batch_size=4, sampler=weighted),
    }[kind]()


KINDS = ("stream", "shuffled stream", "own sampler", "random sampler")


def drawn(kind: str, steps: int = 14, start: int = 0, accumulate: int = 1, seed: int = 0, disturb: bool = False):
    found = []
    for x, y in RepeatedBatches(loader(kind), 4, steps, start=start, accumulate=accumulate, seed=seed):
        found.append((x.tolist(), y.tolist()))
        if disturb:  # what dropout would do
            torch.rand(3), np.random.rand(3), random.random()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_only_whole_batches_are_trained_on_and_epochs_follow_each_other(kind: str) -> None:
    batches = drawn(kind)
    assert len(batches) == 14
    assert all(len(x) == 4 for x, _ in batches)
    if kind == "own sampler":
        assert batches[0][0] == [21, 20, 19, 18]
        assert batches[5] == batches[0]
    if kind == "shuffled stream":
        assert max(Counter(joined(x for x, _ in batches[:5])).values()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1, 5, 8, 13])
def test_a_resume_goes_on_where_it_was_whatever_else_is_random(kind: str, start: int) -> None:
    torch.manual_seed(1)
    whole = drawn(kind, disturb=True)
    torch.manual_seed(2)
    assert drawn(kind, start=start) == whole[start:]


def test_a_resume_in_accumulated_steps_passes_over_all_their_micro_batches() -> None:
    assert drawn("own sampler", steps=4, start=3, accumulate=2) == drawn("own sampler", steps=8)[6:]


@pytest.mark.parametrize("kind", ["shuffled stream", "random sampler"])
def test_the_seed_decides_what_a_loader_draws(kind: str) -> None:
    assert drawn(kind, seed=1) == drawn(kind, seed=1)
    assert drawn(kind, seed=1) != drawn(kind, seed=2)


def test_a_loader_does_not_change_what_the_model_draws() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    drawn("random sampler")
    assert torch.equal(torch.rand(2), expected)


def test_the_first_pass_is_measured() -> None:
    repeated = RepeatedBatches(loader(), 4, 14, start=0, accumulate=1)
    list(repeated)
    assert repeated.first_epoch == 5


def test_a_stream_without_a_whole_batch_is_told() -> None:
    short = DataLoader(Stream(3), batch_size=4)
    with pytest.raises(DataError, match="the training data holds no whole batch of 4 samples"):
        list(RepeatedBatches(short, 4, 2, start=0, accumulate=1))


# Loaders with a state ------------------------------------------------------------------------------------------------


class Streaming(DataLoader):
    """Shuffles with a generator of its own and augments with torch's; its state says where it is."""

    def __init__(self, count: int = 22, batch_size: int = 4) -> None:
        super().__init__(TensorDataset(X[:count], X[:count]), batch_size=batch_size)
        self.epoch, self.position = 0, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        shuffled = X[torch.randperm(len(self.dataset), generator=generator)]
        while self.position < len(shuffled):
            x = shuffled[self.position : self.position + self.batch_size]
            self.position += self.batch_size
            noise = torch.rand(len(x)) + random.random() + np.random.normal()
            yield x, noise
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def torchdata(**options: Any) -> Any:
    module = pytest.importorskip("torchdata.stateful_dataloader")
    torch.manual_seed(5)  # a shuffling loader without a generator draws the seed of its order when it is made
    return module.StatefulDataLoader(Noisy(), batch_size=4, **options)


LOADERS = {
    "by hand": Streaming,
    "torchdata": torchdata,
    "torchdata shuffled": lambda: torchdata(shuffle=True),
    "torchdata weighted": lambda: torchdata(sampler=WeightedRandomSampler(torch.ones(22).tolist(), 22)),
    "torchdata generator": lambda: torchdata(shuffle=True, generator=torch.Generator().manual_seed(3)),
    "torchdata workers": lambda: torchdata(shuffle=True, num_workers=2),
}
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def stateful(kind: str, start: int = 0, **options: Any) -> RepeatedBatches:
    return RepeatedBatches(LOADERS[kind](), 4, 14, start=start, is_stateful=True, **{"accumulate": 1} | options)


def values(batches: Iterable[Any]) -> list[Any]:
    return [(x.tolist(), y.tolist()) for x, y in batches]


def saved(state: Any) -> Any:
    """Through a checkpoint that executes no code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if "workers" in kind else kind for kind in LOADERS]
)
@pytest.mark.parametrize("often", [True, False])
def test_a_state_is_restored_exactly_however_far_ahead_the_loader_was_read(
    kind: str, often: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noted at every batch, or at the first only, from which a resume passes over the others.
    monkeypatch.setattr(order_module, "_NOTE_SECONDS", 0.0 if often else 3600.0)
    torch.manual_seed(1)
    whole = values(stateful(kind))
    for step, ahead in ((1, 0), (4, 3), (5, 0), (6, 5), (10, 0), (13, 1)):
        killed = stateful(kind)
        list(islice(killed, step + ahead))
        state = saved(killed.place(step))
        torch.manual_seed(2)
        again = stateful(kind, start=step)
        again.go_to(state)
        if "workers" in kind:  # what worker processes draw is their own
            assert [x for x, _ in values(again)] == [x for x, _ in whole[step:]]
        else:
            assert values(again) == whole[step:], (kind, step)
        assert again.first_epoch == 5


def test_a_twice_resumed_loader_goes_on_too() -> None:
    whole = values(stateful("by hand"))
    first = stateful("by hand")
    list(islice(first, 6))
    second = stateful("by hand", start=6)
    second.go_to(saved(first.place(6)))
    list(islice(second, 1))
    third = stateful("by hand", start=7)
    third.go_to(saved(second.place(7)))
    assert values(third) == whole[7:]


def test_a_state_is_that_of_whole_steps_whatever_the_micro_batches_are_then() -> None:
    whole = values(stateful("by hand"))
    killed = RepeatedBatches(LOADERS["by hand"](), 4, 7, start=0, accumulate=2, is_stateful=True)
    list(islice(killed, 7))  # in the middle of the fourth step
    again = RepeatedBatches(LOADERS["by hand"](), 4, 7, start=3, accumulate=2, pieces=2, is_stateful=True)
    assert len(again) == 28
    again.go_to(killed.place(3))
    joined_again = [joined(x.tolist() for x, _ in pair) for pair in zip(*[iter(again)] * 2, strict=True)]
    assert joined_again == [x for x, _ in whole[6:]]


def test_a_loader_that_has_read_nothing_or_has_no_state_has_none_to_save() -> None:
    assert stateful("by hand").place(0) is None
    plain = RepeatedBatches(loader(), 4, 14, start=0, accumulate=1)
    list(plain)
    assert plain.place(3) is None
    plain.go_to(None)


def test_a_state_that_is_not_plain_is_not_saved_and_the_user_told(caplog: pytest.LogCaptureFixture) -> None:
    strange = Streaming()
    strange.state_dict = lambda: {"rng": np.random.default_rng(0)}  # type: ignore[method-assign]
    repeated = RepeatedBatches(strange, 4, 14, start=0, accumulate=1, is_stateful=True)
    list(islice(repeated, 3))
    assert repeated.place(3) is None
    assert "holds Generator, which a checkpoint cannot; a resumed run passes over the batches" in caplog.text


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"a": [1, 2.5, "x", None, True, b"y"], "b": ({"c": torch.zeros(2)},)}, None),
        ({1: 2}, None),
        ({"a": np.float32(1)}, "float32"),
        ([1, {2}], "set"),
        ({"a": {"b": lambda: None}}, "function"),
        (Counter("a"), "Counter"),
    ],
)
def test_plain_values_are_those_that_a_checkpoint_holds(state: Any, found: str | None) -> None:
    assert (not_plain(state) is None) is (found is None)
    if found is None:
        assert str(saved(state)) == str(state)
    else:
        assert f"holds {found}" in str(not_plain(state))
