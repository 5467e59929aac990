"""Warped characters: each a function of seed and index, none twice, none on both sides."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from flops_fit.errors import DataError
from flops_fit.examples.glyphs import CLASSES, GlyphData, Glyphs, masters
from flops_fit.train.data import sweep_data


def hashes(dataset: Glyphs, indices: range) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image, _ in dataset.__getitems__(list(indices))]


def read(workers: int = 0, start: int = 0) -> Tensor:
    """What a run of 12 steps sees."""
    module = GlyphData(batch_size=8, count=64, val_count=16)
    data = sweep_data(module)
    data.train.num_workers = workers
    batches = data.batches(8, 12, 3, start=start, rank=0, world=1, accumulate=1)
    return torch.cat([torch.cat((x.flatten(1), y[:, None]), dim=1) for x, y in batches])


def test_every_font_and_class_has_a_character_of_its_own() -> None:
    found = masters()
    assert found.shape == (16 * 36, 1, 32, 32)
    assert len({image.numpy().tobytes() for image in found}) == len(found)
    assert found.flatten(1).max(dim=1).values.min() > 0.9
    # nothing is cut off, or the warped ones would be too
    assert found[..., 0, :].max() == found[..., -1, :].max() == found[..., 0].max() == found[..., -1].max() == 0


def test_an_image_is_a_function_of_seed_and_index_alone() -> None:
    one_by_one, at_once = Glyphs(1000, seed=5), Glyphs(1000, seed=5).__getitems__([999, 3, 3, 0])
    for (image, label), index in zip(at_once, (999, 3, 3, 0), strict=True):
        alone, its_label = one_by_one[index]
        assert torch.equal(image, alone)
        assert label == its_label
    assert torch.equal(Glyphs(4, seed=5)[3][0], at_once[1][0])
    assert not torch.equal(Glyphs(4, seed=6)[3][0], at_once[1][0])


def test_none_comes_twice_and_none_is_on_both_sides() -> None:
    held_out = hashes(Glyphs(4096, None), range(4096))
    trained = [h for seed in (0, 1) for h in hashes(Glyphs(2**20, seed), range(3000))]
    assert len({*held_out, *trained}) == len(held_out) + len(trained)
    assert hashes(Glyphs(2**40), range(2**40 - 2, 2**40)) == hashes(Glyphs(2**41), range(2**40 - 2, 2**40))


def test_classes_are_balanced_and_images_of_about_unit_variance() -> None:
    images, labels = zip(*Glyphs(3600).__getitems__(list(range(3600))), strict=True)
    counts = torch.tensor(labels).bincount(minlength=len(CLASSES))
    assert len(counts) == 36
    assert ((counts - 100).square().sum() / 100) < 70  # chi-squared with 35 degrees of freedom
    pixels = torch.stack(images)
    assert pixels.dtype == torch.float32
    assert abs(pixels.mean()) < 0.3
    assert abs(pixels.std() - 1) < 0.3


@pytest.mark.parametrize("workers", [0, 2])
def test_two_readings_are_the_same_with_workers_and_after_a_resume(workers: int) -> None:
    whole = read()
    assert torch.equal(read(workers), whole)
    assert torch.equal(read(workers, start=7), whole[7 * 8 :])


def test_the_module_evaluates_on_the_same_images_whatever_the_seed() -> None:
    sets = [torch.cat([x for x, _ in GlyphData(seed=seed, val_count=300).val_dataloader()]) for seed in (0, 1)]
    assert torch.equal(*sets)
    assert len(sets[0]) == 300
    assert (
        GlyphData().fingerprint
        == GlyphData(seed=1).fingerprint
        == hashlib.sha256(masters().numpy().tobytes()).hexdigest()
    )


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="count=0 must be positive"):
        Glyphs(0)
    with pytest.raises(DataError, match="seed=-1"):
        Glyphs(1, seed=-1)
    with pytest.raises(IndexError, match="image 4 of 4"):
        Glyphs(4)[4]
