"""Labelled images from where they usually lie: the CIFAR-10 archive, an .npz, a folder; each checked as it is read."""

from __future__ import annotations

import hashlib
import os
import tarfile
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flops_fit import DataError

# The data set's own page, and what it says of the binary version.
CIFAR10_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"

_CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR_TEST = ("test_batch.bin",)
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD = 1 + 3 * 32 * 32  # a label and the three colours, one after the other [bytes]
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_VALIDATION_SHARE = 8  # one image in so many, where a folder has no part of its own to evaluate on
_SHOWN = 3  # names in a message

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images to train on and images to evaluate on.

    Attributes:
        train_images: Of shape (count, channels, height, width).
        train_labels: Of shape (count,), from 0.
        val_images: Likewise.
        val_labels: Likewise.
    """

    train_images: Images
    train_labels: NDArray[np.int64]
    val_images: Images
    val_labels: NDArray[np.int64]

    def digest(self) -> str:
        """SHA-256 of every image and label."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.val_images, self.val_labels):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def read_images(path: str | Path, num_classes: int) -> LabelledImages:
    """Read a ``.tar.gz`` of CIFAR-10's binary version, an ``.npz`` or a folder of class folders.

    Nothing is unpickled and nothing unpacked to the disk.

    Args:
        path: The file or folder.
        num_classes: Labels are 0 up to below this.

    Raises:
        DataError: It is not there, not of these, damaged, or its labels or shapes cannot be trained on.
    """
    path = Path(path)
    if path.is_dir():
        found = _read_folder(path, num_classes)
    elif not path.is_file():
        raise DataError(
            f"there are no images at {path.absolute()}",
            hint=f"put cifar-10-binary.tar.gz (the binary version, from {CIFAR10_PAGE}) there or set download: true;"
            " path may also name an .npz or a folder with a subfolder for each class",
        )
    elif path.suffix == ".npz":
        found = _read_npz(path)
    else:
        found = _read_cifar10(path)
    for name, images, labels in (
        ("training", found.train_images, found.train_labels),
        ("validation", found.val_images, found.val_labels),
    ):
        _check(path, name, images, labels, num_classes)
    if found.train_images.shape[1:] != found.val_images.shape[1:]:
        raise DataError(
            f"{path}: images to train on have the shape {found.train_images.shape[1:]} (channels, height, width), those"
            f" to evaluate on {found.val_images.shape[1:]}",
            hint="bring all images to one size first",
        )
    return found


def download(url: str, path: str | Path, md5: str) -> None:
    """Fetch a file, check it, and put it in its place only when it is whole.

    Raises:
        DataError: It could not be fetched or written, or is not the file that was meant.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url) as source, part.open("wb") as target:
            while block := source.read(2**20):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != md5:
            raise DataError(
                f"what {url} sent has the MD5 {digest.hexdigest()}, not {md5}; it was not kept",
                hint="try again, or fetch the file in another way and put it there yourself",
            )
        part.replace(path)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{url} could not be fetched to {path}: {error}", hint=f"put the file there yourself; see {CIFAR10_PAGE}"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _check(path: Path, name: str, images: Images, labels: NDArray[np.int64], num_classes: int) -> None:
    if not len(images):
        raise DataError(f"{path} holds no {name} images")
    if len(images) != len(labels):
        raise DataError(f"{path} holds {len(images)} {name} images and {len(labels)} labels for them")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: {wrong.sum()} of {len(labels)} {name} labels are not among the {num_classes} classes 0 to"
            f" {num_classes - 1}; number {first} is {labels[first]}",
            hint="set num_classes, of the data and of the model, to the number of classes there are",
        )


def _read_cifar10(path: Path) -> LabelledImages:
    wanted, members = {*_CIFAR_TRAIN, *_CIFAR_TEST}, []
    records: dict[str, NDArray[np.uint8]] = {}
    try:
        with tarfile.open(path, "r|*") as archive:  # one pass: a compressed file cannot be searched
            for member in archive:
                members.append(member.name)
                name = member.name.rpartition("/")[2]
                if name not in wanted or not member.isfile():
                    continue
                source = archive.extractfile(member)
                assert source is not None
                records[name] = _records(path, name, source.read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        what = f"is cut short after {members[-1]}" if members else "is not an archive that can be read"
        raise DataError(
            f"{path} {what}: {error}", hint=f"fetch cifar-10-binary.tar.gz again; its MD5 is {CIFAR10_MD5}"
        ) from None
    missing = [name for name in (*_CIFAR_TRAIN, *_CIFAR_TEST) if name not in records]
    if missing:
        is_pickled = any(name.rpartition("/")[2] == "data_batch_1" for name in members)
        why = ", which is the Python version: pickled, and never read here" if is_pickled else ""
        shown = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        raise DataError(
            f"{path} holds no {missing[0]}; it holds {shown or 'nothing'}{why}",
            hint=f"take the binary version, cifar-10-binary.tar.gz, from {CIFAR10_PAGE}",
        )
    (train_images, train_labels), (val_images, val_labels) = (
        _cut(np.concatenate([records[name] for name in names])) for names in (_CIFAR_TRAIN, _CIFAR_TEST)
    )
    return LabelledImages(
        train_images=train_images, train_labels=train_labels, val_images=val_images, val_labels=val_labels
    )


def _records(path: Path, name: str, content: bytes) -> NDArray[np.uint8]:
    if not content or len(content) % _CIFAR_RECORD:
        raise DataError(
            f"{path}: {name} has {len(content)} bytes, which is no whole number of records of {_CIFAR_RECORD}",
            hint=f"fetch cifar-10-binary.tar.gz again; its MD5 is {CIFAR10_MD5}",
        )
    return np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)


def _cut(records: NDArray[np.uint8]) -> tuple[Images, NDArray[np.int64]]:
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), records[:, 0].astype(np.int64)


def _read_npz(path: Path) -> LabelledImages:
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS if name not in archive.files]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(archive.files) or 'nothing'}",
                    hint="save it with numpy.savez(path, train_images=..., train_labels=..., test_images=...,"
                    " test_labels=...)",
                )
            arrays = {name: archive[name] for name in _ARRAYS}
    except DataError:
        raise
    except ValueError as error:  # numpy's word for what it would have to unpickle
        raise DataError(
            f"{path} holds Python objects or is damaged, and nothing is unpickled here: {error}",
            hint="save plain arrays of numbers with numpy.savez",
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is cut short, or no .npz: {error}", hint="copy or make the file again") from None
    return LabelledImages(
        train_images=_channels_first(path, "train_images", arrays["train_images"]),
        train_labels=_whole_numbers(path, "train_labels", arrays["train_labels"]),
        val_images=_channels_first(path, "test_images", arrays["test_images"]),
        val_labels=_whole_numbers(path, "test_labels", arrays["test_labels"]),
    )


def _channels_first(path: Path, name: str, images: NDArray[np.generic]) -> Images:
    """(count, height, width[, channels]) as (count, channels, height, width)."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > 4):
        raise DataError(
            f"{path}: {name} is {images.dtype} of shape {images.shape}; images are uint8 of shape (count, height,"
            " width) or (count, height, width, channels)",
            hint="scale to 0..255, round, and move the channels last",
        )
    images = images[..., None] if images.ndim == 3 else images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.uint8)


