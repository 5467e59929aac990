"""Images are read as they were stored, from every form; what cannot be trained on is one clear message."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imagery import archive, arrays, batches, folder, npz, pixels, records

from flops_fit.errors import DataError
from flops_fit.examples.image_files import LabelledImages, download, read_images


def last(images: np.ndarray) -> np.ndarray:
    """Channels last, as they were before."""
    return images.transpose(0, 2, 3, 1)


def test_the_archive_is_read_record_by_record(tmp_path: Path) -> None:
    members = {"cifar-10-batches-bin/readme.html": b"<html>"} | dict(reversed(batches().items()))
    found = read_images(archive(tmp_path / "cifar-10-binary.tar.gz", members), 10)
    assert np.array_equal(last(found.train_images), np.concatenate([pixels(4, i, 32) for i in range(5)]))
    assert found.train_labels.tolist() == [0, 1, 2, 3] * 5
    assert np.array_equal(last(found.val_images), pixels(4, 5, 32))
    assert found.val_labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["colour", "grey", "grey with a channel"])
def test_an_npz_is_read_with_the_channels_moved(kind: str, tmp_path: Path) -> None:
    stored = arrays()
    if kind != "colour":
        for name in ("train_images", "test_images"):
            stored[name] = stored[name][..., 0] if kind == "grey" else stored[name][..., :1]
    found = read_images(npz(tmp_path / "images.npz", **stored), 10)
    assert np.array_equal(last(found.train_images).reshape(stored["train_images"].shape), stored["train_images"])
    assert found.train_images.shape[1] == (3 if kind == "colour" else 1)
    assert found.val_labels.tolist() == stored["test_labels"].tolist()


def test_a_folder_with_parts_is_read_class_by_class(tmp_path: Path) -> None:
    folder(tmp_path / "train", pixels(6))
    folder(tmp_path / "val", pixels(4, seed=1))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    found = read_images(tmp_path, 2)
    assert np.array_equal(last(found.train_images), pixels(6)[[0, 2, 4, 1, 3, 5]])
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(last(found.val_images), pixels(4, seed=1)[[0, 2, 1, 3]])


def test_a_folder_without_parts_holds_out_by_content(tmp_path: Path) -> None:
    images = pixels(120)
    images[100:] = images[:20]  # copies under other names
    found = read_images(folder(tmp_path / "images", images), 2)
    train, val = ({image.tobytes() for image in part} for part in (found.train_images, found.val_images))
    assert not train & val
    assert len(train | val) == 100
    assert 4 < len(val) < 30
    more = read_images(folder(tmp_path / "images", np.concatenate((images, pixels(40, seed=2)))), 2)
    assert val <= {image.tobytes() for image in more.val_images}


def test_two_readings_are_the_same_and_the_sides_are_disjoint(tmp_path: Path, corpora: Path) -> None:
    paths = {
        archive(tmp_path / "cifar-10-binary.tar.gz", batches(40)): 40,
        folder(tmp_path / "images", pixels(60)): 2,
        npz(tmp_path / "images.npz"): 10,
        corpora / "cifar10_subset.npz": 10,
    }
    for path, num_classes in paths.items():
        found = read_images(path, num_classes)
        assert found.digest() == read_images(path, num_classes).digest()
        train, val = ({image.tobytes() for image in part} for part in (found.train_images, found.val_images))
        assert not train & val, path


def test_every_image_and_label_is_in_the_digest() -> None:
    def digest(**changed: np.ndarray) -> str:
        images, labels = pixels(4).transpose(0, 3, 1, 2), np.arange(4)
        parts = {"train_images": images, "train_labels": labels, "val_images": images, "val_labels": labels}
        return LabelledImages(**parts | changed).digest()

    other = pixels(4).transpose(0, 3, 1, 2).copy()
    other[3, 2, 7, 7] ^= 1
    labels = np.array([0, 1, 2, 2])
    found = [digest(), *(digest(**{f"{part}_images": other}) for part in ("train", "val"))]
    found += [digest(**{f"{part}_labels": labels}) for part in ("train", "val")]
    assert len(set(found)) == len(found)


def truncated(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def python_version(path: Path) -> Path:
    """As cifar-10-python.tar.gz; the bytes are never looked at."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return archive(path, {f"cifar-10-batches-py/{name}": pickle.dumps({b"data": 1}) for name in names})


def with_member(path: Path, name: str, content: bytes) -> Path:
    return archive(path, batches() | {f"cifar-10-batches-bin/{name}": content})


