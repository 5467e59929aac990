"""What is believed before the money is spent: laws that may hold, forms that may hold instead, how runs scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from flops_fit.errors import PlanError
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray, ParametricLaw

# The surface of Besiroglu et al. (2024), arXiv:2404.10102, fitted to the runs of Hoffmann et al. (2022).
PUBLISHED: Final = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)

# How far an expected optimum may be off.
_MISPLACED: Final = 4.0

# How far exponents of one kind of model and data lie from those of another, and so from what is expected.
EXPONENT_SPREAD: Final = 0.15

# The generalised mean that Chinchilla's 240 runs prefer, and a power of D that drifts with log N (relative to itself),
# which they like as well: both explain those runs better than the surface does.
MEAN_POWER: Final = 0.8
DRIFT: Final = 0.027

# Probability that the surface is not the form.
DOUBT: Final = 0.1

# A family of draws is stood for by so many.
REPRESENTATIVES: Final = 9

# Published exponents lie between 0.05 and 0.8. Draws of a fit to few runs may lie anywhere; what they foretell of the
# target is then beyond what any design could mend, and would hide what it can.
_BELIEVABLE: Final = (0.05, 1.0)

# In place of an irreducible loss of zero, which has no logarithm [nats/token].
_LEAST_E: Final = 1e-9

# The best size is looked for within so many factors e of the surface's.
_REACH, _STEP = 6.0, 1e-3


class Surface(Protocol):
    """Anything that says what loss N parameters reach on D tokens."""

    def loss(self, N: ArrayLike, D: ArrayLike) -> FloatArray | float:
        """Loss [nats/token]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How the log losses of runs scatter around the law.

    Attributes:
        sigma: Standard deviation of a run's log loss at the largest budget.
        growth: It is ``sigma * (C / C_largest)**-growth`` at smaller ones.
        field: Standard deviation of a smooth discrepancy, shared by runs that are near each other: what small runs do
            differently from what the law says.
        length: Distance in ln N and ln D over which the discrepancy keeps its sign.
    """

    sigma: float = 0.003
    growth: float = 0.12
    field: float = 0.003
    length: float = float(np.log(30.0))

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.length > 0 and self.field >= 0 and np.isfinite(self.growth)):
            raise PlanError(f"{self} is no noise: sigma and length must be positive, field not negative")

    def covariance(self, N: FloatArray, D: FloatArray, C: FloatArray, C_largest: float) -> FloatArray:
        """Covariance of the log losses of runs at (N, D), which cost C; shape (runs, runs)."""
        x, z = (np.subtract.outer(np.log(v), np.log(v)) / self.length for v in (N, D))
        shared = self.field**2 * np.exp(-0.5 * (x**2 + z**2))
        return np.asarray(shared + np.diag((self.sigma * (C / C_largest) ** -self.growth) ** 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class BentLaw:
    """A surface of another form: E + ((A / N**alpha)**(1/g) + (B / D**beta(N))**(1/g))**g.

    Attributes:
        theta: (log size term, alpha, log data term, beta, log E) at ``center``, shape (5,).
        center: (log N, log D) around which theta is written.
        g: Power of the mean; 1 adds the terms, less lets the larger rule.
        drift: What beta gains when N grows by a factor e.
    """

    theta: FloatArray
    center: tuple[float, float]
    g: float = 1.0
    drift: float = 0.0

    def loss(self, N: ArrayLike, D: ArrayLike) -> FloatArray | float:
        """Loss of N parameters trained on D tokens [nats/token]."""
        return np.asarray(np.exp(self.log_loss(np.log(np.asarray(N, float)), np.log(np.asarray(D, float)))))

    def log_loss(self, log_N: FloatArray, log_D: FloatArray) -> FloatArray:
        a, alpha, b, beta, e = self.theta
        x, z = log_N - self.center[0], log_D - self.center[1]
        both = np.logaddexp((a - alpha * x) / self.g, (b - (beta + self.drift * x) * z) / self.g)
        return np.asarray(np.logaddexp(self.g * both, e))


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """A law that may hold.

    Attributes:
        name: What it is called in a plan.
        law: The surface, or, of another form, the surface nearest to it within the sweep.
        truth: The other form; None where the surface itself may hold.
        weight: How probable it is, beside the others' weights.
    """

    name: str
    law: ParametricLaw
    truth: Surface | None = None
    weight: float = 1.0

    def misfit(self, N: FloatArray, D: FloatArray) -> FloatArray:
        """Log loss less what the surface says, shape (runs,)."""
        if self.truth is None:
            return np.zeros(len(N))
        return np.asarray(np.log(self.truth.loss(N, D)) - np.log(self.law.loss(N, D)), float)

    def displacement(self, C: float, rule: ComputeRule = SIX_ND) -> FloatArray:
        """By how much log N_opt and log L_opt at C FLOPs differ from the surface's; shape (2,)."""
        if self.truth is None:
            return np.zeros(2)
        best, _ = self.law.optimum(C, rule)
        steps = np.arange(-_REACH, _REACH, _STEP)
        N = best * np.exp(steps)
        loss = np.asarray(self.truth.loss(N, rule.tokens(C, N)))
        i = int(np.argmin(loss))
        return np.array([steps[i], np.log(loss[i] / self.law.optimal_loss(C, rule))])


