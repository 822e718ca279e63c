"""The benchmarks' own arithmetic, and that every script starts. What they measure is asserted nowhere."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


@pytest.fixture
def bench(monkeypatch):
    """Import modules of benchmarks/, which is no package, and forget them again."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    stems = {path.stem for path in BENCHMARKS.glob("*.py")}
    known = {stem: sys.modules.pop(stem) for stem in stems & set(sys.modules)}
    yield SimpleNamespace(load=importlib.import_module)
    for stem in stems & set(sys.modules):
        del sys.modules[stem]
    sys.modules.update(known)


def line(tool, seconds, run=1, session="a", model="mobilenet_v2", images=8000, **values):
    """One line of the log, as labelling.py writes it."""
    rates = {"images_per_s": images / seconds, "images_per_s_per_core": images / seconds / 2}
    common = {"at": "2026-11-24T00:00:00Z", "machine": "a machine", "commit": "abc", "session": session, "busy": 0.9}
    own = {
        "first_commit_s": 9.0,
        "last_commit_s": seconds - 2,
        "steady_images_per_s": 300.0,
        "stages_s": {"engine": 9, "decode": 1},
    }
    said = {"said": {"seconds": seconds - 10, "images_per_s": images / (seconds - 10)}}
    kind = own if tool == "nightshift" else said
    return {
        **common,
        "tool": tool,
        "model": model,
        "images": images,
        "run": run,
        "seconds": seconds,
        **rates,
        **kind,
        **values,
    }


def limit(session="a", **values):
    """What limits.py finds."""
    found = {
        "forward": 400.0,
        "decode": 1600.0,
        "limit": 320.0,
        "torch_fp32": 25.0,
        "torch_bf16": 80.0,
        "cores": 2,
        "gpu": False,
    }
    common = {"at": "2026-11-24T00:00:00Z", "tool": "limits", "model": "mobilenet_v2", "session": session}
    return {**common, **found, **values}


def rows_of(text, first):
    """The cells of the table rows that begin with these."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    return [row for row in cells if row[: len(first)] == list(first)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_does(script):
    """It starts without the packages of the bench extra, which the tests do not have."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")


def test_ratios_pair_lines_of_one_session_and_run_only(bench):
    records = [
        line("nightshift", 40.0), line("ray_data_tuned", 200.0), line("ray_data_tuned", 90.0, run=2),
        line("nightshift", 50.0, run=2, session="b"), line("ray_data_tuned", 200.0, run=2, session="b"),
        line("ray_data_tuned", 4.0, images=200), line("ray_data_tuned", 4.0, model="resnet18"),
    ]  # fmt: skip
    assert bench.load("records").pairs(records, "mobilenet_v2", "ray_data_tuned", 8000) == [(1, 5.0), (2, 4.0)]


@pytest.mark.parametrize(
    ("records", "peers", "needed"),
    [
        ([], ["daft_docs"], ["nightshift", "daft_docs"]),
        ([], [], ["nightshift"]),
        ([line("nightshift", 1.0)], [], []),
        ([line("nightshift", 1.0)], ["daft_docs"], ["nightshift", "daft_docs"]),
        ([line("nightshift", 1.0), line("daft_docs", 1.0, session="b")], ["daft_docs"], ["nightshift", "daft_docs"]),
        ([line("nightshift", 1.0), line("daft_docs", 1.0)], ["daft_docs"], []),
        ([line("nightshift", 1.0), line("daft_docs", 1.0)], ["daft_docs", "ray_data_docs"], ["nightshift", "ray_data_docs"]),
        ([line("nightshift", 1.0, run=2), line("daft_docs", 1.0, run=2)], ["daft_docs"], ["nightshift", "daft_docs"]),
    ],
)  # fmt: skip
def test_what_a_run_lacks_is_measured_beside_ours(bench, records, peers, needed):
    assert bench.load("records").missing(records, "mobilenet_v2", peers, 8000, 1) == needed


def test_each_run_begins_with_another_tool(bench):
    rotated = bench.load("records").rotated
    assert [rotated(["a", "b", "c"], run)[0] for run in (1, 2, 3, 4)] == ["a", "b", "c", "a"]
    assert sorted(rotated(["a", "b", "c"], 2)) == ["a", "b", "c"]
    assert rotated([], 2) == []


