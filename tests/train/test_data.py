"""Whatever data a user brings is checked at once, kept as it is, and held out from before anything is shuffled."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from flops_fit.errors import DataError
from flops_fit.train.data import HOLD_OUT_EVERY, SweepData, sweep_data
from flops_fit.train.order import RepeatedBatches

X = torch.arange(200.0).reshape(100, 2)
DATA = TensorDataset(X, X.sum(dim=1))
VAL = TensorDataset(X[:10] + 1000, X[:10].sum(dim=1))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, count: int = 100) -> None:
        self.count = count

    def __iter__(self):
        return ((X[i], X[i].sum()) for i in range(self.count))


class Module(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(DATA, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(VAL, batch_size=5)


class Backwards(Sampler[int]):
    def __init__(self, count: int = 100) -> None:
        self.count = count

    def __iter__(self):
        return iter(range(self.count - 1, -1, -1))

    def __len__(self) -> int:
        return self.count


def read(data: SweepData, batch_size: int = 8, steps: int = 6, **changes: int) -> list[Tensor]:
    """The inputs of every training batch."""
    placed = {"start": 0, "rank": 0, "world": 1, "accumulate": 1} | changes
    return [batch[0] for batch in data.batches(batch_size, steps, seed=0, **placed)]


def samples(loader: Any) -> set[float]:
    return {x[0].item() for batch in loader for x in batch[0]}


# Every form of data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "batch_size", "expected"),
    [
        (DATA, None, None),
        (DATA, 16, 16),
        (list(DATA), 16, 16),
        (Stream(), 16, 16),
        (DataLoader(DATA, batch_size=4), None, 4),
        (DataLoader(DATA, batch_size=4), 16, 16),
        (DataLoader(Stream(), batch_size=4), None, 4),
        (Module(), None, 8),
        (lambda: DATA, 16, 16),
        (lambda: Module(), None, 8),
        (partial(DataLoader, DATA, batch_size=4), None, 4),
    ],
)
def test_every_form_of_data_is_taken(source: Any, batch_size: int | None, expected: int | None) -> None:
    data = sweep_data(source, VAL, batch_size)
    assert data.batch_size == expected
    assert data.is_ordered_here is not any("passes over" in note for note in data.notes)
    assert samples(data.val) == {x.item() for x in VAL.tensors[0][:, 0]}
    inputs, targets = data.example
    assert torch.equal(inputs.sum(dim=1), targets)
    batches = read(data)
    assert [len(x) for x in batches] == [8] * 6
    assert torch.equal(torch.cat(read(data, start=2)), torch.cat(batches[2:]))


def test_a_module_is_set_up_and_brings_its_own_validation() -> None:
    module = Module()
    data = sweep_data(module)
    assert module.calls == ["prepare", "fit"]
    assert min(samples(data.val)) == 1000
    assert data.num_samples == 100


def test_validation_may_be_a_module_or_a_function() -> None:
    assert min(samples(sweep_data(DATA, Module()).val)) == 1000
    assert min(samples(sweep_data(DATA, lambda: VAL).val)) == 1000


def test_plain_order_is_replaced_by_ours_and_everything_else_of_a_loader_is_kept() -> None:
    def collate(items: list[Any]) -> Any:
        x, y = default_collate(items)
        return x * 2, y

    def prepared(worker: int) -> None:
        pass

    for shuffle in (False, True):
        user = DataLoader(DATA, 8, shuffle=shuffle, num_workers=2, collate_fn=collate, worker_init_fn=prepared)
        ours = sweep_data(user, VAL).batches(8, 4, 0, start=0, rank=0, world=1, accumulate=1)
        assert isinstance(ours, DataLoader)
        assert (ours.num_workers, ours.collate_fn, ours.worker_init_fn) == (2, collate, prepared)
    plain = sweep_data(DataLoader(DATA, 8, collate_fn=collate), VAL)
    assert all(torch.equal(a, b * 2) for a, b in zip(read(plain), read(sweep_data(DATA, VAL)), strict=True))


@pytest.mark.parametrize(
    "sampler", [Backwards(), RandomSampler(DATA, replacement=True), RandomSampler(DATA, num_samples=50)]
)
def test_a_sampler_of_the_users_own_is_kept(sampler: Any) -> None:
    data = sweep_data(DataLoader(DATA, batch_size=4, sampler=sampler), VAL)
    assert not data.is_ordered_here
    loader = data.batches(8, 6, seed=0, start=0, rank=0, world=1, accumulate=2)
    assert isinstance(loader, RepeatedBatches)
    assert loader.loader.sampler is sampler
    if isinstance(sampler, Backwards):
        assert read(data, batch_size=4)[0][:, 0].tolist() == [198, 196, 194, 192]
        assert read(data, batch_size=8)[0][:, 0].tolist() == [198 - 2 * i for i in range(8)]


@pytest.mark.parametrize("sampler", [RandomSampler(DATA), SequentialSampler(DATA)])
def test_plain_samplers_are_replaced(sampler: Any) -> None:
    assert sweep_data(DataLoader(DATA, batch_size=4, sampler=sampler), VAL).is_ordered_here


def test_a_batch_sampler_of_the_users_own_is_kept() -> None:
    batches = [list(range(i, i + 5)) for i in range(0, 100, 5)]
    data = sweep_data(DataLoader(DATA, batch_sampler=batches), VAL)
    assert data.batch_size == 5
    assert read(data, batch_size=5)[1][:, 0].tolist() == [10, 12, 14, 16, 18]


def test_streams_are_not_shuffled_and_not_for_several_devices() -> None:
    data = sweep_data(Stream(), VAL, 8)
    assert read(data)[0][:, 0].tolist() == [2 * i for i in range(8)]
    assert data.num_samples is None
    with pytest.raises(DataError, match="can be trained on one device only"):
        read(data, world=2)
    with pytest.raises(DataError, match="a batch of 8 samples cannot be split into 3 micro-batches"):
        read(data, accumulate=3)


def test_micro_batches_together_are_the_batch() -> None:
    data = sweep_data(DATA, VAL, 8)
    whole = torch.cat(read(data))
    assert torch.equal(torch.cat(read(data, accumulate=4)), whole)


# Loaders with a state of their own -----------------------------------------------------------------------------------


class Cursor(DataLoader[Any]):
    """Goes on where it was left, as loaders that stream from shards do; says where that is."""

    def __init__(self, count: int = 100, batch_size: int = 4, at: Any = 0) -> None:
        super().__init__(TensorDataset(X[:count], X[:count]), batch_size=batch_size)
        self.at = at

    def __iter__(self):
        while int(self.at) < len(self.dataset):
            begin = int(self.at)
            self.at += self.batch_size
            yield X[begin : begin + self.batch_size], X[begin : begin + self.batch_size]
        self.at -= self.at

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def resumed(data: SweepData, state: Any, start: int, **changes: Any) -> list[float]:
    """The first input of every micro-batch that a resumed run sees."""
    placed = {"start": start, "rank": 0, "world": 1, "accumulate": 1} | changes
    loader = data.batches(4, 40, seed=0, **placed)
    loader.go_to(state)
    return [batch[0][0, 0].item() for batch in loader]


def test_a_loader_with_a_state_keeps_it_and_every_run_begins_at_its_beginning() -> None:
    data = sweep_data(Cursor(), VAL)
    assert data.is_stateful
    assert not data.notes
    assert not data.is_ordered_here
    first = [x[0, 0].item() for x in read(data, 4, steps=40)]
    assert first == [2.0 * (4 * i % 100) for i in range(40)]
    loader = data.batches(4, 40, seed=0, start=0, rank=0, world=1, accumulate=1)
    for _ in zip(range(30), loader, strict=False):
        pass
    assert [x[0, 0].item() for x in read(data, 4, steps=40)] == first, "another run was left in the middle"
    state = loader.place(20)
    assert state is not None
    assert resumed(data, state, 20) == first[20:]
    assert resumed(data, None, 20) == first[20:], "without its state it is passed over"


@pytest.mark.parametrize("accumulate", [2, 4])
def test_batches_of_a_loader_with_a_state_are_cut_into_micro_batches(accumulate: int) -> None:
    data = sweep_data(Cursor(), VAL)
    whole = torch.cat(read(data, 4, steps=30))
    parts = read(data, 4, steps=30, accumulate=accumulate)
    assert [len(x) for x in parts] == [4 // accumulate] * (30 * accumulate)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat(read(data, 8, steps=15, accumulate=accumulate)), whole), "several make one step"
    with pytest.raises(DataError, match="batches of 4 samples, as the training loader makes them, cannot be made into"):
        read(data, 6)


def test_a_state_that_is_more_than_plain_values_is_passed_over_and_the_user_told() -> None:
    data = sweep_data(Cursor(at=np.int64(0)), VAL)
    assert not data.is_stateful
    assert data.notes == [
        "the training loader's state_dict() holds int64, which a checkpoint cannot: a resumed run passes over the"
        " batches it has seen"
    ]
    loader = data.batches(4, 40, seed=0, start=0, rank=0, world=1, accumulate=1)
    whole = [batch[0][0, 0].item() for batch in loader]
    assert loader.place(20) is None
    assert resumed(data, None, 20) == whole[20:]


def test_a_loader_with_a_state_that_cannot_be_copied_is_told() -> None:
    broken = Cursor()
    broken.handle = open(__file__)  # noqa: SIM115
    with broken.handle, pytest.raises(DataError, match="Cursor has a state, and cannot be copied for every run"):
        sweep_data(broken, VAL)


def test_nothing_is_held_out_of_a_loader_with_a_state() -> None:
    with pytest.raises(DataError, match="none can be held out of a loader with its own order"):
        sweep_data(Cursor())


@pytest.mark.parametrize("source", [Stream(), DataLoader(DATA, batch_size=4, sampler=Backwards())])
def test_an_order_that_a_resume_has_to_pass_over_is_told(source: Any) -> None:
    (note,) = sweep_data(source, VAL, 4).notes
    assert note == ("the training data keeps an order of its own: a resumed run passes over the batches it has seen")
    assert not sweep_data(DataLoader(DATA, batch_size=4, shuffle=True), VAL).notes


# Several held-out sets -----------------------------------------------------------------------------------------------

OTHER = TensorDataset(X[:6] + 2000, X[:6].sum(dim=1))


class TwoSets(Module):
    def __init__(self, loaders: Any) -> None:
        super().__init__()
        self.loaders = loaders

    def val_dataloader(self) -> Any:
        return self.loaders


@pytest.mark.parametrize(
    ("val", "names"),
    [
        ({"near": VAL, "far": OTHER}, ["near", "far"]),
        ({"near": DataLoader(VAL, batch_size=3), "far": lambda: OTHER}, ["near", "far"]),
        (lambda: {"near": VAL, "far": OTHER}, ["near", "far"]),
        ([VAL, DataLoader(OTHER, batch_size=2)], ["0", "1"]),
        (TwoSets([DataLoader(VAL), DataLoader(OTHER)]), ["0", "1"]),
        (TwoSets({"near": DataLoader(VAL), "far": DataLoader(OTHER)}), ["near", "far"]),
    ],
)
def test_several_held_out_sets_keep_their_names_and_order(val: Any, names: list[str]) -> None:
    data = sweep_data(DATA, val, 4)
    assert list(data.val_sets) == names
    assert data.val is data.val_sets[names[0]]
    assert [min(samples(loader)) for loader in data.val_sets.values()] == [1000, 2000]


def test_a_module_brings_its_sets_too() -> None:
    data = sweep_data(TwoSets({"near": DataLoader(VAL), "far": DataLoader(OTHER)}))
    assert list(data.val_sets) == ["near", "far"]


def test_every_set_is_part_of_the_identity_and_one_set_is_as_it_always_was() -> None:
    one, two = sweep_data(DATA, VAL).fingerprint, sweep_data(DATA, {"a": VAL, "b": OTHER}).fingerprint
    assert one != two
    assert sweep_data(DATA, {"a": VAL}).fingerprint == one
    assert sweep_data(DATA, {"a": OTHER, "b": VAL}).fingerprint != two


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ({}, "the validation data is an empty mapping"),
        ({"a": VAL, "b": 3}, "the validation data 'b' is int, not a data set"),
        ({"a": VAL, "b": []}, "the validation data 'b' is empty"),
        (TwoSets([DataLoader(VAL), 3]), "TwoSets.val_dataloader() returned list, not a DataLoader, nor a list or a"),
        (TwoSets([]), "TwoSets.val_dataloader() returned list"),
        (TwoSets(None), "TwoSets.val_dataloader() returned NoneType"),
    ],
)
def test_a_set_that_is_none_is_named(val: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        sweep_data(DATA, val, 2)
    assert message in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(4.5, 4.5), (1, 1.0), (None, None), ("four", None)])
def test_the_data_may_say_how_many_bytes_a_token_stands_for(value: Any, expected: float | None) -> None:
    module = Module()
    module.bytes_per_token = value  # type: ignore[attr-defined]
    assert sweep_data(module).bytes_per_token == expected


def test_bytes_that_are_none_are_refused() -> None:
    module = Module()
    module.bytes_per_token = 0  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="bytes_per_token=0 of the training data must be a positive number"):
        sweep_data(module)


# Holding out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [DATA, Stream(), DataLoader(DATA, batch_size=5), DataLoader(Stream(), batch_size=5)])
def test_without_validation_data_every_kth_sample_is_held_out_and_the_user_told(source: Any) -> None:
    data = sweep_data(source, None, 5)
    note = data.notes[0]
    assert note.startswith(f"no validation data was given: every {HOLD_OUT_EVERY}th sample is held out")
    held_out = samples(data.val)
    assert held_out == {2.0 * i for i in range(HOLD_OUT_EVERY - 1, 100, HOLD_OUT_EVERY)}
    trained = {x[0].item() for batch in read(data, 5, steps=30) for x in batch}
    assert trained == {2.0 * i for i in range(100)} - held_out
    assert samples(data.val) == held_out


def test_a_module_without_validation_is_held_out_from() -> None:
    class NoValidation(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(DATA, batch_size=8)

    data = sweep_data(NoValidation())
    assert len(data.notes) == 1
    assert len(samples(data.val)) == 5


def test_of_a_large_data_set_a_bounded_number_is_held_out() -> None:
    x = torch.arange(200_000)
    data = sweep_data(TensorDataset(x, x))
    assert len(data.val.dataset) <= 4170
    assert data.num_samples + len(data.val.dataset) == 200_000


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(DATA, batch_size=4, sampler=Backwards()),
        DataLoader(DATA, batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(Stream(), batch_size=4, num_workers=1),
    ],
)
def test_nothing_is_held_out_of_a_loader_with_an_order_of_its_own(source: Any) -> None:
    with pytest.raises(DataError, match="none can be held out of a loader with its own order") as caught:
        sweep_data(source)
    assert "pass val_dataset" in str(caught.value)


@pytest.mark.parametrize("source", [TensorDataset(X[:10], X[:10]), Stream(10)])
def test_too_little_to_hold_any_out_is_told(source: Any) -> None:
    with pytest.raises(DataError, match=r"too few to hold any out|holds fewer than 20 items") as caught:
        sweep_data(source, None, 2)
    assert "pass val_dataset" in str(caught.value)


# Bad input -----------------------------------------------------------------------------------------------------------


class Single(Dataset[Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return X[index]


class Broken(Single):
    def __getitem__(self, index: int) -> Any:
        raise FileNotFoundError("shard-0.bin")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "the training data is NoneType, not a data set"),
        (3, "the training data is int, not a data set"),
        ("text", "the training data is str, not a data set"),
        ({"a": 1}, "the training data is dict, not a data set"),
        ((i for i in range(3)), "the training data is generator, not a data set"),
        (Single, "Single is a class, not data\n\nhint: pass Single(...) instead"),
        (Single(), "an item of the training data is Tensor, not a pair (inputs, targets) or a mapping"),
        ([(1,), (2,)], "an item of the training data is tuple, not a pair (inputs, targets) or a mapping"),
        ([], "the training data is empty\n\nhint: the data set's __len__ returned 0"),
        (DataLoader([], batch_size=2), "the training data is empty"),
        (Stream(0), "the training data is empty\n\nhint: the iterable ended before its first item"),
        (Broken(), "the first item of the training data cannot be read: FileNotFoundError: shard-0.bin"),
        (lambda path: DATA, "must take no arguments"),
        (partial(lambda path, split: DATA, "x"), "the data function partial must take no arguments"),
    ],
)
def test_what_cannot_be_trained_on_is_told_at_once(source: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        sweep_data(source, VAL, 2)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (Single(), "an item of the validation data is Tensor, not a pair"),
        ([], "the validation data is empty"),
        (3, "the validation data is int, not a data set"),
    ],
)
def test_validation_data_is_checked_too(val: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sweep_data(DATA, val, 2)


@pytest.mark.parametrize(
    ("source", "held"),
    [
        (DATA, "has 100 samples, fewer than one batch of 128"),
        (DataLoader(DATA, batch_size=128), "has 100 samples, fewer than one batch of 128"),
        (Stream(), "ended after 100 samples, fewer than one batch of 128"),
        (DataLoader(Stream(), batch_size=128), "ended after 100 samples, fewer than one batch of 128"),
    ],
)
def test_data_smaller_than_a_batch_is_told(source: Any, held: str) -> None:
    with pytest.raises(DataError, match=f"the training data {held}") as caught:
        sweep_data(source, VAL, 128)
    assert "lower batch_size, or bring more data" in str(caught.value)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "8"])
def test_a_batch_size_that_is_none_is_refused(batch_size: Any) -> None:
    with pytest.raises(DataError, match=r"batch_size=.* must be a positive whole number"):
        sweep_data(DATA, VAL, batch_size)


def test_a_module_that_returns_something_else_is_told() -> None:
    class Lists(Module):
        def train_dataloader(self) -> Any:
            return [DataLoader(DATA)]

    with pytest.raises(DataError, match=r"Lists\.train_dataloader\(\) returned list, not one DataLoader"):
        sweep_data(Lists())


# Identity and randomness ---------------------------------------------------------------------------------------------


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Noise from all three generators."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + torch.rand(2), X[index, 0] + np.random.rand() + random.random()


class WithFingerprint(Single):
    fingerprint = "mine"

    def __getitem__(self, index: int) -> Any:
        return X[index], object()


def changed_item(index: int) -> TensorDataset:
    x = X.clone()
    x[index] += 1
    return TensorDataset(x, x.sum(dim=1))


def test_a_fingerprint_tells_data_apart_and_nothing_else() -> None:
    first = sweep_data(DATA, VAL).fingerprint
    assert sweep_data(DataLoader(DATA, batch_size=4, shuffle=True), VAL).fingerprint == first
    assert sweep_data(TensorDataset(X[:-1], X[:-1].sum(dim=1)), VAL).fingerprint != first
    assert sweep_data(changed_item(99), VAL).fingerprint != first
    assert sweep_data(TensorDataset(X.double(), X.sum(dim=1)), VAL).fingerprint != first
    assert sweep_data(DATA, DATA).fingerprint != first, "other validation data gives other losses"
    assert sweep_data(Stream(), VAL).fingerprint == sweep_data(Stream(), VAL).fingerprint


def test_random_augmentation_does_not_change_the_fingerprint() -> None:
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        prints.append(sweep_data(Augmented(), VAL).fingerprint)
    assert prints[0] == prints[1]


def test_values_of_any_kind_have_a_fingerprint_without_addresses() -> None:
    items = [(X[0].bfloat16(), object(), "text", None, 3)] * 30
    again = [(X[0].bfloat16(), object(), "text", None, 3)] * 30
    loaders = [DataLoader(data, batch_size=2, collate_fn=lambda items: (X[:2], X[:2])) for data in (items, again)]
    assert sweep_data(loaders[0], VAL).fingerprint == sweep_data(loaders[1], VAL).fingerprint
    assert sweep_data(DataLoader(WithFingerprint(), 2, collate_fn=lambda i: (X[:2], X[:2])), VAL).fingerprint


def test_a_data_set_may_bring_its_own_fingerprint() -> None:
    module = Module()
    module.fingerprint = "corpus-7"  # type: ignore[attr-defined]
    assert sweep_data(module).fingerprint == "corpus-7"
    module.fingerprint = lambda: "a method, whose text holds an address"  # type: ignore[attr-defined]
    assert "method" not in sweep_data(module).fingerprint


def test_a_function_that_makes_random_data_makes_the_same_in_every_process() -> None:
    def data() -> TensorDataset:
        x = torch.randn(100, 2) + torch.from_numpy(np.random.rand(100, 2)) + random.random()
        return TensorDataset(x, x)

    torch.manual_seed(1)
    first = sweep_data(data, VAL)
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    expected = torch.get_rng_state()
    second = sweep_data(data, VAL)
    assert torch.equal(first.train.dataset.tensors[0], second.train.dataset.tensors[0])
    assert first.fingerprint == second.fingerprint
    assert torch.equal(torch.get_rng_state(), expected)
