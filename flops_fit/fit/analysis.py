"""What a sweep says about compute-optimal training: the ScalingAnalysis, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.errors import FitError
from flops_fit.fit.prediction import Prediction, Warning_
from flops_fit.fit.rows import Excluded, Rows
from flops_fit.laws import ComputeRule, FloatArray
from flops_fit.units import format_flops

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit.fit.combine import Combination
    from flops_fit.fit.envelope import EnvelopeFit
    from flops_fit.fit.frontier import FrontierFit
    from flops_fit.fit.holdout import HoldOut
    from flops_fit.fit.isoflop import IsoflopFit
    from flops_fit.fit.leave_out import LeftOut
    from flops_fit.fit.misfit import Misfit
    from flops_fit.fit.noise import LackOfFit, Noise
    from flops_fit.fit.parametric import ParametricFit
    from flops_fit.fit.repeated import RepetitionFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """Which method answers.

    Attributes:
        method: "surface", or "combination" of all candidates.
        why: One sentence.
    """

    method: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ScalingAnalysis:
    """What the runs say about compute-optimal training.

    Attributes:
        rows: The runs that were fitted.
        excluded: The others, each with its reason.
        rule: What training costs.
        parametric: The fitted surface, or None.
        isoflop: The parabolas and their power laws, or None.
        frontier: L_opt(C) = l_inf + k C**-gamma through the budgets' optima, or None.
        envelope: Lower envelope of training curves, or None where none were given.
        misfit: What the surface leaves unexplained, or None.
        holdout: How well hidden budgets are foretold by the smaller ones, or None.
        headline: Which method answers, and why.
        combination: Every candidate with what speaks for it; gives the answers.
        leave_one_out: The surface without each budget and each size.
        repetition: What repeated data are worth, or None where no run repeats them.
        noise: Scatter between runs that differ in their seed alone; None without such runs.
        lack_of_fit: Whether the surface misses cells by more than that, or None.
        ci: 95 % intervals, by group ("parametric", "N_opt", "D_opt", "L_opt") and name.
        missing: Why a method that is None is None, by method.
        warnings: What the reader must know.
        n_convention: The column that counts parameters.
        unit: What num_tokens counts.
        priors: The named priors that were used, or empty.
        loss_unit: What the loss is measured in, such as "nats" or "bpb"; None where the table does not say.
        data_fingerprint: Of the training and held-out data, the same for every run; None where it is not known.
    """

    rows: Rows
    excluded: tuple[Excluded, ...]
    rule: ComputeRule
    parametric: ParametricFit | None
    isoflop: IsoflopFit | None
    frontier: FrontierFit | None
    envelope: EnvelopeFit | None
    misfit: Misfit | None
    holdout: HoldOut | None
    headline: Headline
    combination: Combination
    ci: Mapping[str, Mapping[str, tuple[float, float]]]
    leave_one_out: tuple[LeftOut, ...] = ()
    repetition: RepetitionFit | None = None
    noise: Noise | None = None
    lack_of_fit: LackOfFit | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Warning_, ...] = ()
    n_convention: str = "num_params"
    unit: str = "tokens"
    priors: Mapping[str, Any] = field(default_factory=dict)
    loss_unit: str | None = None
    data_fingerprint: str | None = None

    def __repr__(self) -> str:
        reach = f"up to {format_flops(self.largest_budget)} FLOPs"
        return f"<ScalingAnalysis of {self.n_runs} runs {reach}, answered by {self.headline.method}>"

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that were fitted, one row each."""
        import pandas as pd

        r = self.rows
        columns = {"num_params": r.N, "num_tokens": r.D, "flops": r.C, "loss": r.L}
        return pd.DataFrame({"run_id": r.run_id, "compute_budget": r.budget} | columns)

    @property
    def n_runs(self) -> int:
        """How many runs were fitted."""
        return len(self.rows)

    @property
    def largest_budget(self) -> float:
        """Compute of the largest budget, or run, that was trained [FLOPs]."""
        return self.combination.largest_budget

    @property
    def draws(self) -> FloatArray | None:
        """Draws of the surface's (log A, alpha, log B, beta, log E), shape (draws, 5); None without a surface."""
        from flops_fit.fit.forms import SURFACE, SurfaceForm

        form = self.combination.forms.get(SURFACE)
        return form.theta[1:, :5] if isinstance(form, SurfaceForm) else None

    @property
    def trustworthy(self) -> bool:
        """Whether no warning is grave: the fit converged inside its bounds, and the methods and the hold-out agree."""
        from flops_fit.fit.diagnostics import is_trustworthy

        return is_trustworthy(self)

    def predict(
        self,
        compute_budget: float | None = None,
        *,
        params: float | None = None,
        tokens: float | None = None,
        loss: float | None = None,
        level: float = 0.95,
    ) -> Prediction:
        """Answer one question, with intervals.

        Args:
            compute_budget: What are the best model, its data and its loss for a budget [FLOPs]?
            params: For which budget is a size the best [parameters]? With ``tokens``: what loss will that run reach?
            tokens: For which budget is an amount of data the best [tokens or samples]?
            loss: Which budget reaches a loss [nats/token]?
            level: Coverage of the intervals.

        Raises:
            FitError: None or several of them are given, a value is not positive, or nothing reaches it.
        """
        from flops_fit.fit.answers import for_compute, for_run, for_target

        if not 0 < level < 1:
            raise FitError(f"level={level!r} must lie between 0 and 1")
        if params is not None and tokens is not None and compute_budget is None and loss is None:
            return for_run(self, params, tokens, level)
        given = {"compute_budget": compute_budget, "num_params": params, "num_tokens": tokens, "loss": loss}
        asked = [(name, value) for name, value in given.items() if value is not None]
        if len(asked) != 1:
            raise FitError(
                f"{len(asked)} quantities are given; predict answers for one of compute_budget, params, tokens or loss",
                hint="params and tokens together ask for the loss of that run",
            )
        name, value = asked[0]
        return for_compute(self, value, level) if name == "compute_budget" else for_target(self, name, value, level)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``analyze --json`` prints them."""
        from flops_fit.fit.summary import summarise

        return summarise(self)

    def save(self, folder: str | Path) -> None:
        """Write ``analysis.json`` and ``draws.npz`` into a folder, each replaced as a whole."""
        from flops_fit.fit.store import save_analysis

        save_analysis(self, Path(folder))

    @staticmethod
    def load(source: str | Path) -> ScalingAnalysis:
        """Read what ``save`` wrote, given the folder or its ``analysis.json``: it answers as before, without a refit.

        Raises:
            DataError: The files are missing, damaged or of another schema.
        """
        from flops_fit.fit.store import load_analysis

        return load_analysis(Path(source))
