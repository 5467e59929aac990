"""What is known of the runs beside their losses, for the page and for figures of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit.fit.rates import RateLaw


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a sweep, or a table, says of its runs; each part may be missing.

    Attributes:
        name: Of the sweep, or of the table's file.
        command: How the report was started.
        config: The sweep's resolved YAML.
        plan: What ``plan.json`` holds.
        table: The runs table, with what training recorded.
        curves: Training curves: run_id, num_params, num_tokens, flops, loss.
        environments: What each run's ``env.json`` holds.
        mapping: Of a table: canonical column name to the table's own.
        notes: Of a table: what was assumed in reading it.
        rate_law: What a learning-rate probe has found.
    """

    name: str | None = None
    command: str | None = None
    config: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    environments: tuple[Mapping[str, Any], ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rate_law: RateLaw | None = None
