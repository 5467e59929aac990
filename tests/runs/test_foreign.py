"""Anybody's table: every format gives the same runs, every fault one clear message."""

from __future__ import annotations

import gzip
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flops_fit.errors import DataError, FlopsFitError
from flops_fit.laws import ParametricLaw
from flops_fit.runs.foreign import read_table

LAW = ParametricLaw(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def runs() -> pd.DataFrame:
    """Twelve noiseless runs: three budgets of four sizes."""
    C = np.repeat([1e18, 1e19, 1e20], 4)
    N = np.sqrt(C / 120) * np.tile([0.4, 0.8, 1.5, 3.0], 3)
    D = C / (6 * N)
    return pd.DataFrame({"num_params": N, "num_tokens": D, "loss": LAW.loss(N, D)})


def csv(frame: pd.DataFrame, **options: object) -> io.StringIO:
    return io.StringIO(frame.to_csv(index=False, **options))  # type: ignore[call-overload]


def numbers(source: object) -> np.ndarray:
    return read_table(source).frame[["num_params", "num_tokens", "loss"]].to_numpy()  # type: ignore[arg-type]


# --- formats ---------------------------------------------------------------------------------------------------------


def formats(folder: Path) -> dict[str, object]:
    """The same runs in every format that is read."""
    frame = runs()
    text = frame.to_csv(index=False)
    records = frame.to_dict(orient="records")
    files: dict[str, bytes] = {
        "a.csv": text.encode(),
        "bom.csv": text.encode("utf-8-sig"),
        "utf16.txt": text.replace(",", "\t").encode("utf-16"),
        "crlf.csv": text.replace("\n", "\r\n").encode(),
        "blank_lines.csv": ("# a remark\n\n" + text.replace("\n", "\n\n")).encode(),
        "index.csv": frame.to_csv().encode(),
        "trailing.csv": text.replace("\n", ",\n").encode(),
        "quoted.csv": frame.to_csv(index=False, quoting=1).encode(),
        "a.tsv": text.replace(",", "\t").encode(),
        "bars.txt": text.replace(",", "|").encode(),
        "europe.csv": frame.to_csv(index=False, sep=";", decimal=",").encode(),
        "a.csv.gz": gzip.compress(text.encode()),
        "a.jsonl": "\n".join(map(json.dumps, records)).encode(),
        "a.jsonl.gz": gzip.compress("\n".join(map(json.dumps, records)).encode()),
        "records.json": json.dumps(records, indent=1).encode(),
        "under_a_key.json": json.dumps({"schema_version": 1, "runs": records}).encode(),
        "by_column.json": frame.to_json(double_precision=15).encode(),
        "lists.json": json.dumps({k: list(v) for k, v in frame.items()}).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files} | {"frame": frame, "stream": io.StringIO(text)}


def test_every_format_gives_the_same_runs(tmp_path: Path) -> None:
    expected = runs().to_numpy()
    for name, source in formats(tmp_path).items():
        assert numbers(source) == pytest.approx(expected, rel=1e-13), name


def test_text_is_read_to_the_last_bit(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(runs().to_csv(index=False))
    assert (numbers(str(tmp_path / "a.csv")) == runs().to_numpy()).all()


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", csv(runs()))
    assert len(numbers("-")) == 12


def test_a_frame_is_not_changed_and_its_index_may_name_the_runs() -> None:
    frame = runs().assign(run_id=[f"r{i}" for i in range(12)]).set_index("run_id")
    before = frame.copy(deep=True)
    assert read_table(frame).frame["run_id"].tolist() == frame.index.tolist()
    pd.testing.assert_frame_equal(frame, before)


def test_other_columns_are_carried_and_mapping_is_told() -> None:
    frame = runs().rename(columns={"num_params": "Model Size", "num_tokens": "D"})
    table = read_table(csv(frame.assign(lr=3e-4, optimizer="adamw", budget=1e18)))
    assert table.mapping == {
        "compute_budget": "budget",
        "num_params": "Model Size",
        "num_tokens": "D",
        "loss": "loss",
    }
    assert table.frame["lr"].tolist() == [3e-4] * 12
    assert table.frame["optimizer"].tolist() == ["adamw"] * 12
    assert table.frame["run_id"].tolist()[:2] == ["line 2", "line 3"]
    assert (table.frame["loss_unit"] == "nats").all()


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "rows"), [("chinchilla_epoch.csv", 245), ("llama3_isoflop.csv", 133), ("steplaw_lr_bs.csv", 1911)]
)
def test_published_tables_come_through_whole(published: Callable[[str], pd.DataFrame], name: str, rows: int) -> None:
    frame = published(name)
    table = read_table(frame)
    assert len(table.frame) == rows
    assert not table.dropped
    for column in ("num_params", "num_tokens", "flops", "loss"):
        assert table.frame[column].tolist() == frame[column].tolist()


