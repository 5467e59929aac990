"""The scripts in examples/ do what their first lines say; budgets are cut so that they do it in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# A user's model of each kind, from Python: what is cut in the script, and how many runs are left.
SCRIPTS = {
    "mlp_regressor": (
        {
            "compute_budgets=[3e8, 1e9, 3e9]": "compute_budgets=[2.2e7, 6e7]",
            "sizes=[12, 16, 24, 36, 52, 80]": "sizes=[8, 12, 16, 24]",
            "count: int = 400_000": "count: int = 40_000",
        },
        8,
    ),
    "hf_causal_lm": (
        {
            "compute_budgets=[1e10, 2e10, 4e10]": "compute_budgets=[2e9, 4e9]",
            "batch_size: int = 8": "batch_size: int = 2",
            '"hidden_size": 16, "num_hidden_layers": 1': '"hidden_size": 8, "num_hidden_layers": 1',
            '"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2': (
                '"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1'
            ),
            '"hidden_size": 32, "num_hidden_layers": 2': '"hidden_size": 16, "num_hidden_layers": 1',
            '            {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3},\n': "",
        },
        6,
    ),
    "lightning_module": (
        {
            "compute_budgets=[3e9, 1e10, 3e10]": "compute_budgets=[6e9, 1.2e10]",
            "sizes=[8, 12, 16, 24, 32]": "sizes=[4, 6, 8]",
        },
        6,
    ),
    "token_stream": (
        {
            "compute_budgets=[3e9, 1e10, 3e10]": "compute_budgets=[1e9, 2e9]",
            "sizes=[8, 12, 16, 24, 32]": "sizes=[4, 6, 8]",
        },
        6,
    ),
    "token_bin": (
        {
            "compute_budgets=[3e9, 1e10, 3e10]": "compute_budgets=[1e9, 2e9]",
            "sizes=[8, 12, 16, 24, 32]": "sizes=[4, 6, 8]",
        },
        6,
    ),
    "gpt_tinystories": (
        {
            "compute_budgets=[2e10, 6e10, 2e11, 6e11]": "compute_budgets=[1.5e9, 3e9]",
            "num_sizes_per_budget=5,": "sizes=[4, 6, 8],",
            "size_multiple=8,": "",
        },
        6,
    ),
}
# The same from YAML: what the command line says otherwise.
CONFIGS = {
    "mlp_regressor": ({"compute_budgets": "[2.2e7, 6e7]", "sizes": "[8, 12, 16, 24]"}, {"count": "40000"}, 8),
    "hf_causal_lm": (
        {
            "compute_budgets": "[2e9, 4e9]",
            "sizes": "[{hidden_size: 8, num_attention_heads: 1}, {hidden_size: 12, num_attention_heads: 1},"
            " {hidden_size: 16, num_attention_heads: 2}]",
        },
        {"batch_size": "2"},
        6,
    ),
    "lightning_module": ({"compute_budgets": "[1.5e9, 3e9]", "sizes": "[4, 6, 8]"}, {}, 6),
    "token_stream": ({"compute_budgets": "[1e9, 2e9]", "sizes": "[4, 6, 8]"}, {}, 6),
    "token_bin": ({"compute_budgets": "[1e9, 2e9]", "sizes": "[4, 6, 8]"}, {}, 6),
    "nadam_gpt": ({"compute_budgets": "[1e9, 2e9]", "sizes": "[4, 8, 12]"}, {}, 6),
}


def need(name: str) -> None:
    for package in ("datasets", "transformers") if name == "hf_causal_lm" else ():
        pytest.importorskip(package)


def results(sweep: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sweep.glob("runs/*/result.json")]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_an_answer(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    need(name)
    cuts, runs = SCRIPTS[name]
    text = (EXAMPLES / f"{name}.py").read_text()
    for whole, cut in cuts.items():
        assert whole in text
        text = text.replace(whole, cut)
    script = tmp_path / f"{name}.py"
    script.write_text(text)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if name == "gpt_tinystories":
        environment["TEXT"] = str(request.getfixturevalue("corpora") / "tinyshakespeare.txt")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "tokens_per_param" in done.stdout
    sweep = tmp_path / "outputs" / name
    assert (sweep / "analysis.json").exists()
    found = results(sweep)
    planned = json.loads((sweep / "plan.json").read_text())["num_experiments"]
    assert len(found) == planned
    assert planned >= runs
    if name in ("token_bin", "gpt_tinystories"):  # a token of these is a byte
        assert all(run["bits_per_byte"] == pytest.approx(run["bits_per_token"], rel=1e-3) for run in found)
    if name == "lightning_module":
        assert all(0.1 < run["metrics"]["val_accuracy"] < 1 for run in found)
        assert {run["optimizer"] for run in found} == {"RAdam"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_finds_an_answer(tmp_path: Path, name: str) -> None:
    need(name)
    sweep, data, runs = CONFIGS[name]
    if name == "token_bin":
        make = f"import sys; sys.path[:0] = [{str(EXAMPLES)!r}]; import token_bin; token_bin.write_tokens()"
        subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "flops_fit", "fit", "--config", str(EXAMPLES / f"{name}.yaml")]
    for group, options in (("sweep", sweep | {"output_dir": "out"}), ("data.init_args", data)):
        command += [word for key, value in options.items() for word in (f"--{group}.{key}", value)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert len(found) == runs
    if name == "nadam_gpt":
        assert all(0 < run["metrics"]["accuracy"] < 1 for run in found)
        assert "accuracy" in (tmp_path / "out" / "runs.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_a_command_line_of_ones_own_round_find_optimal(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "cli_wrapper.py"), "3e7", "9e7", "--samples", "40000"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)

    planned = run("--plan")
    assert planned.returncode == 0, planned.stderr
    assert "num_tokens" in planned.stdout
    assert not (tmp_path / "outputs").exists()
    done = run("--width", "8", "12", "16", "24", "--target", "1e9")
    assert done.returncode == 1, done.stderr  # two budgets are too few to be trusted
    assert (tmp_path / "outputs" / "cli_wrapper" / "report" / "report.html").is_file()
    wrong = run("--width", "0")
    assert wrong.returncode == 2
    assert "positive whole numbers" in wrong.stderr
    assert "Traceback" not in wrong.stderr