def laws_around(law: ParametricLaw, C: float, rule: ComputeRule = SIX_ND) -> list[ParametricLaw]:
    """The law, and four with other exponents that agree with it at the optimum of C FLOPs."""
    N, D = law.optimum(C, rule)
    laws = [law]
    for size in (1 - EXPONENT_SPREAD, 1 + EXPONENT_SPREAD):
        for data in (1 - EXPONENT_SPREAD, 1 + EXPONENT_SPREAD):
            alpha, beta = law.alpha * size, law.beta * data
            A, B = law.A * N ** (alpha - law.alpha), law.B * D ** (beta - law.beta)
            laws.append(ParametricLaw(E=law.E, A=A, B=B, alpha=alpha, beta=beta))
    return laws


def representatives(family: ParametricLaw, C: float, rule: ComputeRule = SIX_ND) -> list[ParametricLaw]:
    """A few laws that stand for a family, the middle one first: quantiles of the optimum at C FLOPs."""
    alpha, beta = (np.asarray(power, float) for power in (family.alpha, family.beta))
    low, high = _BELIEVABLE
    known = np.isfinite(np.log(np.asarray(family.optimum(C, rule)[0], float)))
    believable = known & (np.minimum(alpha, beta) >= low) & (np.maximum(alpha, beta) <= high)
    members = np.flatnonzero(believable if believable.any() else known)
    if not members.size:
        raise PlanError("no law of the family has an optimum", hint="fit more runs before planning from their draws")
    members = members[np.argsort(family[members].optimum(C, rule)[0], kind="stable")]
    places = np.unique(((np.arange(REPRESENTATIVES) + 0.5) / REPRESENTATIVES * members.size).astype(int))
    from_the_middle = sorted(places, key=lambda i: abs(i - members.size / 2))
    return [family[int(members[i])] for i in from_the_middle]


def moved_law(law: ParametricLaw, C: float, N: float, rule: ComputeRule = SIX_ND) -> ParametricLaw:
    """The law in other units of N and D, so that the best size for C FLOPs is N; losses at equal C stay."""
    N_law, D_law = law.optimum(C, rule)
    D = rule.tokens(C, N)
    A, B = law.A * (N / N_law) ** law.alpha, law.B * (D / D_law) ** law.beta
    return ParametricLaw(E=law.E, A=A, B=B, alpha=law.alpha, beta=law.beta)


def usual_laws(C: float, N: float, rule: ComputeRule = SIX_ND) -> list[ParametricLaw]:
    """What is believed of a model of which nothing is known but where its optimum is expected.

    The published law with its optimum for C FLOPs moved to N, four with other exponents, and two with the optimum a
    factor four off.
    """
    moved = [moved_law(PUBLISHED, C, N * factor, rule) for factor in (1.0, 1 / _MISPLACED, _MISPLACED)]
    return [*laws_around(moved[0], C, rule), *moved[1:]]


def rivals_of(law: ParametricLaw, N: FloatArray, D: FloatArray) -> dict[str, BentLaw]:
    """Other forms, each as near to the law as it can be at the points (N, D)."""
    return {
        "generalised mean": _bent(law, N, D, g=MEAN_POWER),
        "rising beta": _bent(law, N, D, drift=DRIFT * law.beta),
        "falling beta": _bent(law, N, D, drift=-DRIFT * law.beta),
    }


def _bent(law: ParametricLaw, N: FloatArray, D: FloatArray, *, g: float = 1.0, drift: float = 0.0) -> BentLaw:
    x, z = np.log(N), np.log(D)
    center = (float(x.mean()), float(z.mean()))
    start = np.log([law.A, 1.0, law.B, 1.0, max(law.E, _LEAST_E)])
    start[[0, 2]] -= law.alpha * center[0], law.beta * center[1]
    start[[1, 3]] = law.alpha, law.beta
    wanted = np.asarray(np.log(law.loss(N, D)))

    def residuals(theta: FloatArray) -> FloatArray:
        return np.asarray(BentLaw(theta=theta, center=center, g=g, drift=drift).log_loss(x, z) - wanted)

    found = least_squares(residuals, start, x_scale="jac", max_nfev=100)
    return BentLaw(theta=found.x, center=center, g=g, drift=drift)


def believe(
    laws: ParametricLaw | Sequence[ParametricLaw],
    N: ArrayLike,
    D: ArrayLike,
    *,
    target: float,
    rule: ComputeRule = SIX_ND,
    doubt: float = DOUBT,
) -> tuple[Belief, ...]:
    """Laws that may hold, and other forms near the first of them.

    Args:
        laws: One law, which stands for those with exponents within 15 % of its own; a family (draws of a fit); or
            several laws, each as probable as the next, the likeliest first.
        N: Parameters of the cells that may be trained.
        D: Their tokens.
        target: Where the answer is wanted [FLOPs].
        rule: What training costs.
        doubt: Probability that the form is another one; 0 takes the surface for certain.

    Raises:
        PlanError: There is no law, or the doubt is no probability.
    """
    N, D = np.asarray(N, float), np.asarray(D, float)
    if not 0 <= doubt < 1:
        raise PlanError(f"doubt={doubt} must be a probability below 1")
    if isinstance(laws, ParametricLaw):
        middle = float(np.exp(np.mean(np.log(rule.flops(N, D)))))
        laws = laws_around(laws, middle, rule) if np.ndim(laws.alpha) == 0 else representatives(laws, target, rule)
    if not laws:
        raise PlanError("no law is believed in", hint="give one, or several")
    share = (1 - doubt) / len(laws)
    beliefs = [Belief(name=f"surface {i}", law=law, weight=share) for i, law in enumerate(laws)]
    if doubt:
        rivals = rivals_of(laws[0], N, D)
        beliefs += [
            Belief(name=name, law=laws[0], truth=truth, weight=doubt / len(rivals)) for name, truth in rivals.items()
        ]
    return tuple(beliefs)
