import json
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pytest
from conftest import published

from pipeline import labelling, layout
from pipeline.documents import advance
from pipeline.errors import StorageError
from pipeline.publication import read_view
from pipeline.tables import read_table


@pytest.fixture(autouse=True)
def model(night):
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "quarantined", "skipped", "failed_shards"))


def test_each_night_labels_what_is_new_and_writes_its_page(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    first = nightshift(night.config(), "nightly", "--run-id", "night-1")
    assert (first.code, counts(first.record)) == (0, (10, 10, 0, 0, 0))
    night.write("b.parquet", range(10, 14))
    second = nightshift(night.config(), "nightly", "--run-id", "night-2")
    assert (second.code, counts(second.record)) == (0, (4, 4, 0, 10, 0))
    assert [stage["name"] for stage in second.record["stages"]] == ["plan", "label"]
    assert [row[0] for row in published(night.store, "data")] == list(range(14))
    page = night.store.read("runs/night-2/report.html").decode()
    assert "night-2" in page
    assert f"report: {night.store.url}/runs/night-2/report.html" in second.said
    assert json.loads(night.store.read("runs/night-2/run.json")) == second.record


def test_a_production_pointer_that_moves_during_the_night_moves_the_next_night_only(
    model, night, nightshift, local_ray, monkeypatch
):
    night.write("a.parquet", range(20))
    other, commit, moved = night.seal(seed=1), labelling.commit, []

    def moving(*arguments):
        if not moved:
            document = {"version": other, "at": "now", "reason": "amid a night"}
            moved.append(advance(night.store, layout.production("tiny"), document, 1))
        return commit(*arguments)

    monkeypatch.setattr(labelling, "commit", moving)
    config = night.config(input={"shard_images": 5})
    for version, run_id in ((model, "night-1"), (other, "night-2")):
        ended = nightshift(config, "nightly", "--run-id", run_id)
        assert (ended.code, ended.record["model"], ended.record["labelled"]) == (0, f"tiny@{version}", 20)
        tables = [read_table(night.store, path, ("model",)) for path in read_view(night.store, "data").files]
        assert {row["model"] for table in tables for row in table.to_pylist()} == {f"tiny@{version}"}
    assert moved == [2]


def test_deleted_images_leave_the_view_without_labelling_anything(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    gone = night.write("b.parquet", range(10, 12))
    nightshift(night.config(), "nightly")
    gone.unlink()
    ended = nightshift(night.config(input={"max_vanished_fraction": 0.5}), "nightly")
    assert (ended.code, counts(ended.record)) == (0, (0, 0, 0, 10, 0))
    assert [row[0] for row in published(night.store, "data")] == list(range(10))


@pytest.mark.parametrize(("require_new", "code"), [(False, 0), (True, 4)])
def test_a_night_without_anything_new_has_its_page_too(night, nightshift, local_ray, require_new, code):
    night.write("a.parquet", range(10))
    config = night.config(label={"require_new": require_new})
    nightshift(config, "nightly")
    ended = nightshift(config, "nightly", "--run-id", "quiet")
    assert (ended.code, counts(ended.record)) == (code, (0, 0, 0, 10, 0))
    assert night.store.stat("runs/quiet/report.html").size_bytes > 0


def test_a_night_with_a_broken_file_ends_with_3_and_a_page_that_names_it(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    (night.data / "b.parquet").write_bytes(b"half")
    ended = nightshift(night.config(), "nightly", "--run-id", "broken")
    assert (ended.code, counts(ended.record)) == (3, (10, 10, 0, 0, 0))
    assert "b.parquet" in night.store.read("runs/broken/report.html").decode()


def test_a_night_that_failed_keeps_its_exit_code(night, nightshift, local_ray, monkeypatch):
    def fails(*_):
        raise StorageError("the store is full")

    night.write("a.parquet", range(10))
    monkeypatch.setattr("jobs.settle.publish", fails)
    ended = nightshift(night.config(), "nightly")
    assert ended.code == 1
    assert "the store is full" in ended.said
    assert "report:" not in ended.said


def test_a_night_without_a_model_is_refused_before_it_plans(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(model={"name": "other"}), "nightly")
    assert ended.code == 2
    assert "run `nightshift train CONFIG` first" in ended.said
    assert list(night.store.list("plans")) == []


# A Delta table.


@pytest.fixture
def delta(night):
    """The config that keeps a table, and a function that reads the table's image ids."""
    deltalake = pytest.importorskip("deltalake")

    def ids() -> list[int]:
        table = deltalake.DeltaTable(f"{night.store.url}/labels/data")
        return sorted(pa.table(table.scan(columns=["image_id"]))["image_id"].to_pylist())

    return night.config(input={"max_vanished_fraction": 1}, output={"table": "delta"}), ids


def test_table_shows_each_night(night, nightshift, local_ray, delta):
    config, ids = delta
    gone = night.write("a.parquet", range(10))
    first = nightshift(config, "nightly")
    assert (first.code, ids()) == (0, list(range(10)))
    assert f"the Delta table at {night.store.url}/labels/data shows the current view" in first.said
    night.write("b.parquet", range(10, 14))
    gone.unlink()
    meant = ("--set", "input.max_vanished_fraction=1")
    assert (nightshift(config, "nightly", *meant).code, ids()) == (0, list(range(10, 14)))
    assert "Delta" not in nightshift(config, "nightly").said


def test_night_that_died_between_view_and_table_is_made_up_for(night, nightshift, local_ray, delta, monkeypatch):
    config, ids = delta
    night.write("a.parquet", range(10))
    with monkeypatch.context() as patch:

        def dies(*_):
            raise StorageError("the store went away")

        patch.setattr("jobs.settle.sync_table", dies)
        assert nightshift(config, "nightly").code == 1
    assert read_view(night.store, "data").n == 1
    assert (nightshift(config, "nightly").code, ids()) == (0, list(range(10)))
    assert read_view(night.store, "data").n == 1


def test_held_night_leaves_the_table_at_the_view(night, nightshift, local_ray, delta):
    config, ids = delta
    night.write("a.parquet", range(10))
    nightshift(config, "nightly")
    night.write("b.parquet", [10, 11], image=pa.array([b"bad", b"bad"], pa.binary()))
    assert (nightshift(config, "nightly").code, ids()) == (3, list(range(10)))


@pytest.mark.parametrize("command", ["nightly", "label"])
def test_missing_deltalake_is_said_before_any_work(night, nightshift, local_ray, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "deltalake", None)
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(output={"table": "delta"}), command)
    assert ended.code == 2
    assert "pip install -e '.[delta]'" in ended.said
    assert not list(night.store.list("plans"))
    assert local_ray.sessions == 0


def test_retried_quarantine_shows_in_view_and_table(night, nightshift, local_ray, delta):
    """The files of the first run stay for whoever reads the first view."""
    config, ids = delta
    config = config.model_copy(update={"label": config.label.model_copy(update={"max_bad_fraction": 1.0})})
    night.write("a.parquet", range(4), image=pa.array([night.png(0), b"bad", night.png(2), None], pa.binary()))
    nightshift(config, "nightly")
    old = read_view(night.store, "data")
    assert nightshift(config, "label", "--retry-quarantined").code == 0
    new = read_view(night.store, "data")
    assert set(old.files).isdisjoint(new.files)
    assert all(night.store.stat(path) for path in old.files + old.document["quarantine_files"])
    assert ids() == [0, 2]


def test_clocks_that_disagree_change_nothing(night, nightshift, local_ray, monkeypatch):
    """Three nights on machines whose clocks are right, a year behind and a year ahead: numbers decide, not times."""
    night.write("a.parquet", range(10))
    night.seal()
    assert nightshift(night.config(), "nightly").code == 0
    for number, (first, shift) in enumerate([(10, -365), (20, 365)], start=2):
        now = datetime.now(UTC) + timedelta(days=shift)
        clock = SimpleNamespace(now=lambda zone, now=now: now)
        night.write(f"{number}.parquet", range(first, first + 10))
        with monkeypatch.context() as patch:
            for user in ("jobs.runs", "jobs.limits"):
                patch.setattr(f"{user}.datetime", clock)
            ended = nightshift(night.config(label={"deadline": "1h"}), "nightly")
        assert (ended.code, ended.record["labelled"], ended.record["skipped"]) == (0, 10, first)
        assert ended.record["started_at"].startswith(str(now.year))
        assert [row[0] for row in published(night.store, "data")] == list(range(first + 10))
        assert read_view(night.store, "data").n == number
    again = nightshift(night.config(), "nightly")
    assert (again.code, again.record["labelled"], read_view(night.store, "data").n) == (0, 0, 3)
