"""An analysis on disk answers as before, and a damaged one says so."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from tables import generalised, sweep_table

from flops_fit.errors import DataError
from flops_fit.fit import ScalingAnalysis, analyze_runs


@pytest.fixture(scope="module")
def analysis():
    table = sweep_table(truth=generalised)
    return analyze_runs(table.assign(unique_tokens=table.num_tokens / 2), n_bootstrap=50)


@pytest.fixture
def folder(analysis, tmp_path):
    analysis.save(tmp_path)
    return tmp_path


def test_a_loaded_analysis_answers_as_before(analysis, folder):
    loaded = ScalingAnalysis.load(folder)
    for question in ({"compute_budget": 1e22}, {"params": 1e9}, {"loss": 2.3}):
        assert loaded.predict(**question) == analysis.predict(**question)
    assert loaded.to_dict() == analysis.to_dict()
    pd.testing.assert_frame_equal(loaded.runs, analysis.runs)
    assert loaded.warnings == analysis.warnings
    assert loaded.repetition is not None
    assert np.array_equal(loaded.draws, analysis.draws)


def test_an_analysis_without_surface_or_optima_survives_too(tmp_path):
    for table in (sweep_table(budgets=2, sizes=3), sweep_table(budgets=1, sizes=9)):
        found = analyze_runs(table, n_bootstrap=20) if len(table) == 6 else None
        if found is not None:
            found.save(tmp_path)
            assert ScalingAnalysis.load(tmp_path).predict(1e21) == found.predict(1e21)


def test_the_json_is_what_analyze_prints_and_strict(analysis, folder):
    document = json.loads((folder / "analysis.json").read_text(), parse_constant=pytest.fail)
    for key, value in analysis.to_dict().items():
        assert document[key] == value


def test_saving_again_replaces_whole_files_and_leaves_nothing_else(analysis, folder):
    analysis.save(folder)
    assert sorted(os.listdir(folder)) == ["analysis.json", "draws.npz"]


@pytest.mark.parametrize("method", ["surface", "combination"])
def test_a_loaded_analysis_predicts_without_pandas_and_scipy(analysis, tmp_path, method):
    found = analysis if method == "combination" else analyze_runs(sweep_table(), n_bootstrap=50)
    assert found.headline.method == method
    found.save(tmp_path)
    code = (
        "import sys; from flops_fit.fit import ScalingAnalysis;"
        f"print(ScalingAnalysis.load({str(tmp_path)!r}).predict(1e22)); print({{'pandas', 'scipy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "analysis.json").unlink(), "holds no analysis.json"),
        (lambda f: (f / "draws.npz").unlink(), "no saved analysis"),
        (lambda f: (f / "analysis.json").write_text((f / "analysis.json").read_text()[:1000]), "damaged"),
        (lambda f: (f / "analysis.json").write_text("[]"), "schema version"),
        (lambda f: (f / "draws.npz").write_bytes(b"PK"), "does not belong"),
    ],
)
def test_damage_is_told_in_one_message(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        ScalingAnalysis.load(folder)


def test_only_known_classes_are_built(folder):
    path = folder / "analysis.json"
    document = json.loads(path.read_text())
    document["state"]["class"] = "Popen"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="damaged"):
        ScalingAnalysis.load(folder)
