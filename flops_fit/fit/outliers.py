"""Runs that the others contradict: left out before fitting, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from flops_fit.errors import FitError
from flops_fit.fit.bootstrap import refit_weighted
from flops_fit.fit.parametric import fit_parametric
from flops_fit.laws import FloatArray, ParametricLaw

OutlierRule = Literal["surface", "iqr", "none"]

# Chance that a sweep with Gaussian noise loses a run, by Bonferroni's inequality on a linear law. Simulated on the real
# one (2,500 sweeps and scattered designs of 4 surfaces for each of 12 numbers of runs from 10 to 300, noise of 0.1 to
# 3 %), it was 0.1 to 0.6 %. A loss 5 % too high, where the noise is 0.3 %, is found in 53 % of sweeps of 10 runs, in
# 90 % of those of 12, and always from 21.
FALSE_ALARM: Final = 0.003

# With five parameters fitted, fewer runs cannot convict one of their number, and nonlinearity upsets the test.
FEWEST_RUNS: Final = 10

# When more stand out, the noise has heavy tails, and no run is to blame: the Huber loss and the bootstrap are for that.
LARGEST_SHARE: Final = 0.1


def find_outliers(N: ArrayLike, D: ArrayLike, L: ArrayLike, *, rule: OutlierRule = "surface") -> list[tuple[int, str]]:
    """Runs whose loss the others contradict.

    "surface" asks of each run whether the surface through the trusted others, fitted by least squares, predicts it: the
    prediction error over its standard error, leverage included, against Student's t at a level shared among all runs
    (externally studentised residuals). Several outliers can hide each other from such a test; it therefore starts from
    the nine tenths of the runs closest to a robust fit, and takes in or puts out runs until nothing changes, after Hadi
    & Simonoff (1993), "Procedures for the identification of multiple outliers in linear models". The limit grows as
    runs get fewer: 4.4 standard errors for 45 to 300 runs, 6 for 15, 12 for 10; below that none can be told apart.

    Args:
        N: Parameters of each run, shape (n,).
        D: Tokens, shape (n,).
        L: Losses [nats/token], shape (n,).
        rule: "surface"; "iqr" for residuals outside the quartiles by 1.5 interquartile ranges (which costs half of all
            clean sweeps a run or more); "none".

    Returns:
        Index and reason of each, by index.

    Raises:
        FitError: The runs cannot determine a surface.
    """
    if rule not in ("surface", "iqr", "none"):
        raise FitError(f"outliers={rule!r} is no rule", hint="choose 'surface', 'iqr' or 'none'")
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    if rule == "none" or (rule == "surface" and N.size < FEWEST_RUNS):
        return []
    fit = fit_parametric(N, D, L)
    if rule == "iqr":
        low, high = np.quantile(fit.residuals, [0.25, 0.75])
        reach = 1.5 * (high - low)
        outside = np.flatnonzero((fit.residuals < low - reach) | (fit.residuals > high + reach))
        return [(int(i), f"{_against(fit.residuals[i])}; more than 1.5 interquartile ranges out") for i in outside]

    most = max(1, int(LARGEST_SHARE * N.size))
    trusted = np.ones(N.size, bool)
    trusted[np.argsort(np.abs(fit.residuals))[-most:]] = False
    theta = fit.theta
    for round_ in range(40):
        test = _deletion_test(N, D, L, trusted, theta)
        theta = test.theta
        within = np.abs(test.t) <= test.limit
        # Two sets of runs may each condemn the other; after a while a run once trusted stays so.
        within |= trusted & (round_ >= 20)
        if np.array_equal(within, trusted):
            break
        trusted = within
    outside = np.flatnonzero(~trusted)
    if outside.size > most:
        return []
    return [
        (int(i), f"{_against(test.error[i])}: {abs(test.t[i]):.1f} standard errors, limit {test.limit[i]:.1f}")
        for i in outside
    ]


def _against(residual: float) -> str:
    side = "above" if residual > 0 else "below"
    return f"loss {abs(100 * np.expm1(residual)):.3g} % {side} the surface through the other runs"


@dataclass(frozen=True, slots=True)
class _DeletionTest:
    """Each run against the surface through the trusted others; arrays of shape (n,).

    Attributes:
        theta: Surface through the trusted runs, shape (5,).
        error: log L minus its prediction.
        t: That over its standard error, the run itself not being among those fitted.
        limit: What |t| may be.
    """

    theta: FloatArray
    error: FloatArray
    t: FloatArray
    limit: FloatArray


def _deletion_test(
    N: FloatArray, D: FloatArray, L: FloatArray, trusted: NDArray[np.bool_], start: FloatArray
) -> _DeletionTest:
    theta = refit_weighted(N, D, L, trusted[None].astype(float), start=start, huber_delta=None, loss_kind="log")[0]
    law = ParametricLaw.from_logs(theta)
    J = law.log_loss_gradient(N, D)
    # Centred: the raw derivatives are nearly collinear.
    J[:, 1] += np.log(N).mean() * J[:, 0]
    J[:, 3] += np.log(D).mean() * J[:, 2]
    error = np.log(L) - np.log(law.loss(N, D))
    inverse = np.linalg.pinv(J[trusted].T @ J[trusted], rcond=1e-12, hermitian=True)
    leverage = np.einsum("ni,ij,nj->n", J, inverse, J)
    # A trusted run has itself to be left out first: its error grows by 1 / (1 - leverage) and the sum of squares of
    # the others shrinks; both to first order (Cook & Weisberg 1982, section 2.2.1).
    kept = np.where(trusted, np.maximum(1 - leverage, 1e-9), 1.0)
    spread = np.where(trusted, kept, 1 + leverage)
    degrees = trusted.sum() - 5 - trusted
    rss = float(error[trusted] @ error[trusted])
    # First order can promise a perfect fit to the others; nothing fits better than losses are written.
    others = np.maximum(rss - trusted * error**2 / kept, 1e-3 * rss) + 1e-26
    t = error / np.sqrt(spread * others / np.maximum(degrees, 1))
    limit = stdtrit(np.maximum(degrees, 1), 1 - FALSE_ALARM / (2 * N.size))
    return _DeletionTest(theta, error, t, np.where(degrees >= 1, limit, np.inf))