def with_a_file(path: Path, name: str, content: bytes | np.ndarray) -> Path:
    folder(path, pixels(20))
    if isinstance(content, bytes):
        written(path / name, content)
    else:
        folder(path, content, classes=("dog",))
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p / "cifar-10-binary.tar.gz", "there are no images at .*cifar-10-binary.tar.gz"),
    "python version": (lambda p: python_version(p / "c.tar.gz"), "holds no data_batch_1.bin; .* is the Python version"),
    "another tar": (
        lambda p: archive(p / "c.tar.gz", {"a/b.txt": b"x"}),
        "holds no data_batch_1.bin; it holds a/b.txt",
    ),
    "a part of the tar": (
        lambda p: archive(p / "c.tar.gz", dict(list(batches().items())[:3])),
        "holds no data_batch_4.bin; it holds .*, ...",
    ),
    "no tar": (lambda p: written(p / "c.tar.gz", b"<html>not found</html>"), "is not an archive that can be read"),
    "cut short": (
        lambda p: truncated(archive(p / "c.tar.gz", batches(40))),
        "is cut short after .*data_batch_[1-5].bin",
    ),
    "no whole records": (
        lambda p: with_member(p / "c.tar.gz", "data_batch_2.bin", b"x" * 5000),
        "data_batch_2.bin has 5000 bytes, which is no whole number of records of 3073",
    ),
    "label outside": (
        lambda p: with_member(
            p / "c.tar.gz", "data_batch_2.bin", records(pixels(2, 0, 32), np.array([3, 10], np.uint8))
        ),
        r"1 of 18 training labels are not among the 10 classes 0 to 9; number 5 is 10",
    ),
    "npz cut short": (lambda p: truncated(npz(p / "i.npz")), "is cut short, or no .npz"),
    "npz without the end": (lambda p: truncated(npz(p / "i.npz"), 0.999), "is cut short, or no .npz"),
    "a picture as npz": (
        lambda p: written(p / "i.npz", b"GIF89a" + b"\0" * 100),
        "unpickled here|is cut short, or no .npz",
    ),
    "an empty file as npz": (lambda p: written(p / "i.npz", b""), "is cut short, or no .npz"),
    "npz without labels": (
        lambda p: npz(p / "i.npz", train_labels=None, test_labels=None, more=np.zeros(3)),
        "lacks train_labels, test_labels; it holds train_images, test_images, more",
    ),
    "pickled npz": (
        lambda p: npz(p / "i.npz", train_labels=np.array([{"label": 1}] * 40)),
        "holds Python objects or is damaged, and nothing is unpickled here",
    ),
    "a pickle as npz": (lambda p: written(p / "i.npz", pickle.dumps(arrays())), "nothing is unpickled here"),
    "npz label outside": (
        lambda p: npz(p / "i.npz", test_labels=np.full(10, 11)),
        "10 of 10 validation labels are not among the 10 classes 0 to 9; number 0 is 11",
    ),
    "npz label below": (lambda p: npz(p / "i.npz", train_labels=np.full(40, -1)), "number 0 is -1"),
    "labels as shares": (lambda p: npz(p / "i.npz", train_labels=np.zeros(40)), "train_labels is float64 of shape"),
    "fewer labels": (lambda p: npz(p / "i.npz", train_labels=np.zeros(39, int)), "40 training images and 39 labels"),
    "images as floats": (lambda p: npz(p / "i.npz", train_images=np.zeros((40, 8, 8, 3))), "train_images is float64"),
    "channels first": (
        lambda p: npz(p / "i.npz", train_images=np.zeros((40, 3, 8, 8), np.uint8)),
        r"train_images is uint8 of shape \(40, 3, 8, 8\)",
    ),
    "no images": (
        lambda p: npz(p / "i.npz", train_images=pixels(0), train_labels=np.zeros(0, int)),
        "holds no training images",
    ),
    "npz of two sizes": (
        lambda p: npz(p / "i.npz", test_images=pixels(10, 0, 6)),
        r"have the shape \(3, 8, 8\) .* those to evaluate on \(3, 6, 6\)",
    ),
    "folder of two sizes": (
        lambda p: with_a_file(p / "f", "", pixels(1, 0, 6)),
        r"images are of unequal size: .*dog.000.png is 6x6, .*cat.000.png is 8x8",
    ),
    "a text as image": (
        lambda p: with_a_file(p / "f", "dog/x.jpg", b"hello"),
        "dog.x.jpg is no image that can be read",
    ),
    "an image cut short": (
        lambda p: with_a_file(
            p / "f", "dog/x.png", (folder(p / "g", pixels(1, 0, 32)) / "cat/000.png").read_bytes()[:900]
        ),
        "dog.x.png is no image that can be read",
    ),
    "an empty folder": (lambda p: (p / "f").mkdir() or p / "f", r"has 0 class folders \(no subfolder\)"),
    "another number of classes": (
        lambda p: folder(p / "f", pixels(9), ("a", "b", "c")),
        "has 3 class folders .a, b, c.",
    ),
    "classes without images": (
        lambda p: [(p / "f" / name).mkdir(parents=True) for name in "ab"] and p / "f",
        "holds no images; looked for",
    ),
    "a class of its own": (
        lambda p: folder(p / "f/train", pixels(4)).parent if folder(p / "f/test", pixels(3), ("cat", "emu")) else p,
        "has the classes emu, which .*train has not",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_on_is_one_clear_message(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_images(path, 10 if path.suffix in (".npz", ".gz") else 2)
    assert str(tmp_path) in caught.value.problem
    assert "\n" not in caught.value.problem


def test_a_download_is_checked_and_put_in_its_place_whole(tmp_path: Path) -> None:
    source = archive(tmp_path / "source.tar.gz", batches())
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    target = tmp_path / "new" / "cifar-10-binary.tar.gz"
    download(source.as_uri(), target, md5)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_download_that_is_not_the_file_meant_leaves_nothing(tmp_path: Path) -> None:
    source = archive(tmp_path / "source.tar.gz", batches())
    target = tmp_path / "new" / "cifar-10-binary.tar.gz"
    with pytest.raises(DataError, match=r"has the MD5 .*, not 0000; it was not kept"):
        download(source.as_uri(), target, "0000")
    for url in ((tmp_path / "absent.tar.gz").as_uri(), "nonsense"):
        with pytest.raises(DataError, match="could not be fetched to"):
            download(url, target, "0000")
    assert not list(target.parent.iterdir())
