"""``compare``: what can be given, what is refused, what is said."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import told

import flops_fit
from flops_fit.cli import BAD_INPUT, GOOD
from flops_fit.fit import ScalingAnalysis
from flops_fit.laws import ParametricLaw
from flops_fit.result import Result

_LAW = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def table(gain: float, seed: int) -> pd.DataFrame:
    """Runs of a law whose loss at C is that of ``_LAW`` at ``gain`` C."""
    law = dataclasses.replace(_LAW, A=_LAW.A * gain ** (-0.34 / 2), B=_LAW.B * gain ** (-0.28 / 2))
    C = np.repeat(np.geomspace(1e17, 1e19, 5), 6)
    N = law.optimum(C)[0] * np.tile(np.geomspace(1 / 4, 4, 6), 5)
    loss = law.loss(N, C / (6 * N)) * np.exp(0.002 * np.random.default_rng(seed).standard_normal(C.size))
    return pd.DataFrame({"num_params": N, "num_tokens": C / (6 * N), "loss": loss})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved analyses, old/ and new/, and the table of the second."""
    folder = tmp_path_factory.mktemp("compare")
    for name, gain in (("old", 1.0), ("new", 2.0)):
        table(gain, len(name) + int(gain)).to_csv(folder / f"{name}.csv", index=False)
        flops_fit.analyze(folder / f"{name}.csv", n_bootstrap=100).analysis.save(folder / name)
    return folder


def saved(folder: Path, name: str, **changes: object) -> ScalingAnalysis:
    return dataclasses.replace(ScalingAnalysis.load(folder / name), **changes)  # type: ignore[arg-type]


def test_the_answer_is_a_sentence_and_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "compare", folder / "old", folder / "new" / "analysis.json", "--compute", "1e18")
    assert code == GOOD
    assert "at 1e+18 FLOPs new needs 2" in out or "at 1e+18 FLOPs new needs 1.9" in out
    assert "less compute than old for the same loss" in out
    assert "[data_unknown]" in out
    assert "loss of new [nats]" in out
    code, out, _ = told(capsys, "compare", folder / "old", folder / "new", "--json", "--names", "MHA", "GQA")
    answer = json.loads(out)
    assert (answer["schema_version"], answer["a"], answer["b"]) == (1, "MHA", "GQA")
    assert [row["extrapolated"] for row in answer["rows"]][-2:] == [True, True]
    gain = answer["rows"][2]["gain"]
    assert gain["low"] < 2 < gain["high"]


def test_a_figure_with_its_data_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "compare", folder / "old", folder / "new", "-o", tmp_path / "out")
    assert code == GOOD
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds == {".png", ".pdf", ".csv", ".json"}
    assert "comparison.png" in err
    drawn = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert (drawn["gain_low"] <= drawn["gain"]).all()
    assert drawn["extrapolated"].any()
    assert not drawn["extrapolated"].all()
    (tmp_path / "file").touch()
    code, _, err = told(capsys, "compare", folder / "old", folder / "new", "-o", tmp_path / "file")
    assert code == BAD_INPUT
    assert "cannot be written" in err


def test_whatever_holds_an_analysis_can_be_compared(folder: Path) -> None:
    loaded = ScalingAnalysis.load(folder / "old")
    by_value = flops_fit.compare(Result(loaded), loaded, compute_budgets=["1e18"])
    assert by_value.names == ("A", "B")
    assert by_value.rows[0].gain.value == pytest.approx(1, rel=0.01)
    fitted = flops_fit.compare(folder / "old.csv", table(1.0, 4), compute_budgets=[1e18], n_bootstrap=50)
    assert fitted.rows[0].gain.value == pytest.approx(1, rel=0.05)
    with pytest.raises(flops_fit.DataError, match="cannot be read"):
        flops_fit.compare(folder / "nowhere", folder / "old")
    with pytest.raises(flops_fit.FitError, match="much"):
        flops_fit.compare(folder / "old", folder / "new", compute_budgets=["much"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"loss_unit": "nats"}, {"loss_unit": "bpb"}, "is in nats, that of B in bpb"),
        ({"unit": "tokens"}, {"unit": "samples"}, "A counts tokens, B counts samples"),
        ({"data_fingerprint": "x"}, {"data_fingerprint": "y"}, "different data"),
    ],
)
def test_losses_that_are_not_the_same_thing_are_refused_unless_told(
    folder: Path, old: dict[str, str], new: dict[str, str], said: str
) -> None:
    a, b = saved(folder, "old", **old), saved(folder, "new", **new)
    with pytest.raises(flops_fit.FitError, match=said):
        flops_fit.compare(a, b)
    compared = flops_fit.compare(a, b, allow_mismatch=True)
    assert any(w.code == "mismatch" and said in w.message for w in compared.warnings)


def test_other_counts_of_parameters_or_compute_are_warned_of(folder: Path) -> None:
    counted = saved(folder, "new", n_convention="num_params_matmul", data_fingerprint="x")
    counted = dataclasses.replace(counted, rule=dataclasses.replace(counted.rule, k=9.0))
    compared = flops_fit.compare(saved(folder, "old", data_fingerprint="x"), counted, compute_budgets=[1e18])
    assert {w.code for w in compared.warnings} >= {"n_convention", "compute_rule"}
    assert not {w.code for w in compared.warnings} & {"data_unknown", "mismatch"}


def test_a_sweep_remembers_its_unit_and_data(folder: Path) -> None:
    runs = table(1.0, 0).assign(loss_unit="nats/token", data_fingerprint="abc")
    analysis = flops_fit.analyze(runs, n_bootstrap=0).analysis
    assert (analysis.loss_unit, analysis.data_fingerprint) == ("nats", "abc")
    mixed = runs.assign(data_fingerprint=np.where(np.arange(len(runs)) % 2, "abc", "def"))
    assert flops_fit.analyze(mixed, n_bootstrap=0).analysis.data_fingerprint is None
    assert math.isfinite(analysis.largest_budget)
