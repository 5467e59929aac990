"""What a batch holds: which part the model gets, how many samples, and what they count for."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch

from flops_fit.batch import batch_inputs, batch_samples, batch_targets, batch_tokens, batch_unit, split_batch
from flops_fit.errors import DataError

IDS = torch.zeros(4, 16, dtype=torch.long)
IMAGES = torch.zeros(4, 3, 8, 8)
LABELS = torch.zeros(4, dtype=torch.long)


class Encoding(UserDict[str, Any]):
    """A mapping that is no dict, as tokenizers return it."""


@pytest.mark.parametrize(
    ("batch", "inputs", "targets"),
    [
        ((IDS, LABELS), IDS, LABELS),
        ([IDS, LABELS, IMAGES], IDS, LABELS),
        ({"input_ids": IDS, "labels": LABELS}, IDS, LABELS),
        ({"mask": IMAGES, "labels": LABELS, "input_ids": IDS}, IDS, LABELS),
        ({"image": IMAGES, "target": LABELS}, IMAGES, LABELS),
        ({"x": IMAGES, "y": LABELS}, IMAGES, LABELS),
        (Encoding(input_ids=IDS, targets=LABELS), IDS, LABELS),
    ],
)
def test_inputs_and_targets_are_found(batch: Any, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    assert batch_inputs(batch) is inputs
    assert batch_targets(batch) is targets
    assert batch_samples(batch) == 4


@pytest.mark.parametrize("batch", [IDS, (IDS,), {}, "text", None])
def test_what_is_neither_pair_nor_mapping_is_refused(batch: Any) -> None:
    with pytest.raises(DataError, match=rf"a batch of type {type(batch).__name__} is neither a pair") as caught:
        batch_inputs(batch)
    assert "'input_ids'" in str(caught.value)


def test_a_batch_without_tensors_is_refused() -> None:
    with pytest.raises(DataError, match="holds no tensor"):
        batch_samples(("a", "b"))
    assert batch_samples((torch.tensor(1.0), IMAGES)) == 4  # a scalar has no samples


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_of_rank_2_are_tokens(dtype: torch.dtype) -> None:
    assert batch_unit((IDS.to(dtype), IDS)) == "tokens"
    assert batch_tokens((IDS.to(dtype), IDS)) == 64


@pytest.mark.parametrize("inputs", [IMAGES, torch.zeros(4, 16), LABELS, IDS.to(torch.uint8), IDS[..., None]])
def test_everything_else_is_samples(inputs: torch.Tensor) -> None:
    assert batch_unit((inputs, LABELS)) == "samples"
    assert batch_tokens((inputs, LABELS)) == 4


def test_a_stated_unit_wins() -> None:
    assert batch_tokens((IDS, IDS), "samples") == 4
    assert batch_tokens((IMAGES, LABELS), "tokens") == IMAGES.numel()


def test_a_split_batch_is_the_batch_in_pieces() -> None:
    Pair = namedtuple("Pair", "x y")
    x = torch.arange(8.0).reshape(4, 2)
    batch = {"x": x, "names": ["a", "b", "c", "d"], "pair": Pair(x, [x, torch.tensor(3.0)]), "shared": "text"}
    first, second = split_batch(batch, 2)
    assert torch.equal(torch.cat([first["x"], second["x"]]), x)
    assert (first["names"], second["names"]) == (["a", "b"], ["c", "d"])
    assert isinstance(second["pair"], Pair)
    assert torch.equal(second["pair"].y[0], x[2:])
    assert second["pair"].y[1] == 3
    assert second["shared"] == "text"
    assert split_batch((IDS, LABELS), 4)[3][0].shape == (1, 16)
    assert split_batch(Encoding(input_ids=IDS, labels=LABELS), 2)[0]["input_ids"].shape == (2, 16)
    with pytest.raises(DataError, match="a batch of 4 samples cannot be cut into 3 micro-batches"):
        split_batch((IDS, LABELS), 3)
