"""Small disks, full ones and read-only ones, for tests of what happens on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(*words: object) -> None:
    """Mount, or skip the test where that is not allowed."""
    try:
        subprocess.run(["mount", *map(str, words)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not permitted here: {getattr(error, 'stderr', error)}")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        unmount(folder)


def fill(disk: Path, leave: int = 0) -> None:
    """Leave so many bytes of a disk; ``ballast`` takes the rest."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        while (room := os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - leave) > 0:
            file.write(bytes(min(room, 1 << 20)))


def turn_read_only(folder: Path) -> None:
    """For whoever opens a file in it from now on; undone by ``unmount``."""
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)
