"""Ray, a real one on loopback: what waits for room, and what an interrupt does to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy
from launching import SLOW, prepared

from flops_fit.runs.directory import RunState
from flops_fit.sweep.config import RayOptions
from flops_fit.sweep.launchers.ray import RayLauncher

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_an_interrupt_saves_what_runs(ray_address: str, tmp_path: Path) -> None:
    jobs = prepared(tmp_path, **SLOW | {"sizes": [10, 12], "budgets": [3e7], "model_cls": toy.Slower})

    def interrupt() -> None:
        if jobs[0].run.checkpoint.exists() and jobs[0].run.state() is RunState.RUNNING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayLauncher(RayOptions(address=ray_address), 1).run(jobs, lambda _: False, interrupt)
    assert jobs[0].run.details()["state"] == "interrupted"
    assert "stopped at step" in jobs[0].run.details()["error"]
    assert jobs[1].run.state() is RunState.PENDING


def test_runs_that_no_machine_has_room_for_are_told_and_wait(
    ray_address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = prepared(tmp_path, budgets=[1e6], sizes=[4])

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayLauncher(RayOptions(address=ray_address), gpus=0.5).run(jobs, lambda _: False, give_up)
    assert "ray.gpus=0.5, and there are 0; waiting for it to grow" in caplog.text
    assert jobs[0].run.state() is RunState.PENDING