def test_the_log_grows_over_sessions_and_a_cut_line_is_no_measurement(bench, tmp_path):
    records, path = bench.load("records"), tmp_path / "new" / "bench.jsonl"
    first = records.Log(path)
    first.write(tool="cold", seconds=1.5)
    with path.open("a") as file:
        file.write('{"tool": "cut')
    assert [record["seconds"] for record in records.read(path)] == [1.5]
    assert first.has(tool="cold")
    assert not first.has(tool="cold", seconds=2)
    assert records.Log(path).session != first.session


def test_a_line_after_a_cut_one_stands_by_itself(bench, tmp_path):
    records, path = bench.load("records"), tmp_path / "bench.jsonl"
    path.write_text('{"tool": "cut')
    records.Log(path).write(tool="cold")
    assert [record["tool"] for record in records.read(path)] == ["cold"]


def test_the_table_has_ratios_of_every_run_medians_and_targets(bench):
    records = [limit(), line("cold", 55.0, run=None, first_commit_s=30.0, last_commit_s=50.0, stages_s={"engine": 9})]
    for run, theirs in ((1, 200.0), (2, 120.0), (3, 240.0)):
        records += [line("nightshift", 40.0, run=run), line("ray_data_tuned", theirs, run=run)]
    text = bench.load("table").tables(records)
    assert rows_of(text, ["mobilenet_v2", "ray_data_tuned", "5.00, 3.00, 6.00"]) == [
        ["mobilenet_v2", "ray_data_tuned", "5.00, 3.00, 6.00", "5.00", ">= 4", "reached"]
    ]
    assert rows_of(text, ["mobilenet_v2", "nightshift", "40.0 (3)", "200.0", "100.0", "9.0", "90%"])
    assert rows_of(
        text, ["mobilenet_v2", "300, 300, 300", "400", "1600", "320", "1/(1/F + 1/D)", "0.94", ">= 0.9", "reached"]
    )


def test_a_missed_target_says_so(bench):
    text = bench.load("table").tables([line("nightshift", 40.0), line("ray_data_docs", 80.0)])
    assert rows_of(text, ["mobilenet_v2", "ray_data_docs"])[0] == [
        "mobilenet_v2", "ray_data_docs", "2.00", "2.00", ">= 12", "missed"
    ]  # fmt: skip


def test_small_runs_do_not_mix_with_the_large_ones(bench):
    records = [line("nightshift", 40.0), line("nightshift", 15.0, images=200, session="b")]
    table = bench.load("table")
    assert "40.0 (1)" in table.tables(records)
    assert "15.0 (1)" not in table.tables(records)
    assert "15.0 (1)" in table.tables(records, 200)


@pytest.mark.parametrize(
    ("seconds", "busy", "words"),
    [
        (8000 / 11 + 10, 0.9, "its forward pass (torch fp32 alone does 12.5 on one core)"),
        (8000 / 5 + 10, 0.9, "work around the forward pass"),
        (8000 / 5 + 10, 0.4, "waiting: the cores are idle 60% of the time"),
    ],
)
def test_what_limits_a_peer_is_said_from_what_was_measured(bench, seconds, busy, words):
    said = bench.load("table").why([line("ray_data_docs", seconds, busy=busy)], [limit()])
    assert said.startswith(words)
    assert "start and end 10.0 s" in said


def test_what_limits_us_is_the_labellers_time(bench):
    said = bench.load("table").why([line("nightshift", 40.0)], [limit()])
    assert said == (
        "labellers: the engine 90%, waiting for decoded images 10%; start until the first shard 9.0 s, end after the last 2.0 s"
    )


def test_the_costs_have_their_rows(bench):
    records = [
        line("memory", 40.0, images=2000, run=None, peaks_mb={"driver": 100, "labeller": 300}),
        line("memory", 90.0, run=None, peaks_mb={"driver": 110, "labeller": 305}),
        {"tool": "empty_shard", "ms": 2.5, "at": "2026-11-24"},
        line("labellers", 80.0, asked=[1, 1], steady_images_per_s=150.0),
        line("labellers", 40.0, asked=[2, None], steady_images_per_s=300.0),
    ]
    text = bench.load("table").tables(records)
    assert rows_of(text, ["an empty shard through dispatch and ledger", "2.5 ms", "<= 10 ms"])
    assert rows_of(text, ["peak memory, 2,000 images", "driver 100 MB, labeller 300 MB", "flat"])
    assert rows_of(text, ["peak memory, 8,000 images", "driver 110 MB, labeller 305 MB", "flat"])
    assert rows_of(text, ["1 labeller on one CPU -> 2 on two, steady", "150 -> 300 images/s: 2.00", ">= 1.9"])


