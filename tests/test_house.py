"""The house keeps its plan: which module may import which, what stays light, how large a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flops_fit

PACKAGE = Path(flops_fit.__file__).parent

# Floors of the house; an import goes down, never up, and within a floor only along the arrows below.
FLOORS = [
    {"laws", "units", "errors", "markup", "redaction"},
    {"experiment", "shapes", "batch", "flops", "randomness", "transfer"},
    {"plan", "train", "sweep", "runs", "fit", "report"},
    {"api", "study", "rounds", "estimate", "trial", "simulation", "validation", "comparing", "coordinates", "result"}
    | {"suggestion", "next_run", "probe"},
    {"cli", "__main__"},
]
ARROWS = {
    ("train", "runs"),
    ("sweep", "runs"),
    ("report", "fit"),
    ("api", "study"),
    ("api", "rounds"),
    ("rounds", "study"),
    ("api", "result"),
    ("comparing", "api"),
    ("comparing", "result"),
    ("validation", "api"),
    ("validation", "study"),
    ("validation", "suggestion"),
    ("suggestion", "next_run"),
    ("result", "suggestion"),
    ("result", "next_run"),
    ("estimate", "study"),
    ("coordinates", "study"),
    ("probe", "study"),
    ("api", "probe"),
    ("trial", "study"),
    ("trial", "simulation"),
    ("simulation", "api"),
    ("simulation", "result"),
    ("__main__", "cli"),
    ("experiment", "errors"),
    ("shapes", "errors"),
    ("batch", "errors"),
    ("flops", "batch"),
}
LIGHT_BASE = ("laws", "units", "errors", "markup", "redaction")
TORCH_FREE = (*LIGHT_BASE, "experiment", "fit", "runs", "report", "simulation", "transfer")


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(("flops_fit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def _part(module: str) -> str:
    """The room, or the module beside the rooms, that a dotted name belongs to; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, lazily and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:  # `from flops_fit import laws` is flops_fit.laws
                submodule = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def _floor(part: str) -> int:
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def _is_allowed(importer: str, imported: str) -> bool:
    if importer == imported or not importer:
        return True  # within a room; and the package itself names everybody, lazily
    if not imported:
        return importer in ("cli", "__main__", "examples")  # for the version; for the public names, as anybody may
    if "examples" in (importer, imported):
        return False
    return (importer, imported) in ARROWS or _floor(imported) < _floor(importer)


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_go_down_the_house(path: Path) -> None:
    importer = _part(_module(path))
    ours = {name for name in _imports(path) if name.partition(".")[0] == "flops_fit"}
    wrong = sorted(name for name in ours if not _is_allowed(importer, _part(name)))
    assert not wrong, f"{_module(path)} must not import {', '.join(wrong)}; see docs/architecture.md"


def test_every_part_of_the_house_has_a_floor() -> None:
    parts = {_part(_module(path)) for path in _files()} - {"", "examples"}
    assert parts == set().union(*FLOORS)


@pytest.mark.parametrize("part", TORCH_FREE)
def test_the_light_parts_never_name_torch(part: str) -> None:
    heavy = {"torch", "lightning", "torchmetrics"}
    for path in _files():
        if _part(_module(path)) == part:
            named = {name.partition(".")[0] for name in _imports(path)}
            assert not named & heavy, f"{_module(path)} imports {named & heavy}"


def _loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_answers_load_neither_torch_nor_matplotlib() -> None:
    light = "flops_fit, flops_fit.fit, flops_fit.laws, flops_fit.units, flops_fit.experiment, flops_fit.runs.table"
    loaded = _loaded_by(f"import {light}, flops_fit.runs.foreign, flops_fit.api, flops_fit.__main__")
    assert not loaded & {"torch", "matplotlib", "lightning", "torchmetrics"}


def test_the_package_alone_loads_nothing() -> None:
    assert not _loaded_by("import flops_fit, flops_fit.__main__") & {"numpy", "pandas", "scipy", "torch", "matplotlib"}


def test_help_status_and_predict_load_no_more_than_they_need() -> None:
    """A third of a second has no room for scipy, which takes one, or pandas, which takes another."""
    heavy = {"torch", "lightning", "torchmetrics", "matplotlib", "pandas", "scipy"}
    helped = _loaded_by("from flops_fit.cli import main; main(['--help'])")
    assert not helped & (heavy | {"numpy"})
    answered = "import flops_fit.cli.status, flops_fit.cli.answers, flops_fit.api, flops_fit.fit.what_if"
    assert not _loaded_by(f"{answered}; from flops_fit.fit.store import _classes; _classes()") & heavy


def test_public_names_are_those_that_are_promised() -> None:
    assert flops_fit.__all__ == [
        "Comparison",
        "CoordinateCheck",
        "DataError",
        "Experiment",
        "FitError",
        "FlopsFitError",
        "LightningAdapter",
        "PlanError",
        "Prediction",
        "Result",
        "RunError",
        "ScalingAnalysis",
        "ScalingModule",
        "SweepPlan",
        "TokenBin",
        "analyze",
        "compare",
        "coordinate_check",
        "design_sweep",
        "find_optimal",
        "plan_sweep",
    ]
    assert set(flops_fit.__all__) <= set(dir(flops_fit))
    for name in flops_fit.__all__:
        assert getattr(flops_fit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'find_optimum'"):
        _ = flops_fit.find_optimum


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_no_file_outgrows_its_subject(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{_module(path)} has {lines} lines: look for the second subject"
    assert "util" not in path.stem, f"{path.name}: name a file by its subject"


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
