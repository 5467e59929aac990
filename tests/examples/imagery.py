"""Small real files of images: archives as CIFAR-10's, .npz and folders."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 8  # of images that need not be CIFAR-10's [pixels]


def pixels(count: int, seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """Random images (count, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def arrays(train: int = 40, test: int = 10) -> dict[str, NDArray[np.uint8]]:
    return {
        "train_images": pixels(train),
        "train_labels": np.arange(train, dtype=np.uint8) % 10,
        "test_images": pixels(test, seed=1),
        "test_labels": np.arange(test, dtype=np.uint8) % 10,
    }


def npz(path: Path, **changed: object) -> Path:
    np.savez(path, **{k: v for k, v in (arrays() | changed).items() if v is not None})
    return path


def records(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    """CIFAR-10's own form: a label and the three colours, one after the other."""
    return b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True)
    )


def batches(each: int = 4) -> dict[str, bytes]:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    labels = np.arange(each, dtype=np.uint8)
    return {f"cifar-10-batches-bin/{name}": records(pixels(each, i, 32), labels) for i, name in enumerate(names)}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def folder(path: Path, images: NDArray[np.uint8], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Images in turn into a folder for each class."""
    for i, image in enumerate(images):
        file = path / classes[i % len(classes)] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return path