@pytest.mark.reference
def test_runs_under_two_names_are_kept_and_mentioned(published: Callable[[str], pd.DataFrame]) -> None:
    table = read_table(published("misfitting_fineweb_c4.csv"))
    assert len(table.frame) == 261
    assert any(note.startswith("21 runs have N, D and loss of another run") for note in table.notes)


# --- quantities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", ["num_params", "num_tokens", "flops"])
def test_the_third_of_size_data_and_compute_follows_from_6nd_and_is_told(absent: str) -> None:
    frame = runs()
    frame["flops"] = 6 * frame["num_params"] * frame["num_tokens"]
    table = read_table(frame.drop(columns=absent))
    assert table.frame[absent].to_numpy() == pytest.approx(frame[absent].to_numpy())
    assert any(note.startswith(f"{absent} = ") for note in table.notes)
    assert not read_table(frame).notes


def test_a_budget_stands_in_for_compute_only_where_it_must() -> None:
    frame = runs().assign(budget=np.repeat([1e18, 1e19, 1e20], 4))
    assert read_table(frame.drop(columns="num_params")).frame["num_params"].tolist() == pytest.approx(
        frame["num_params"].tolist()
    )
    frame["budget"] *= 3
    table = read_table(frame)
    assert table.frame["flops"].to_numpy() == pytest.approx(6 * (frame["num_params"] * frame["num_tokens"]).to_numpy())
    assert any("compute_budget is about 3 times the flops" in note for note in table.notes)


def test_gflops_are_flops_times_1e9() -> None:
    frame = runs().assign(**{"throughput/total_gflops": lambda f: 6e-9 * f["num_params"] * f["num_tokens"]})
    table = read_table(frame)
    assert table.frame["flops"].to_numpy() == pytest.approx(6 * (frame["num_params"] * frame["num_tokens"]).to_numpy())
    assert not table.notes


def test_cells_with_units_and_a_budget_of_words() -> None:
    frame = runs()
    frame["params"] = [f"{n / 1e6}M" for n in frame.pop("num_params")]
    frame["tokens"] = [f"{d / 1e9}B tokens" for d in frame.pop("num_tokens")]
    table = read_table(csv(frame.assign(budget="small")))
    assert table.frame[["num_params", "num_tokens"]].to_numpy() == pytest.approx(runs().to_numpy()[:, :2])
    assert table.frame["budget"].tolist() == ["small"] * 12


def test_loss_units() -> None:
    frame = runs()
    loss = frame["loss"].to_numpy()
    bits = frame.assign(loss=loss / np.log(2))
    bpb = frame.assign(loss=loss / np.log(2) / 4).rename(columns={"loss": "val_bpb"})
    assert read_table(bits, loss_unit="bits").frame["loss"].to_numpy() == pytest.approx(loss)
    assert read_table(bits.assign(loss_unit="bits/token")).frame["loss"].to_numpy() == pytest.approx(loss)
    assert read_table(bpb, bytes_per_token=4).frame["loss"].to_numpy() == pytest.approx(loss)
    kept = read_table(bpb).frame
    assert kept["loss"].to_numpy() == pytest.approx(loss / np.log(2) / 4)
    assert set(kept["loss_unit"]) == {"bpb"}
    assert set(read_table(frame.assign(loss_unit="nats/sample")).frame["loss_unit"]) == {"nats"}
    with pytest.raises(DataError, match="one of nats, bits and bpb"):
        read_table(frame.assign(loss_unit=["nats", "bits"] * 6))


