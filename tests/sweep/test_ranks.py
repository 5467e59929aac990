"""One process conducts a sweep, however many were started."""

from __future__ import annotations

import pytest

from flops_fit.sweep.ranks import is_extra_rank


@pytest.mark.parametrize(
    ("variables", "is_extra"),
    [
        ({}, False),
        ({"RANK": "1"}, False),  # left over from somewhere; nothing has started this command twice
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, False),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, True),
    ],
)
def test_only_the_first_conducts(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_extra: bool) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_extra_rank() is is_extra
