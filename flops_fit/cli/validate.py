"""``validate``: one run at the predicted optimum, against its forecast."""

from __future__ import annotations

import json
from pathlib import Path

from flops_fit.cli.main import GOOD, SOME_FAILED
from flops_fit.cli.words import amount, parser_of
from flops_fit.errors import FlopsFitError
from flops_fit.units import parse_flops


def validate(words: list[str]) -> int:
    """Train one run at the predicted optimum for a budget; predicted against measured."""
    parser = parser_of("validate")
    parser.add_argument("directory", help="a sweep's output_dir that `fit` has analysed")
    parser.add_argument("--compute", type=amount(parse_flops), required=True, help='such as 1e21 or "10 PF-days"')
    parser.add_argument("--strict", action="store_true", help="exit code 1 where the interval does not hold the loss")
    own = parser.parse_args(words)
    config = Path(own.directory) / "sweep.yaml"
    if not config.is_file():
        raise FlopsFitError(
            f"{own.directory} holds no sweep.yaml, from which its runs could be built",
            hint="give the output_dir of a sweep that `flops-fit fit --config` has finished",
        )
    from flops_fit.cli.config import SweepCLI
    from flops_fit.cli.sweep import progress_of, quiet_libraries
    from flops_fit.runs.directory import SweepDirectory
    from flops_fit.validation import validate as validated

    with quiet_libraries():
        cli = SweepCLI([config], ["--sweep.output_dir", str(own.directory)], "validate")
    directory = SweepDirectory(Path(own.directory))
    with progress_of(directory, cli.sweep.size_param, directory.plan["unit"]) as show, quiet_libraries():
        outcome = validated(cli.recipe, cli.sweep, own.compute, on_progress=show)
    print(json.dumps({"schema_version": 1} | outcome.to_dict()) if own.json else outcome)
    return SOME_FAILED if own.strict and outcome.is_inside is False else GOOD