def test_n_convention_chooses_the_count() -> None:
    frame = runs().rename(columns={"num_params": "params_total"})
    frame["params_transformer"], frame["params_lm_head"] = 0.5 * frame["params_total"], 0.2 * frame["params_total"]
    total = read_table(frame)
    assert total.frame["num_params"].tolist() == frame["params_total"].tolist()
    assert any("--n-convention chooses another" in note for note in total.notes)
    inner = read_table(frame, n_convention="non_embedding")
    assert inner.frame["num_params"].tolist() == frame["params_transformer"].tolist()
    assert inner.mapping["num_params"] == "params_transformer"
    matmul = read_table(frame, n_convention="matmul")
    assert matmul.mapping["num_params"] == "params_transformer + params_lm_head"
    assert matmul.frame["num_params"].to_numpy() == pytest.approx(0.7 * frame["params_total"].to_numpy())
    with pytest.raises(DataError, match="no column of matmul parameters; it has total"):
        read_table(frame.drop(columns=["params_transformer"]), n_convention="matmul")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_unfinished_runs_are_left_out_whatever_they_hold() -> None:
    frame = runs().assign(state="finished", run_id=[f"r{i}" for i in range(12)])
    frame.loc[3, ["state", "loss"]] = ["diverged", np.nan]
    frame.loc[4, ["state", "num_tokens"]] = ["running", 0]
    frame.loc[5, "state"] = None
    table = read_table(csv(frame))
    assert table.dropped == [("r3", "line 5: its state is 'diverged'"), ("r4", "line 6: its state is 'running'")]
    assert len(table.frame) == 10


def test_the_same_run_counts_once() -> None:
    frame = runs().assign(lr=1e-3)
    again = frame.iloc[[2]].assign(lr=2e-3)
    table = read_table(pd.concat([frame, again], ignore_index=True))
    assert table.dropped == [("row 12", "row 12: the same run as another row")]
    short = frame.assign(loss=frame["loss"].round(2))
    assert not read_table(pd.concat([short, short.iloc[[2]].assign(lr=2e-3)], ignore_index=True)).dropped
    assert read_table(pd.concat([short, short.iloc[[2]]], ignore_index=True)).dropped
    seeds = pd.concat([short.assign(seed=0), short.assign(seed=1)], ignore_index=True)
    assert not read_table(seeds).dropped


def test_only_the_end_of_a_run_counts() -> None:
    last = runs().assign(run_name=[f"r{i}" for i in range(12)])
    early = last.assign(num_tokens=last["num_tokens"] / 2, loss=last["loss"] + 0.3)
    table = read_table(pd.concat([early, last], ignore_index=True))
    assert table.frame["loss"].tolist() == last["loss"].tolist()
    assert len(table.dropped) == 12
    assert "a checkpoint at" in table.dropped[0][1]
    separate = read_table(pd.concat([early.assign(seed=1), last.assign(seed=2)], ignore_index=True))
    assert not separate.dropped
    assert separate.frame["run_id"].is_unique
    assert separate.frame["run_id"][0] == "r0 (row 0)"


def test_done_is_one_word_and_simulated_stays_visible() -> None:
    frame = read_table(runs().assign(status=["Finished", "simulated", None] * 4)).frame
    assert frame["state"].tolist() == ["completed", "simulated", "completed"] * 4