def test_the_table_says_when_the_machine_was_not_quiet(bench):
    records = [line("nightshift", 40.0, busy_before=0.5), line("daft_docs", 300.0, busy_before=0.01)]
    tables = bench.load("table").tables
    assert "1 of 2 commands began on a machine that was more than 10% busy" in tables(records)
    assert "busy." not in tables(records[1:])


def test_no_measurements_make_no_table(bench):
    assert "|" not in bench.load("table").tables([])


def test_a_shared_pool_of_cores_is_slower_than_either_and_a_gpu_as_slow_as_the_slower(bench):
    one = {"forward": 100.0, "decode": 300.0, "torch_fp32": 10.0, "engine": "openvino"}
    found = bench.load("limits").summed([one, one], gpu=False)
    assert (found["forward"], found["decode"], found["limit"], found["torch_fp32"]) == (200, 600, 150, 20)
    found = bench.load("limits").summed(
        [{"decode": 300.0}, {"forward": 900.0, "decode": 300.0, "engine": "torch"}], gpu=True
    )
    assert (found["forward"], found["limit"], found["engine"], "torch_fp32" in found) == (900, 600, "torch", False)


def test_busy_is_what_was_not_idle(bench):
    busy_share = bench.load("processes").busy_share
    assert busy_share((10.0, 100.0), (11.0, 104.0)) == 0.75
    assert busy_share((10.0, 100.0), (10.0, 100.0)) == 0.0


def test_the_ledger_tells_when_shards_were_committed_and_where_the_time_went(bench, tmp_path):
    import os

    for number, at in enumerate((103.0, 105.0, 107.0)):
        entry = {
            "segments": {"a": [60, 60, 0], "b": [40, 39, 1]},
            "seconds": {"engine": 1.5},
            "used": {"engine": "openvino"},
        }
        path = tmp_path / "model@1" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(entry))
        os.utime(path, (at, at))
    told = bench.load("bench").told_by_ledger(tmp_path, began=100.0)
    assert told["commits"] == [[3.0, 100], [5.0, 100], [7.0, 100]]
    assert (told["first_commit_s"], told["last_commit_s"], told["steady_images_per_s"]) == (3.0, 7.0, 50.0)
    assert told["stages_s"] == {"engine": 4.5}


def test_one_shard_has_no_steady_rate(bench):
    assert bench.load("bench").steady([[3.0, 100]]) is None


def test_a_burst_at_the_start_and_a_tail_are_not_steady(bench):
    commits = [[0.0, 100], [0.1, 100], *([number, 100] for number in range(1, 17)), [30.0, 100], [50.0, 100]]
    assert bench.load("bench").steady(commits) == 100.0


def test_photos_are_repeated_with_unique_ids(bench, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(pa.table({"image_id": ["x", "y"], "image": [b"1", b"2"]}), source / "a.parquet")
    bench.load("photos").make_photos(source, tmp_path / "photos", 5)
    table = pq.read_table(tmp_path / "photos")
    assert table["image_id"].to_pylist() == ["x-000", "y-000", "x-001", "y-001", "x-002"]
    assert table["image"].to_pylist() == [b"1", b"2", b"1", b"2", b"1"]


def test_the_picture_has_a_bar_per_tool_that_was_measured(bench):
    records = [
        line("nightshift", 40.0),
        line("nightshift", 42.0, run=2),
        line("daft_docs", 300.0),
        line("nightshift", 1.0, images=9),
    ]
    assert bench.load("plot").bars(records) == {"mobilenet_v2": {"nightshift": [40.0, 42.0], "daft_docs": [300.0]}}


def test_only_a_gpu_gets_its_step_and_the_steps_keep_their_order(bench):
    steps = bench.load("everything").steps
    names = [step.name for step in steps(None, gpu=False)]
    assert names[0] == "labelling"
    assert "labelling-gpu" not in names
    assert [step.name for step in steps(["scale", "labelling-gpu", "costs"], gpu=True)] == [
        "labelling-gpu",
        "costs",
        "scale",
    ]


def test_every_step_is_a_script_with_options_that_it_knows(bench, tmp_path):
    everything = bench.load("everything")
    for step in everything.steps(None, gpu=True):
        for small in (True, False):
            command = step.command(small, tmp_path / "log", tmp_path, again=True)
            done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