def _whole_numbers(path: Path, name: str, labels: NDArray[np.generic]) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {name} is {labels.dtype} of shape {labels.shape}; labels are whole numbers of shape (count,)"
        )
    return labels.astype(np.int64)


def _read_folder(path: Path, num_classes: int) -> LabelledImages:
    """``path/train/CLASS/*.png`` with ``path/test/`` (or ``val/``) like it, or ``path/CLASS/*.png`` alone.

    Classes are numbered in the order of their names. Without a part of its own to evaluate on, one image in eight is
    held out by a hash of its pixels, so that copies of an image are on one side.
    """
    parts = {folder.name: folder for folder in _subfolders(path)}
    val = next((parts[name] for name in ("test", "val", "validation") if name in parts), None)
    if "train" in parts and val is not None:
        classes = _classes(parts["train"], num_classes)
        unknown = sorted({folder.name for folder in _subfolders(val)} - set(classes))
        if unknown:
            raise DataError(f"{val} has the classes {', '.join(unknown[:_SHOWN])}, which {parts['train']} has not")
        train_images, train_labels = _read_classes(parts["train"], classes)
        val_images, val_labels = _read_classes(val, classes)
    else:
        classes = _classes(path, num_classes)
        images, labels = _read_classes(path, classes)
        held_out = np.array([hashlib.sha256(image.tobytes()).digest()[0] % _VALIDATION_SHARE == 0 for image in images])
        train_images, train_labels = images[~held_out], labels[~held_out]
        val_images, val_labels = images[held_out], labels[held_out]
    return LabelledImages(
        train_images=train_images, train_labels=train_labels, val_images=val_images, val_labels=val_labels
    )


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(path: Path, num_classes: int) -> list[str]:
    classes = [folder.name for folder in _subfolders(path)]
    if len(classes) != num_classes:
        shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        raise DataError(
            f"{path} has {len(classes)} class folders ({shown or 'no subfolder'}), and num_classes is {num_classes}",
            hint="make a subfolder for each class, with its images in it, and set num_classes to their number",
        )
    return classes


def _read_classes(path: Path, classes: list[str]) -> tuple[Images, NDArray[np.int64]]:
    images: list[Images] = []
    labels: list[int] = []
    first: Path | None = None
    for label, name in enumerate(classes):
        files = sorted(p for p in (path / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        for file in files:
            image = _read_image(file)
            if images and image.shape != images[0].shape:
                (_, height, width), (_, other_height, other_width) = image.shape, images[0].shape
                raise DataError(
                    f"images are of unequal size: {file} is {width}x{height}, {first} is {other_width}x{other_height}",
                    hint="bring all images to one size first",
                )
            first = first or file
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(f"{path} holds no images; looked for {', '.join(sorted(_SUFFIXES))} in its class folders")
    return np.stack(images), np.array(labels, np.int64)


def _read_image(file: Path) -> Images:
    """An image in three colours, (3, height, width)."""
    from PIL import Image  # matplotlib, which we depend on, depends on it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"{file} is no image that can be read: {error}", hint="remove it, or save it again") from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
