"""Mutate real runs tables for a while; the reader must end in a table or in an error of ours.

    python benchmarks/fuzz_reader.py SECONDS [FOLDER_OF_TABLES] [--seed 0]

Prints the number of inputs, how they ended, and the slowest; exit code 1 if any other exception, an unsound
number or an input that took more than five seconds of CPU was seen (the input is kept in the working directory).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from flops_fit.errors import FlopsFitError
from flops_fit.runs.foreign import read_table

TOKENS = [
    *(
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "",
        " ",
        "1e999",
        "-0.0",
        "1e-320",
        "=cmd()",
        "+1+cmd|' /C calc'!A0",
        "@x(",
        "1,5",
    ),
    *(
        "1.3B",
        "20B tokens",
        "10 PF-days",
        "3 parsecs",
        "٣",
        "１２",
        "ﷺ",
        "\u2028",
        "\x0b",
        "\ufeff",
        "\0",
        '"',
        '""',
        "'",
    ),
    *(
        "true",
        "null",
        "None",
        "[]",
        "{}",
        "[[[[",
        "9" * 400,
        "x" * 200_000,
        "1_000",
        "0x10",
        "1e",
        "e5",
        "--",
        "#",
        "\r",
    ),
    *(",", ";", "\t", "|", "\n", ",,,,", "\n\n", "loss", "N", "D", "state", "diverged", "bpb", "(B)", "tokens (B)"),
]
OPTIONS = [
    {},
    {},
    {},
    {"loss_unit": "bits"},
    {"loss_unit": "bpb", "bytes_per_token": 4.2},
    {"n_convention": "total"},
    {"n_convention": "non_embedding"},
    {"columns": {"loss": "raw_loss"}},
    {"columns": {"run_id": "family"}},
    {"columns": {"state": "family", "seed": "lr"}},
]


def seeds(folder: Path) -> list[bytes]:
    """Small real tables in every format."""
    tables = [pd.read_csv(path).sample(40, random_state=0) for path in sorted(folder.glob("*.csv"))]
    tables += [t.assign(state="finished", seed=0, loss_unit="nats") for t in tables[:2]]
    tables += [t.assign(num_params=[f"{n / 1e6:.3f}M" for n in t["num_params"]]) for t in tables[:2]]
    contents = []
    for table in tables:
        records = table.to_dict(orient="records")
        text = table.to_csv(index=False)
        contents += [
            text.encode(),
            text.replace(",", "\t").encode(),
            table.to_csv(index=False, sep=";", decimal=",").encode(),
            table.to_csv(index=False, quoting=1).encode("utf-16"),
            json.dumps(records).encode(),
            json.dumps({"runs": records}).encode(),
            table.to_json().encode(),
            "\n".join(map(json.dumps, records)).encode(),
        ]
    return contents


def mutate(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A few random edits."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8, 30])):
        at, kind = rng.randrange(len(content) + 1), rng.randrange(10)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + rng.randbytes(rng.choice([1, 4, 40])) + content[at:]
        elif kind == 2:
            content = content[:at] + content[at + rng.choice([1, 1, 5, 50, 500]) :]
        elif kind == 3:
            other = rng.choice(others)
            content = content[:at] + other[rng.randrange(len(other)) :]
        elif kind == 4:
            end = at + rng.randrange(200)
            content = content[:at] + content[at:end] * rng.choice([2, 3, 50]) + content[end:]
        elif kind == 5 and content:
            flipped = bytearray(content)
            flipped[at % len(flipped)] ^= 1 << rng.randrange(8)
            content = bytes(flipped)
        elif kind == 6:
            lines = content.split(b"\n")
            rng.shuffle(lines)
            content = b"\n".join(lines)
        else:
            # One whole cell replaced, which survives the parsers and reaches the meaning.
            left = max(content.rfind(c, 0, at) for c in (b",", b"\n", b"\t", b";", b":"))
            right = min((i for c in (b",", b"\n", b"\t", b";", b"}") if (i := content.find(c, at)) >= 0), default=at)
            content = content[: left + 1] + rng.choice(TOKENS).encode() + content[right:]
        content = content[:2_000_000]
    return gzip.compress(content) if rng.random() < 0.05 else content


def mutated_frame(frame: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    """A frame with cells, names or types no file can hold."""
    frame = frame.sample(frac=1, random_state=rng.randrange(1 << 30)).copy()
    things = [None, pd.NA, pd.NaT, True, 1j, [1], {"a": 1}, "1.3B", float("inf"), 10**400, b"x", object, np.float32(2)]
    for _ in range(rng.choice([1, 2, 5])):
        column = rng.choice(list(frame.columns))
        kind = rng.randrange(6)
        if kind == 0:
            frame = frame.rename(columns={column: rng.choice(["loss", "N", 3, None, ("a", "b"), "x" * 999, "=x", ""])})
        elif kind == 1:
            frame[column] = frame[column].astype("category")
        elif kind == 2:
            frame[column] = pd.array(frame[column], dtype="string")
        elif kind == 3:
            frame = frame.set_index(column)
        elif kind == 4:
            frame[column] = pd.to_datetime(range(len(frame)), unit="s")
        else:
            cells = list(frame[column])
            cells[rng.randrange(len(cells))] = rng.choice(things)
            frame[column] = pd.Series(cells, index=frame.index, dtype=object)
        if not len(frame.columns):
            break
    return frame


def main() -> int:
    """Fuzz for the time asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    default = os.environ.get("FLOPS_FIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(default))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("error")
    rng = random.Random(asked.seed)
    contents = seeds(asked.folder)
    frames = [pd.read_csv(path).sample(40, random_state=0) for path in sorted(asked.folder.glob("*.csv"))]
    ends: Counter[str] = Counter()
    slowest, failures, start = 0.0, 0, time.monotonic()
    while time.monotonic() - start < asked.seconds:
        number = sum(ends.values())
        content: bytes | pd.DataFrame
        try:
            if rng.random() < 0.2:
                content = mutated_frame(rng.choice(frames), rng)
            else:
                content = mutate(rng.choice(contents), rng, contents)
        except (ValueError, TypeError, KeyError, OverflowError):  # pandas refused the mutation itself
            continue
        begun = time.process_time()
        try:
            table = read_table(
                content if isinstance(content, pd.DataFrame) else io.BytesIO(content), **rng.choice(OPTIONS)
            )
            values = table.frame[["num_params", "num_tokens", "flops", "loss"]].to_numpy()
            assert np.isfinite(values).all()
            assert (values > 0).all()
            assert len(table.dropped) == len(table.left_out)
            table.split("run_id")
            end = "table"
        except FlopsFitError as error:
            end = "error of ours" if len(str(error)) < 5000 else "FAILURE"
        except Exception:
            end = "FAILURE"
            traceback.print_exc()
        took = time.process_time() - begun
        slowest = max(slowest, took)
        if end == "FAILURE" or took > 5:
            failures += 1
            name = Path(f"fuzz_failure_{asked.seed}_{number}")
            if isinstance(content, pd.DataFrame):
                content.to_pickle(name.with_suffix(".pkl"))
            else:
                name.write_bytes(content)
            print(f"input {number} kept as {name}*, {took:.1f} s", file=sys.stderr)
        ends[end] += 1
        if failures >= 10:
            break
    took = time.monotonic() - start
    print(f"{sum(ends.values())} inputs in {took:.0f} s: {dict(ends)}; slowest {slowest:.2f} s; failures {failures}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
