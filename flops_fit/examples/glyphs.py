"""Images that need no download and never run out: letters and digits of the fonts that matplotlib brings, warped anew.

Not photographs, but images with classes that an error-free model could tell apart, as many as a sweep asks for.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flops_fit import DataError

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IMAGE_SIZE = 16  # [pixels]

_FONTS = (
    [f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")]
)
_MASTER_SIZE, _FONT_SIZE = 32, 23  # [pixels]

# Largest warps: enough that every image is new, not so much that classes blur.
_ROTATION, _STRETCH, _SHEAR, _SHIFT = 0.25, 0.2, 0.2, 0.1  # [radians], shares of the scale, and of half the image
_CONTRAST, _NOISE = 0.3, 0.15
_MEAN, _STD = 0.15, 0.35  # about those of the warped images

# Where the middle of each pixel lies, (pixels, 3): x, y and 1, from -1 to 1 across the image.
_AXIS = (torch.arange(IMAGE_SIZE) + 0.5) * 2 / IMAGE_SIZE - 1
_X, _Y = torch.meshgrid(_AXIS, _AXIS, indexing="xy")
_PLACES = torch.stack((_X, _Y, torch.ones_like(_X)), dim=-1).flatten(0, 1)

_VALIDATION = 2**63  # the key of the images to evaluate on, which no seed has


@cache
def masters() -> Tensor:
    """Every character in every font, (fonts * classes, 1, 32, 32) from 0 to 1; character by character within a font.

    Raises:
        DataError: matplotlib lacks one of the fonts.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont  # matplotlib, which we depend on, depends on it

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    drawn = []
    for name in _FONTS:
        try:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), _FONT_SIZE)
        except OSError as error:
            raise DataError(f"matplotlib brings no font {folder / name}.ttf: {error}") from None
        for character in CLASSES:
            image = Image.new("L", (_MASTER_SIZE, _MASTER_SIZE))
            middle = (_MASTER_SIZE / 2, _MASTER_SIZE / 2)
            ImageDraw.Draw(image).text(middle, character, fill=255, font=font, anchor="mm")
            drawn.append(np.asarray(image, np.float32) / 255)
    return torch.from_numpy(np.stack(drawn))[:, None]


class Glyphs(Dataset[tuple[Tensor, int]]):
    """Warped characters (1, 16, 16) with their classes; each a function of the seed and of its index, and of no other.

    Args:
        count: How many there are; one that is not read costs nothing.
        seed: Of what each is drawn from, below 2**63; None for the images to evaluate on.
    """

    def __init__(self, count: int, seed: int | None = 0) -> None:
        if count < 1 or not 0 <= (0 if seed is None else seed) < _VALIDATION:
            raise DataError(f"count={count} must be positive and seed={seed} from 0 to below 2**63")
        self.count, self.key = count, _VALIDATION if seed is None else seed
        self._masters = masters()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """A whole batch at once: the loader's own fast path."""
        uniform, noise = self._draws(indices)
        which = (uniform[:, 0] * len(self._masters)).astype(np.int64)
        warps = torch.from_numpy(_warps(2 * uniform[:, 1:7] - 1))
        grid = (_PLACES @ warps.mT).view(-1, IMAGE_SIZE, IMAGE_SIZE, 2)
        images = F.grid_sample(self._masters[which], grid, align_corners=False)
        contrast = torch.from_numpy(1 + _CONTRAST * (2 * uniform[:, 7] - 1)).view(-1, 1, 1, 1)
        images = (images * contrast + _NOISE * torch.from_numpy(noise) - _MEAN) / _STD
        return list(zip(images, (which % len(CLASSES)).tolist(), strict=True))

    def _draws(self, indices: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For each image 8 uniform numbers in [0, 1) and a normal one for each pixel."""
        bits = np.random.Philox(key=0)
        generator, state = np.random.Generator(bits), bits.state
        uniform = np.empty((len(indices), 8), np.float32)
        noise = np.empty((len(indices), 1, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        for row, index in enumerate(indices):
            # A generator that counts: (seed, index) is its key, and setting it is far cheaper than making a new one.
            state["state"]["key"][:] = self.key, index
            bits.state = state
            generator.random(out=uniform[row], dtype=np.float32)
            generator.standard_normal(out=noise[row], dtype=np.float32)
        return uniform, noise


def _warps(draws: NDArray[np.float32]) -> NDArray[np.float32]:
    """Affine maps from places in the image to places in the master, (count, 2, 3), of draws (count, 6) in [-1, 1)."""
    rotation, stretch_x, stretch_y, shear, shift_x, shift_y = draws.T
    cos, sin = np.cos(_ROTATION * rotation), np.sin(_ROTATION * rotation)
    stretch_x, stretch_y = 1 + _STRETCH * stretch_x, 1 + _STRETCH * stretch_y
    rows = [
        [cos * stretch_x, -sin * stretch_y + _SHEAR * shear, _SHIFT * shift_x],
        [sin * stretch_x, cos * stretch_y, _SHIFT * shift_y],
    ]
    return np.ascontiguousarray(np.array(rows, np.float32).transpose(2, 0, 1))


class GlyphData(pl.LightningDataModule):
    """Warped characters: as many to train on as a sweep asks for, and a fixed set to evaluate on.

    The outlines are the same everywhere; how they are rasterised depends, by very little, on the FreeType in use.

    Args:
        batch_size: Images an optimiser step, over all devices.
        count: Images in an epoch; a longer run would see them again.
        seed: Of the images to train on.
        val_count: Images to evaluate on.
    """

    def __init__(self, batch_size: int = 16, count: int = 2**20, seed: int = 0, val_count: int = 4096) -> None:
        super().__init__()
        self.batch_size, self.count, self.seed, self.val_count = batch_size, count, seed, val_count

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the characters before they are warped."""
        return hashlib.sha256(masters().numpy().tobytes()).hexdigest()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Images to train on; no two of an epoch are the same."""
        return DataLoader(Glyphs(self.count, self.seed), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The same images for every run and seed."""
        return DataLoader(Glyphs(self.val_count, None), batch_size=256)
