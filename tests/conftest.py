"""What every test may use: published data sets, where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

# Tiny models gain nothing from threads, and lose much where the cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


@pytest.fixture(scope="session")
def published() -> Callable[[str], pd.DataFrame]:
    """Reads one of the published data sets, or skips the test."""
    folder = _folder("FLOPS_FIT_DATA", "data")

    def read(name: str) -> pd.DataFrame:
        if not (folder / name).is_file():
            pytest.skip(f"{name} is not in {folder}; set FLOPS_FIT_DATA to the folder that holds it")
        return pd.read_csv(folder / name)

    return read


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real texts and images, or a skip."""
    folder = _folder("FLOPS_FIT_CORPORA", "corpora")
    if not folder.is_dir():
        pytest.skip(f"no corpora in {folder}; set FLOPS_FIT_CORPORA to the folder that holds them")
    return folder
