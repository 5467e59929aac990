"""Images for a sweep: augmented by what their position in the run says, normalised, the same in every reading."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from imagery import archive, arrays, batches, npz
from torch import Tensor

from flops_fit.errors import DataError
from flops_fit.examples.images import ImageData, StoredImages
from flops_fit.train.data import sweep_data


def data(tmp_path: Path, **options: object) -> ImageData:
    path = tmp_path / "images.npz"
    if not path.exists():
        npz(path)
    return ImageData(str(path), batch_size=8, **options)


def read(
    module: ImageData, start: int = 0, steps: int = 12, seed: int = 3, accumulate: int = 1
) -> tuple[Tensor, Tensor]:
    """Images and labels as a run sees them, from a step on."""
    found = sweep_data(module).batches(8, steps, seed, start=start, rank=0, world=1, accumulate=accumulate)
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_two_readings_draw_the_same_with_workers_micro_batches_and_after_a_resume(tmp_path: Path) -> None:
    images, labels = read(data(tmp_path))
    assert len(images) == len(labels) == 96
    for module, options in (
        (data(tmp_path), {}),
        (data(tmp_path, num_workers=2), {}),
        (data(tmp_path, num_workers=2), {"start": 7}),
        (data(tmp_path), {"start": 7}),
        (data(tmp_path), {"accumulate": 4}),
    ):
        again, its_labels = read(module, **options)
        seen = 8 * options.get("start", 0)
        assert torch.equal(again, images[seen:])
        assert torch.equal(its_labels, labels[seen:])


def test_an_image_is_drawn_anew_in_every_epoch_and_for_every_seed(tmp_path: Path) -> None:
    images, labels = read(data(tmp_path), steps=30)  # six epochs of 40
    plain = [image for image, label in zip(*read(data(tmp_path, augment=False), steps=30), strict=True) if label == 3]
    drawn = [image for image, label in zip(images, labels, strict=True) if label == 3]
    assert len({image.numpy().tobytes() for image in plain}) == 4  # as many as there are
    assert len({image.numpy().tobytes() for image in drawn}) > 12  # of 24
    other, _ = read(data(tmp_path), steps=30, seed=4)
    assert {i.numpy().tobytes() for i in images[:8]} != {i.numpy().tobytes() for i in other[:8]}


def test_an_augmented_image_is_a_shifted_and_perhaps_mirrored_one() -> None:
    image = torch.arange(1, 3 * 16 * 16 + 1).remainder(251).add(1).to(torch.uint8).view(1, 3, 16, 16)
    dataset = StoredImages(image, torch.zeros(1, dtype=torch.long), augment=True)
    padded = torch.nn.functional.pad(image[0], (2, 2, 2, 2))
    crops = {(y, x): padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
    possible = {c.numpy().tobytes(): (*k, False) for k, c in crops.items()}
    possible |= {c.flip(-1).contiguous().numpy().tobytes(): (*k, True) for k, c in crops.items()}
    assert len(possible) == 50
    drawn = {possible[dataset[0][0].contiguous().numpy().tobytes()] for _ in range(1000)}
    assert drawn == set(possible.values())


def test_what_is_evaluated_on_is_left_as_it_is_and_normalised_as_in_training(tmp_path: Path) -> None:
    module, stored = data(tmp_path), arrays()
    train = stored["train_images"].astype(np.float64)
    mean, std = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    (images, labels), (again, _) = (next(iter(module.val_dataloader())) for _ in range(2))
    assert torch.equal(images, again)
    expected = ((stored["test_images"] - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(images.numpy(), expected, atol=1e-5)
    assert labels.tolist() == stored["test_labels"].tolist()
    plain, _ = read(data(tmp_path, augment=False), steps=5)
    assert plain.mean().item() == pytest.approx(0, abs=1e-5)
    assert plain.std().item() == pytest.approx(1, rel=1e-3)


def test_an_image_of_one_colour_does_not_divide_by_zero(tmp_path: Path) -> None:
    flat = np.full((40, 8, 8), 7, np.uint8)
    images, _ = read(
        ImageData(str(npz(tmp_path / "flat.npz", train_images=flat, test_images=flat[:10])), augment=False)
    )
    assert not images.any()


def test_the_fingerprint_is_of_the_images_not_of_their_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first, second = ImageData(str(npz(tmp_path / "a.npz"))), ImageData(str(npz(tmp_path / "elsewhere" / "b.npz")))
    other = ImageData(str(npz(tmp_path / "c.npz", train_labels=np.zeros(40, int))))
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert sweep_data(first).fingerprint == first.fingerprint


def test_a_missing_archive_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no images at .*nowhere") as caught:
        sweep_data(ImageData(str(tmp_path / "nowhere")))
    assert "binary version" in str(caught.value)
    assert "download: true" in str(caught.value)


def test_the_archive_is_fetched_only_where_it_was_asked_for_and_is_not_there(tmp_path: Path) -> None:

    source = archive(tmp_path / "source.tar.gz", batches())
    where = {"url": source.as_uri(), "md5": hashlib.md5(source.read_bytes()).hexdigest()}
    target = tmp_path / "cifar-10-binary.tar.gz"
    with pytest.raises(DataError, match="there are no images"):
        sweep_data(ImageData(str(target), batch_size=4, **where))
    fetched = ImageData(str(target), batch_size=4, download=True, **where)
    assert sweep_data(fetched).num_samples == 20
    source.unlink()
    assert sweep_data(ImageData(str(target), batch_size=4, download=True, **where)).fingerprint == fetched.fingerprint
