"""What a size means to the model: one argument, a row of a table of arguments, or a depth with its width."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from flops_fit.errors import PlanError

_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """A width that follows the size parameter, which is then a depth.

    Attributes:
        param: The network's argument for its width, such as d_model.
        aspect_ratio: Width for each layer.
        head_dim: The width is a multiple of this, the nearest to the aspect ratio.
    """

    param: str
    aspect_ratio: float = 64.0
    head_dim: int = 64

    def __post_init__(self) -> None:
        if not self.aspect_ratio > 0 or self.head_dim < 1:
            raise PlanError(f"width: aspect_ratio={self.aspect_ratio} and head_dim={self.head_dim} must be positive")

    def width(self, depth: int) -> int:
        """The width at a depth, one head at least."""
        return self.head_dim * max(1, round(self.aspect_ratio * depth / self.head_dim))


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """From a size, which is a whole number, to the model's arguments.

    Attributes:
        size_param: Name of the size parameter.
        sizes: Its values, where they are given.
        table: Rows of arguments, all of the same names; the size of a row is its value of the size parameter where
            that tells the rows apart, else its place, from one on.
        width: The width that goes with each size, or None.
    """

    size_param: str
    sizes: Sequence[int] | None = None
    table: Sequence[Mapping[str, Any]] | None = None
    width: WidthRule | None = None

    def __post_init__(self) -> None:
        if self.width is not None and (self.table is not None or self.width.param == self.size_param):
            raise PlanError(
                f"width.param={self.width.param!r} follows {self.size_param}, so it can neither be that nor stand"
                " beside a table of sizes",
                hint="let size_param be the depth, such as n_layer, and leave the widths out of sizes",
            )
        if self.table is None:
            return
        bad = [i for i, row in enumerate(self.table) if not isinstance(row, Mapping) or not row]
        uneven = [i for i, row in enumerate(self.table) if i not in bad and set(row) != set(self.table[0])]
        if bad or uneven:
            what = f"sizes[{(bad + uneven)[0]}]={self.table[(bad + uneven)[0]]!r}"
            raise PlanError(
                f"{what}: a table of sizes has the same arguments in every row",
                hint="write sizes as whole numbers, or as rows such as {d_model: 64, n_layer: 2}",
            )

    @property
    def values(self) -> Sequence[int] | None:
        """The sizes that were given, in their order; None where they are to be found."""
        if self.table is None:
            return self.sizes
        own = [row.get(self.size_param) for row in self.table]
        whole = [int(v) for v in own if isinstance(v, Integral) and not isinstance(v, bool) and int(v) > 0]
        if len(set(whole)) == len(self.table):
            return whole
        return list(range(1, len(self.table) + 1))

    @property
    def names(self) -> list[str]:
        """The arguments that a size sets."""
        if self.table:
            return list(self.table[0])
        return [self.size_param] if self.width is None else [self.size_param, self.width.param]

    def extra(self, size: int) -> dict[str, Any] | None:
        """All arguments of a size; None where it is the size parameter alone."""
        if self.table is not None:
            values = self.values
            assert values is not None
            return dict(self.table[values.index(size)])
        return None if self.width is None else {self.size_param: size, self.width.param: self.width.width(size)}

    def arguments(self, size: int) -> dict[str, Any]:
        """What the model is built with at a size."""
        extra = self.extra(size)
        return {self.size_param: size} if extra is None else extra

    def name(self, size: int) -> str:
        """The size in the name of a run: what it is built with, so that a row that changes is another run."""
        text = "_".join(f"{k}{_plain(v)}" for k, v in self.arguments(size).items())
        if len(text) <= _LONGEST_NAME and re.fullmatch(r"[A-Za-z0-9._+-]+", text):
            return text
        content = json.dumps(self.arguments(size), sort_keys=True, default=str)
        return f"size{size}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, (int, float, str)) else "?"


def shapes_of(
    size_param: str,
    sizes: Sequence[int] | Sequence[Mapping[str, Any]] | None,
    width: WidthRule | Mapping[str, Any] | None = None,
) -> Shapes:
    """Shapes from what the user gave as sizes.

    Raises:
        PlanError: A table has rows of different arguments, or the width's rule is no such rule.
    """
    if isinstance(width, Mapping):
        try:
            width = WidthRule(**width)
        except TypeError as error:
            keys = ", ".join(WidthRule.__dataclass_fields__)
            raise PlanError(f"width: {error}", hint=f"its keys are {keys}") from None
    rows = [_plain_row(row) if isinstance(row, Mapping) else row for row in ([] if sizes is None else sizes)]
    if not any(isinstance(row, Mapping) for row in rows):
        plain: Any = sizes
        return Shapes(size_param=size_param, sizes=plain, width=width)
    table: Any = rows
    return Shapes(size_param=size_param, table=table, width=width)


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON holds it, since other processes read it."""
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
    try:
        same = json.loads(json.dumps(plain)) == plain
    except TypeError:
        same = False
    if not same:
        raise PlanError(
            f"sizes: {dict(row)!r} holds more than plain values", hint="use numbers, text, lists and mappings"
        )
    return plain
