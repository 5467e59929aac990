"""The best rate by size: found where it is, refused where it is not."""

from __future__ import annotations

import json
import math

import pytest

from flops_fit.errors import FitError
from flops_fit.fit.rates import RateLaw, SizeProbe, fit_rate_law

LRS = (0.25, 0.5, 1.0, 2.0, 4.0)


def probe(best: float, num_params: int = 1000, lrs: tuple[float, ...] = LRS, diverges: float = math.inf) -> SizeProbe:
    losses = tuple(None if lr >= diverges else 2 + 0.1 * math.log(lr / best) ** 2 for lr in lrs)
    return SizeProbe(size=num_params, num_params=num_params, steps=100, lrs=lrs, losses=losses, flops=5e9)


@pytest.mark.parametrize("best", [0.36, 0.9, 1.0, 1.3, 2.8])
def test_a_parabola_is_found_between_the_rates_that_were_tried(best: float) -> None:
    assert probe(best).best_lr == pytest.approx(best, rel=1e-6)
    assert probe(best).further() == []


def test_a_divergence_beside_the_best_rate_brackets_it() -> None:
    found = probe(2.0, diverges=2.0)
    assert (found.best_lr, found.edge) == (1.0, 0)


def test_beyond_an_edge_more_is_tried() -> None:
    assert probe(0.1).further() == [0.0625, 0.125]
    assert probe(9.0).further() == [8.0, 16.0]
    assert probe(1.0, diverges=0.0).further() == [0.0625, 0.125], "all diverged"


def test_two_sizes_give_a_power_law_and_one_gives_its_rate_to_all() -> None:
    law = fit_rate_law([probe(0.5, 16_000), probe(2.0, 1000)], "abc")
    assert law.exponent == pytest.approx(0.5, abs=1e-3)
    assert [law.rate(N) for N in (1000, 16_000, 256_000)] == pytest.approx([2, 0.5, 0.125], rel=2e-3)
    assert law.flops == 1e10
    assert "2 (N / 1k)^-0.50" in str(law)
    assert any("up to N = 256k are extrapolated" in told for told in law.warnings([1000, 256_000]))
    assert law.warnings([1000, 64_000]) == []
    one = fit_rate_law([probe(0.7)], "abc")
    assert {one.rate(N) for N in (10, 1e6)} == {0.7}
    assert "0.7 for all sizes" in str(one)


def test_a_rate_that_grows_is_not_carried_beyond_what_was_seen() -> None:
    law = fit_rate_law([probe(0.5, 1000), probe(2.0, 16_000)], "abc")
    assert law.rate(1e9) == law.rate(16_000) == pytest.approx(2.0, rel=1e-3)
    assert "unusual" in law.warnings([16_000])[0]


def test_the_law_survives_its_file() -> None:
    law = fit_rate_law([probe(0.5, 16_000, diverges=4.0), probe(2.0, 1000)], "abc")
    assert RateLaw.from_dict(json.loads(json.dumps(law.to_dict()))) == law


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (probe(0.1), r"best rate of size 1000 \(0.25: 2.0840, .*\) is the lowest"),
        (probe(9.0), "is the highest of all"),
        (probe(1.0, diverges=0.0), "0.25: diverged, 0.5: diverged.* is the lowest"),
        (SizeProbe(size=3, num_params=9, steps=1, lrs=LRS, losses=(2.0,) * 5, flops=1.0), "ends the same whatever"),
    ],
    ids=["low", "high", "diverged", "flat"],
)
def test_what_decides_nothing_is_refused(bad: SizeProbe, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_rate_law([probe(0.5, 16_000), bad], "abc")
