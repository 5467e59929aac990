"""Stated intervals hold the truth as often as they say, under four kinds of noise (benchmarks/coverage.py in small)."""

import importlib.util
from pathlib import Path

import pytest
from sweeps import LAWS

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
_SPEC = importlib.util.spec_from_file_location("coverage_benchmark", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)

SWEEPS = 40


@pytest.mark.slow
@pytest.mark.parametrize("noise", benchmark.NOISES)
def test_intervals_cover_what_they_claim(noise):
    # Three binomial standard errors of 40 sweeps round the range that 200 sweeps must meet: 75 to 86 and 91 to 98 %.
    table = benchmark.coverage(LAWS["epoch"], noise, SWEEPS, draws=200, seed=11)
    for quantity in ("surface a", "predict N 10x", "predict N 100x"):
        assert 60 <= table.loc[quantity, "80"] <= 98
        assert table.loc[quantity, "95"] >= 82
    for quantity in ("predict L 10x", "predict L 100x"):
        assert table.loc[quantity, "80"] >= 60
        assert table.loc[quantity, "95"] >= 82