def test_split_gives_every_group_its_runs() -> None:
    one = runs().assign(experiment="one")
    two = pd.concat([runs(), runs().assign(loss=lambda f: f["loss"] + 0.1)]).assign(experiment="two")
    table = read_table(pd.concat([one, two], ignore_index=True))
    assert len(table.frame) == 24
    groups = table.split("experiment")
    assert {name: len(group.frame) for name, group in groups.items()} == {"one": 12, "two": 24}
    assert not groups["one"].dropped
    assert not groups["two"].dropped
    with pytest.raises(DataError, match="did you mean 'experiment'"):
        table.split("experimnt")


def test_split_keeps_reasons_with_their_group() -> None:
    frame = runs().assign(family=["a", "b"] * 6, state="done", place="here", reason="none")
    frame.loc[4, "state"] = "failed"
    groups = read_table(frame).split("family")
    assert [len(groups[g].dropped) for g in "ab"] == [1, 0]
    assert groups["b"].frame["original_reason"].tolist() == ["none"] * 6


# --- bad input -------------------------------------------------------------------------------------------------------


def cell(text: object, column: str = "loss", row: int = 3) -> Callable[[], io.StringIO]:
    frame = runs().astype(object)
    frame.loc[row, column] = text
    return lambda: csv(frame)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (cell("oops"), r"loss: 'oops' is not a number \(line 5\)"),
        (cell("many", "num_params"), r"num_params: 'many' is not a count.*\(line 5\)"),
        (cell("0"), "loss: zero or negative in line 5"),
        (cell("-3e9", "num_tokens"), "num_tokens: zero or negative in line 5"),
        (cell("nan"), "loss: missing or NaN in line 5"),
        (cell("", "num_params"), "num_params: missing or NaN in line 5"),
        (cell("inf"), "loss: infinite in line 5"),
        (cell("=cmd()"), "would run as formulas: 'loss' in line 5: '=cmd"),
        (cell("@SUM(A1)"), "formulas"),
        (lambda: io.StringIO(""), "is empty"),
        (lambda: io.StringIO("num_params,num_tokens,loss\n"), "no rows"),
        (lambda: io.StringIO("\0\1\2"), "binary"),
        (lambda: io.BytesIO(bytes(range(128, 256))), "binary or not in UTF-8"),
        (lambda: io.BytesIO(b"PK\3\4"), "ZIP or spreadsheet"),
        (lambda: io.BytesIO(b"\x1f\x8b" + b"x" * 20), "damaged or cut gzip"),
        (lambda: io.BytesIO(gzip.compress(b"a,b\n" * 999)[:-9]), "damaged or cut gzip"),
        (lambda: io.StringIO(runs().to_csv(index=False)[:-30]), "line 13 has 2 cells, the header 3.*cut in mid-line"),
        (lambda: io.StringIO('a,b\n1,"2'), "cut in mid-line"),
        (lambda: io.StringIO("x" * 10_000_000), "line 1 is longer than 1 MB"),
        (lambda: io.StringIO("a,b\n1," + "2," * 5_000_000), "line 2 is longer than 1 MB"),
        (lambda: io.StringIO('{"a": "' + "x" * 5_000_000), "not valid JSON"),
        (lambda: io.StringIO('{"loss": 2}\n{"loss": 3'), "line 2 is not valid JSON"),
        (lambda: io.StringIO("[" * 100_000), "nested too deeply|not valid JSON"),
        (lambda: io.StringIO("[1, 2]"), "no list of runs"),
        (lambda: io.StringIO("1e9,2e9,2.5\n1e9,3e9,2.4\n"), "starts with numbers"),
        (lambda: io.StringIO("loss\n2.5\n"), "one column only"),
        (lambda: io.StringIO("N,D,loss,loss\n1,2,3,4\n"), "more than one column called 'loss'"),
        (lambda: csv(runs().head(4)), "has 4 runs; a scaling law needs at least 5"),
        (lambda: csv(runs().assign(num_params=1e9)), "all of one size, 1B"),
        (lambda: csv(runs().assign(num_tokens=2e10)), "all of one number of tokens, 20B"),
        (lambda: csv(runs().assign(num_params=1e300, num_tokens=np.geomspace(1e290, 1e300, 12))), "beyond all numbers"),
        (lambda: csv(runs().assign(loss=1e-320, num_params=1e9)), "all of one size"),
        (lambda: runs().assign(loss=True), "True is not a number"),
    ],
)
def test_bad_input_gets_one_clear_message(source: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(source())  # type: ignore[arg-type]
    text = str(caught.value)
    assert pd.Series([text.replace("\n", " ")]).str.contains(message).all(), text
    assert len(text) < 1500


def test_all_faults_of_a_table_are_told_at_once() -> None:
    frame = runs().astype(object)
    frame.loc[0, "loss"], frame.loc[range(1, 12), "num_tokens"] = "x", -1
    with pytest.raises(DataError) as caught:
        read_table(csv(frame))
    assert "loss: 'x' is not a number (line 2)" in str(caught.value)
    assert "num_tokens: zero or negative in lines 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 1 more" in str(caught.value)


def test_names_in_advice_can_be_pasted_into_a_shell() -> None:
    with pytest.raises(DataError, match="say --map 'loss=los of validation'"):
        read_table(runs().rename(columns={"loss": "los of validation"}))


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 10, 100_000), 10 ** rng.uniform(8, 11, 100_000)
    frame = pd.DataFrame(
        {"name": [f"run-{i}" for i in range(len(N))], "params": N, "tokens": D, "loss": LAW.loss(N, D)}
    )
    source, begun = csv(frame.assign(lr=1e-3, state="finished")), time.process_time()
    assert len(read_table(source).frame) == 100_000
    assert time.process_time() - begun < 5


