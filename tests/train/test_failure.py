"""What is kept of an exception: by its cause, runs are seen to have failed alike."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from flops_fit.errors import RunError
from flops_fit.runs.files import cannot_write
from flops_fit.train.failure import cause_of, failure_details


def raised(action) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError


def mistake(width: int) -> None:
    torch.ones(width) @ torch.ones(width + 1)


def test_the_cause_is_type_and_place_in_code_that_is_not_a_librarys() -> None:
    line = mistake.__code__.co_firstlineno + 1
    causes = {cause_of(raised(lambda width=width: mistake(width))) for width in (3, 5)}
    assert causes == {f"RuntimeError at {__file__}:{line}"}


def test_a_mistake_noticed_by_the_standard_library_was_made_by_its_caller() -> None:
    error = raised(lambda: json.loads("{"))
    assert cause_of(error) == f"JSONDecodeError at {__file__}:{error.__traceback__.tb_next.tb_lineno}"


def want_of_memory() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def explained() -> None:
    try:
        want_of_memory()
    except RuntimeError as error:
        raise RunError("out of memory with a micro-batch of 1 sample") from error


@pytest.mark.parametrize("action", [want_of_memory, explained])
def test_want_of_memory_is_nobodys_mistake(action) -> None:
    assert cause_of(raised(action)) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_is_nobodys_mistake(tmp_path, number: int) -> None:
    def write() -> None:
        disk = OSError(number, "what the system says")
        raise cannot_write(tmp_path / "last.ckpt", disk) from disk

    details = failure_details(raised(write))
    assert details["cause"] is None
    assert details["error"].startswith(f"{tmp_path / 'last.ckpt'} cannot be written: what the system says")
    assert "raise cannot_write" in details["traceback"]


def test_a_file_that_is_not_there_is_a_mistake(tmp_path) -> None:
    assert "FileNotFoundError at " in str(cause_of(raised((tmp_path / "shard.bin").read_bytes)))
