"""Labelled images for a sweep, augmented by draws that a resume repeats."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flops_fit.examples.image_files import CIFAR10_MD5, CIFAR10_URL, LabelledImages, download, read_images

logger = logging.getLogger(__name__)

Sample = tuple[Tensor, int]
_PADDING_SHARE = 8  # a shift of up to an eighth of the image: the usual 4 pixels of 32


class StoredImages(Dataset[Sample]):
    """Images as bytes, with their labels.

    With ``augment`` each reading draws a shift and a mirroring from Python's global generator: whoever seeds that for
    every sample, as flops-fit does, gets the same draws again.

    Args:
        images: Of shape (count, channels, height, width), uint8.
        labels: Of shape (count,).
        augment: Crop at random from the image with a black border, and mirror half of them left to right.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, augment: bool = False) -> None:
        self.labels: list[int] = labels.tolist()
        self.height, self.width = images.shape[-2:]
        self.border = self.height // _PADDING_SHARE if augment else 0
        self.augment = augment
        self.images = torch.nn.functional.pad(images, (self.border,) * 4) if augment else images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        if self.augment:
            top, left = random.randint(0, 2 * self.border), random.randint(0, 2 * self.border)
            image = image[:, top : top + self.height, left : left + self.width]
            if random.random() < 0.5:
                image = image.flip(-1)
        return image, self.labels[index]


class Normalise:
    """Samples as a batch: images (batch, channels, height, width) of zero mean and unit variance, and labels.

    Args:
        images: What mean and variance are those of.
    """

    def __init__(self, images: LabelledImages) -> None:
        levels = np.arange(256.0)
        # Of 256 levels there is a histogram, which needs no copy of the images as floats.
        counts = [
            np.bincount(images.train_images[:, c].ravel(), minlength=256) for c in range(images.train_images.shape[1])
        ]
        means = [np.average(levels, weights=count) for count in counts]
        stds = [np.average((levels - m) ** 2, weights=count) ** 0.5 for m, count in zip(means, counts, strict=True)]
        self.mean = torch.tensor(means, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(stds, dtype=torch.float32)[:, None, None].clamp(min=1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images).float().sub_(self.mean).div_(self.std), torch.tensor(labels)


class ImageData(pl.LightningDataModule):
    """CIFAR-10's archive, an ``.npz`` or a folder of class folders, as one set to train on and one to evaluate on.

    Args:
        path: ``cifar-10-binary.tar.gz``; an ``.npz`` with ``train_images`` (count, height, width[, channels]),
            ``train_labels``, ``test_images`` and ``test_labels``; or a folder with a subfolder of images for each
            class, or with two of these, ``train`` and ``test``.
        batch_size: Images an optimiser step, over all devices.
        num_classes: Classes; a label outside is an error.
        augment: Shift images at random by up to an eighth, and mirror half of them left to right.
        num_workers: Processes that read ahead; 0 to read in the training process.
        download: Fetch the archive from ``url`` where ``path`` does not exist.
        url: Where from: the data set's own page, unless a mirror is given.
        md5: What the fetched file must be.
    """

    def __init__(
        self,
        path: str = "cifar-10-binary.tar.gz",
        batch_size: int = 32,
        num_classes: int = 10,
        augment: bool = True,
        num_workers: int = 0,
        download: bool = False,
        url: str = CIFAR10_URL,
        md5: str = CIFAR10_MD5,
    ) -> None:
        super().__init__()
        self.path, self.batch_size, self.num_classes = Path(path), batch_size, num_classes
        self.augment, self.num_workers = augment, num_workers
        self.download, self.url, self.md5 = download, url, md5
        self._images: LabelledImages | None = None

    def prepare_data(self) -> None:
        """Fetch the archive where that was asked for and it is not there."""
        if self.download and not self.path.exists():
            logger.info("images: fetching %s to %s", self.url, self.path)
            download(self.url, self.path, self.md5)

    @property
    def images(self) -> LabelledImages:
        """Everything that was read, once.

        Raises:
            DataError: It cannot be read, or not be trained on.
        """
        if self._images is None:
            self._images = read_images(self.path, self.num_classes)
            logger.info(
                "images: %d to train on, %d to evaluate on, each %dx%dx%d",
                *(len(self._images.train_images), len(self._images.val_images), *self._images.train_images.shape[1:]),
            )
        return self._images

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Read and check the images, before anything is trained."""
        assert self.images is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all images and labels."""
        return self.images.digest()

    def train_dataloader(self) -> DataLoader[Sample]:
        """Images to train on, to be shuffled, augmented where that was asked for."""
        images, labels = torch.from_numpy(self.images.train_images), torch.from_numpy(self.images.train_labels)
        return DataLoader(
            StoredImages(images, labels, augment=self.augment),
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=Normalise(self.images),
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """The images to evaluate on as they are, for every run."""
        images, labels = torch.from_numpy(self.images.val_images), torch.from_numpy(self.images.val_labels)
        return DataLoader(StoredImages(images, labels), batch_size=256, collate_fn=Normalise(self.images))