def test_a_missing_column_names_those_seen_and_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        read_table(runs().rename(columns={"loss": "lss", "num_params": "colour"}))
    assert str(caught.value) == (
        "the frame has no column of losses and only num_tokens of num_params, num_tokens and flops,"
        " where two are needed\ncolumns seen: 'colour', 'num_tokens', 'lss'\nis 'lss' the loss? Then say --map loss=lss"
    )


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a directory"):
        read_table(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_table("a\0b")


def test_a_named_index_that_is_a_column_too_is_no_obstacle() -> None:
    frame = runs()
    assert len(read_table(frame.set_index(frame["loss"])).frame) == 12


def test_a_header_of_one_huge_word_is_told() -> None:
    with pytest.raises(DataError, match=r"one column only|field larger"):
        read_table(io.StringIO("x" * 200_000 + ",a\n1,2\n"))


def test_line_numbers_are_those_of_an_editor() -> None:
    text = "# made by hand\n\n" + runs().assign(note='two\n"lines"').to_csv(index=False)
    lines = text.rstrip("\n").split("\n")
    lines[-2] = lines[-2].replace(lines[-2].split(",")[2], "bad")
    with pytest.raises(DataError, match=rf"'bad' is not a number \(line {len(lines)}\)"):
        read_table(io.StringIO("\n".join(lines)))


SEED = runs().assign(run_id=[f"run {i}" for i in range(12)], state="done").to_csv(index=False).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    start=st.sampled_from([SEED, json.dumps(runs().to_dict(orient="records")).encode(), gzip.compress(SEED)]),
    edits=st.lists(
        st.tuples(
            st.integers(0, 2000),
            st.integers(0, 60),
            st.binary(max_size=8)
            | st.sampled_from(
                [b"nan", b"inf", b"-1", b'"', b",", b"\n", b"1e999", b"=x()", b"\0", b"{}", b"[[", b"9" * 40]
            ),
        ),
        max_size=5,
    ),
)
def test_damaged_files_end_in_a_table_or_in_an_error_of_ours(start: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for at, length, new in edits:
        start = start[: at % (len(start) + 1)] + new + start[at % (len(start) + 1) + length :]
    try:
        table = read_table(io.BytesIO(start))  # type: ignore[arg-type]
    except FlopsFitError:
        return
    assert np.isfinite(table.frame[["num_params", "num_tokens", "flops", "loss"]].to_numpy()).all()
