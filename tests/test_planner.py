import os
from pathlib import Path

import pytest
from conftest import hash_of

from cluster import footers, planner
from pipeline.errors import HeldError, InputError, TransientError
from pipeline.plans import Plan, read_plan, read_unfinished, write_plan
from pipeline.retrying import Patience
from pipeline.settings import StorageSettings
from pipeline.shards import make_shards
from pipeline.storage import FileStorage

NOW = "2026-11-24T02:00:00+00:00"


class Planner:
    """Plans one input again and again, and counts what it took."""

    def __init__(self, night):
        self.night, self.connected, self.looked_at = night, 0, 0

    def __call__(self, **changes):
        config = self.night.config(input=changes)
        self.connected = self.looked_at = 0
        return planner.plan(self.night.store, config.input, config.storage, NOW, self._connect, self._advanced)

    def _connect(self):
        self.connected += 1

    def _advanced(self, count):
        self.looked_at += count


@pytest.fixture
def replan(night, local_ray):
    return Planner(night)


IMAGES = {"image_column": None, "id_column": None, "label_column": None}


def write_images(night, *names):
    for name in names:
        path = night.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(night.png(hash_of(name)))


def replace(path: Path, data: bytes):
    """Write another version of a file, of another time also on a coarse clock."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def live(plan):
    """Return the rows of every live segment: (path, first row, rows)."""
    return sorted((s.path, s.first_row, s.num_rows) for shard in plan.shards for s in shard.live)


def test_a_first_plan_holds_every_row_once(night, replan):
    night.write("a.parquet", range(25))
    night.write("b.parquet", range(25, 30))
    plan, new = replan(shard_images=10)
    assert (plan.n, new, plan.num_images, plan.failed_files) == (1, True, 30, ())
    assert live(plan) == [("a.parquet", 0, 10), ("a.parquet", 10, 10), ("a.parquet", 20, 5), ("b.parquet", 0, 5)]
    assert [shard.num_images for shard in plan.shards] == [10, 10, 10]
    assert (replan.connected, replan.looked_at) == (0, 2), "few footers need no session"
    assert read_plan(night.store, "data") == plan


def test_more_footers_than_one_task_reads_are_read_by_tasks_and_fewer_by_the_driver(night, replan, monkeypatch):
    monkeypatch.setattr(footers, "FILES_PER_TASK", 2)
    for number in range(5):
        night.write(f"{number}.parquet", range(5 * number, 5 * number + 5))
    first, _ = replan(shard_images=10)
    assert (replan.connected, replan.looked_at, first.num_images) == (1, 5, 25)
    monkeypatch.delattr("cluster.footers.TaskPool")
    night.write("5.parquet", range(25, 30))
    (night.data / "6.parquet").write_bytes(b"no Parquet")
    second, _ = replan(shard_images=10)
    assert (replan.connected, replan.looked_at, second.num_images) == (0, 2, 30)
    assert [file["path"] for file in second.failed_files] == ["6.parquet"]
    assert second.shards[: len(first.shards)] == first.shards


def test_an_unchanged_input_makes_no_snapshot_and_reads_no_footer(night, replan, monkeypatch):
    """It asks for no workers either: there is no session that could have any."""
    night.write("a.parquet", range(5))
    first, _ = replan()
    monkeypatch.delattr("cluster.footers.TaskPool")
    assert replan() == (first, False)
    assert (replan.connected, replan.looked_at) == (0, 0)


def test_new_files_go_into_new_shards_and_old_shards_stay_as_they_are(night, replan):
    night.write("b.parquet", range(5))
    first, _ = replan(shard_images=100)
    night.write("a.parquet", range(5, 8))
    night.write("c.parquet", range(8, 9))
    second, new = replan(shard_images=100)
    assert (second.n, new) == (2, True)
    assert second.shards[: len(first.shards)] == first.shards
    assert [shard.num_images for shard in second.shards] == [5, 4]
    assert replan.looked_at == 2, "the footers of known files are not read again"


def test_another_shard_size_moves_nothing_that_has_a_shard(night, replan):
    night.write("a.parquet", range(30))
    first, _ = replan(shard_images=30)
    assert replan(shard_images=10) == (first, False)


def test_one_changed_image_replans_one_image(night, replan):
    write_images(night, "ant/1.png", "ant/2.png", "bee/3.png")
    first, _ = replan(**IMAGES)
    replace(night.data / "ant/2.png", night.png(77))
    second, new = replan(**IMAGES)
    old, fresh = second.shards
    assert new
    assert old.id == first.shards[0].id
    assert [segment.path for segment in old.live] == ["ant/1.png", "bee/3.png"]
    assert [segment.path for segment in fresh.live] == ["ant/2.png"]
    assert second.num_images == 3
    assert (replan.connected, replan.looked_at) == (0, 1), "loose images have no footers: no session is needed"


def test_a_changed_table_replans_all_of_its_rows_and_no_others(night, replan):
    night.write("a.parquet", range(10))
    night.write("b.parquet", range(10, 20))
    first, _ = replan(shard_images=100)
    path = night.write("a.parquet", range(12))
    replace(path, path.read_bytes())
    second, _ = replan(shard_images=100)
    assert second.shards[0].id == first.shards[0].id
    assert [(s.path, s.num_rows) for s in second.shards[0].live] == [("b.parquet", 10)]
    assert live(second) == [("a.parquet", 0, 12), ("b.parquet", 0, 10)]


def test_deleted_files_leave_the_plan_and_shards_without_rows_vanish(night, replan):
    write_images(night, *(f"{i}.png" for i in range(6)))
    first, _ = replan(**IMAGES, shard_images=2)
    for name in ("0.png", "1.png", "2.png"):
        (night.data / name).unlink()
    second, new = replan(**IMAGES, shard_images=2, max_vanished_fraction=0.5)
    assert new
    assert [shard.id for shard in second.shards] == [shard.id for shard in first.shards[1:]]
    assert [s.path for shard in second.shards for s in shard.live] == ["3.png", "4.png", "5.png"]


def test_a_first_plan_of_nothing_is_an_error(night, replan):
    for _ in range(2):
        with pytest.raises(InputError, match="does not exist, is empty"):
            replan(**IMAGES)
        night.data.mkdir(exist_ok=True)
    assert read_plan(night.store, "data") is None


@pytest.mark.parametrize("left", ["empty", "gone", "others"])
def test_an_input_that_lost_everything_holds_the_night_unless_it_is_meant(night, replan, left):
    write_images(night, *(f"{i}.png" for i in range(6)))
    first, _ = replan(**IMAGES)
    for path in night.data.iterdir():
        path.unlink()
    if left == "gone":
        night.data.rmdir()
    elif left == "others":  # what a mount point holds when nothing is mounted
        (night.data / "NOT MOUNTED.txt").write_text("")
    with pytest.raises(HeldError, match=r"6 of 6 known images \(100%\) are gone .*A share that is not mounted"):
        replan(**IMAGES)
    assert read_plan(night.store, "data") == first
    emptied, new = replan(**IMAGES, max_vanished_fraction=1)
    assert (emptied.n, new, emptied.num_images) == (2, True, 0)
    assert emptied.details["changes"] == {"new": 0, "changed": 0, "deleted": 6}
    assert replan(**IMAGES) == (emptied, False), "nothing of nothing is gone"
    write_images(night, "7.png")
    assert replan(**IMAGES)[0].num_images == 1


def test_the_night_is_held_when_more_images_are_gone_than_the_limit_and_not_before(night, replan):
    for number in range(10):
        night.write(f"{number}.parquet", range(number * 10, number * 10 + 10))
    replan(shard_images=30)
    for number in (3, 7):
        (night.data / f"{number}.parquet").unlink()
    plan, new = replan(shard_images=30)
    assert (new, plan.num_images) == (True, 80)
    for number in (0, 1):
        (night.data / f"{number}.parquet").unlink()
    night.write("new.parquet", range(100, 200))
    with pytest.raises(HeldError, match=r"20 of 80 known images \(25%\).*input.max_vanished_fraction = 0.2\. .*=1$"):
        replan(shard_images=30)
    assert read_plan(night.store, "data") == plan
    assert replan(shard_images=30, max_vanished_fraction=0.25)[0].num_images == 160


def test_changed_files_have_not_vanished(night, replan):
    for number in range(4):
        night.write(f"{number}.parquet", range(number * 10, number * 10 + 10))
    replan()
    for path in night.data.iterdir():
        replace(path, path.read_bytes())
    plan, _ = replan()
    assert plan.details["changes"] == {"new": 0, "changed": 40, "deleted": 0}


def test_a_known_file_that_breaks_is_neither_changed_nor_deleted(night, replan):
    night.write("a.parquet", range(10))
    night.write("b.parquet", range(10, 20))
    replan()
    replace(night.data / "a.parquet", b"half")
    plan, _ = replan()
    assert plan.details["changes"] == {"new": 0, "changed": 0, "deleted": 0}
    assert (plan.num_images, len(plan.failed_files)) == (10, 1)


def test_only_new_and_changed_files_are_opened(night, replan, monkeypatch):
    """The second night of the issue in small: of a hundred files five are new, one is changed, one is deleted."""
    for number in range(100):
        night.write(f"{number:03d}.parquet", [number])
    replan(shard_images=10)
    opened, real = [], FileStorage.open

    def watch(self, path, version=None):
        if self.url == str(night.data):
            opened.append(path)
        return real(self, path, version)

    monkeypatch.setattr(FileStorage, "open", watch)
    assert not replan(shard_images=10)[1]
    assert opened == []
    for number in range(100, 105):
        night.write(f"{number}.parquet", [number])
    replace(night.data / "050.parquet", night.write("050.parquet", [50, 51]).read_bytes())
    (night.data / "007.parquet").unlink()
    plan, _ = replan(shard_images=10)
    assert sorted(opened) == ["050.parquet", *(f"{number}.parquet" for number in range(100, 105))]
    assert plan.details["changes"] == {"new": 6, "changed": 1, "deleted": 1}
    assert plan.num_images == 105


def test_shards_do_not_span_partitions(night, replan):
    for day in (1, 2):
        for name in "ab":
            (night.data / f"day={day}").mkdir(parents=True, exist_ok=True)
            night.write(f"day={day}/{name}.parquet", [f"{day}{name}"])
    plan, _ = replan(shard_images=100, filter=[("day", "=", "1")])
    assert [[s.path for s in shard.live] for shard in plan.shards] == [
        ["day=1/a.parquet", "day=1/b.parquet"],
        ["day=2/a.parquet", "day=2/b.parquet"],
    ], "the plan covers the whole input, whatever part of it is worked on"


@pytest.mark.parametrize(
    ("changes", "columns", "words"),
    [
        ({"filter": [("prize", ">", 3)]}, (), r"no column 'prize' \(input.filter\); did you mean 'price'"),
        ({"filter": [("price", ">", "high")]}, (), "column 'price' has type int64, .*give a number"),
        ({}, ("lable",), r"no column 'lable' \(label.columns\); did you mean 'label'"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_a_first_plan_and_by_later_ones(
    night, local_ray, changes, columns, words
):
    night.write("day=1.parquet", range(3), price=[1, 2, 3])

    def plan(columns=(), **changes):
        config = night.config(input=changes)
        return planner.plan(night.store, config.input, config.storage, NOW, lambda: None, lambda n: None, columns)

    for _ in range(2):
        with pytest.raises(InputError, match=words):
            plan(columns, **changes)
        plan(("price",), filter=[("price", "in", (3, 4))])


def test_partitions_need_no_column_and_loose_images_have_no_others(night, local_ray):
    write_images(night, "day=1/a.png", "day=2/b.png")

    def plan(columns=(), **changes):
        config = night.config(input=IMAGES | changes)
        return planner.plan(night.store, config.input, config.storage, NOW, lambda: None, lambda n: None, columns)[0]

    assert plan(("day",), filter=[("day", "=", "1")]).num_images == 2
    with pytest.raises(InputError, match=r"folder of images, and input.filter names a column \('price'\)"):
        plan(filter=[("day", "=", "1"), ("price", ">", 3)])
    with pytest.raises(InputError, match=r"folder of images, and label.columns names a column \('price'\)"):
        plan(("day", "price"))


def test_a_broken_file_is_listed_and_the_rest_goes_on(night, replan):
    night.write("a.parquet", range(5))
    (night.data / "b.parquet").write_bytes(b"PAR1 this is no table")
    night.write("c.parquet", range(5, 8))
    plan, _ = replan()
    assert plan.num_images == 8
    assert [file["path"] for file in plan.failed_files] == ["b.parquet"]
    assert "b.parquet: not a readable Parquet file" in plan.failed_files[0]["error"]


def test_a_file_that_was_mended_joins_the_plan(night, replan):
    night.write("a.parquet", range(5))
    (night.data / "b.parquet").write_bytes(b"half")
    broken, _ = replan()
    assert replan() == (broken, False), "the same failure makes no new snapshot"
    assert replan.looked_at == 1, "but it is looked at again"
    night.write("b.parquet", range(5, 8))
    mended, new = replan()
    assert (mended.num_images, mended.failed_files, new) == (8, (), True)


def test_an_input_of_broken_files_only_is_refused(night, replan):
    night.data.mkdir()
    (night.data / "a.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match=r"none of the 1 files can be read; the first: .*a\.parquet"):
        replan()
    assert read_plan(night.store, "data") is None


@pytest.mark.parametrize("by_task", [True, False])
def test_a_storage_that_stays_away_fails_its_files(night, replan, monkeypatch, by_task):
    night.write("a.parquet", range(5))
    replan()
    asked = []

    def silent(file, *arguments):
        asked.append(file.path)
        raise TransientError("503 slow down")

    monkeypatch.setattr(footers, "segments_of", silent)
    monkeypatch.setattr(footers, "FILES_PER_TASK", 1 if by_task else 2)
    monkeypatch.setattr(footers, "PATIENCE", Patience(footers.ATTEMPTS, 60))
    monkeypatch.setattr("cluster.retries.STORAGE_PATIENCE_S", 0.05)
    monkeypatch.setattr("cluster.retries.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("pipeline.retrying.FIRST_PAUSE_S", 0.001)
    night.write("b.parquet", range(5, 8))
    night.write("c.parquet", range(8, 9))
    plan, _ = replan()
    assert replan.connected == by_task
    assert asked.count("b.parquet") > footers.ATTEMPTS, "throttling uses up no attempts"
    assert plan.num_images == 5
    assert [file["path"] for file in plan.failed_files] == ["b.parquet", "c.parquet"]
    assert all("503 slow down" in file["error"] for file in plan.failed_files)


def test_many_files_are_read_in_chunks_and_planned_in_name_order(night, replan, monkeypatch):
    monkeypatch.setattr(footers, "FILES_PER_TASK", 2)
    for number in range(7):
        night.write(f"{number}.parquet", [number])
    plan, _ = replan(shard_images=1)
    assert [shard.live[0].path for shard in plan.shards] == [f"{number}.parquet" for number in range(7)]
    assert replan.looked_at == 7


def test_files_of_other_kinds_are_counted(night, replan):
    night.write("a.parquet", range(3))
    (night.data / "notes.txt").write_text("hello")
    write_images(night, "preview.png")
    plan, _ = replan()
    assert (plan.num_images, plan.ignored_files) == (3, 2)


class Dies(Exception):
    """The process ends here."""


class Dying:
    """A store for a process that ends before it completes its plan."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def create(self, path, data):
        raise Dies


def test_the_shards_of_a_plan_that_was_never_completed_are_kept(night, replan):
    night.write("a.parquet", range(20))
    whole = night.store
    night.store = Dying(whole)
    with pytest.raises(Dies):
        replan(shard_images=10)
    night.store = whole
    started = read_unfinished(night.store, "data")
    assert len(started) == 2
    night.write("b.parquet", range(20, 25))
    plan, _ = replan(shard_images=7)
    assert list(plan.shards[:2]) == started
    assert plan.num_images == 25
    assert read_unfinished(night.store, "data") == []


def test_a_file_that_an_unfinished_plan_got_halfway_through_is_completed(night, replan):
    night.write("a.parquet", range(30))
    first, _ = replan(shard_images=10)
    night.store.delete("plans/data/1/plan.json")
    for entry in list(night.store.list("plans/data/1")):
        night.store.delete(entry.path)
    kept = first.shards[1]
    with pytest.raises(Dies):
        write_plan(Dying(night.store), Plan("data", 1, (kept,)), NOW)
    plan, _ = replan(shard_images=10)
    assert plan.shards[0] == kept
    assert sorted(shard.id for shard in plan.shards) == sorted(shard.id for shard in first.shards)


def test_a_half_planned_file_is_completed_also_with_another_shard_size(night, replan):
    night.write("a.parquet", range(30))
    first, _ = replan(shard_images=10)
    for entry in list(night.store.list("plans/data/1")):
        night.store.delete(entry.path)
    kept = first.shards[1]
    with pytest.raises(Dies):
        write_plan(Dying(night.store), Plan("data", 1, (kept,)), NOW)
    plan, _ = replan(shard_images=100)
    assert live(plan) == [("a.parquet", 0, 10), ("a.parquet", 10, 10), ("a.parquet", 20, 10)]


def test_another_input_of_the_same_name_is_refused_unless_it_is_named(night, replan, tmp_path):
    night.write("a.parquet", range(5))
    first, _ = replan()
    elsewhere = tmp_path / "elsewhere" / "data"
    elsewhere.mkdir(parents=True)
    (elsewhere / "a.parquet").write_bytes((night.data / "a.parquet").read_bytes())
    with pytest.raises(InputError, match=r"was planned from .*; another input needs another input.name"):
        replan(url=str(elsewhere))
    assert read_plan(night.store, "data") == first
    assert replan(url=f"{night.data}/../data") == (first, False)
    other, _ = replan(url=str(elsewhere), name="other")
    moved, _ = replan(url=str(elsewhere), name="data")
    assert (other.dataset, other.n, moved.n) == ("other", 1, 2)


def test_two_planners_that_died_do_not_make_one_image_two(night, replan):
    """They packed differently because a file appeared between their listings; a rerun takes each image once."""
    for number in range(4):
        night.write(f"{number}.parquet", [number])
    segments = [shard.segments[0] for shard in night.plan(night.config(input={"shard_images": 1})).shards]
    for entry in list(night.store.list("plans/data")):
        night.store.delete(entry.path)
    for packed in (make_shards(segments[1:], 2), make_shards(segments, 2)):
        with pytest.raises(Dies):
            write_plan(Dying(night.store), Plan("data", 1, tuple(packed)), NOW)
    assert len(read_unfinished(night.store, "data")) == 4
    plan, _ = replan()
    assert live(plan) == [(f"{number}.parquet", 0, 1) for number in range(4)]


def test_two_planners_at_once_agree(night, local_ray, run_together):
    for number in range(5):
        night.write(f"{number}.parquet", [number])
    results = run_together(Planner(night), Planner(night), Planner(night))
    plans = [result[0] for result in results]
    assert plans[0] == plans[1] == plans[2]
    assert sorted(new for _, new in results) == [False, False, True]
    assert (plans[0].n, plans[0].num_images) == (1, 5)


def test_a_planner_that_lost_builds_on_what_the_winner_wrote(night, replan, monkeypatch):
    night.write("a.parquet", [1])
    late = night.write("b.parquet", [2])
    write, winners = planner.write_plan, []

    def lose(store, plan, now):
        if not winners:  # another planner, which saw one file less, is first
            winners.append(Plan("data", 1, tuple(s for s in plan.shards if s.live[0].path == "a.parquet")))
            write(store, winners[0], now)
        write(store, plan, now)

    monkeypatch.setattr(planner, "write_plan", lose)
    plan, new = replan(shard_images=1)
    assert (plan.n, new) == (2, True)
    assert plan.shards[0] == winners[0].shards[0]
    assert live(plan) == [("a.parquet", 0, 1), (late.name, 0, 1)]


def test_footers_are_read_by_tasks_of_the_session(ray_session, night):
    night.write("a.parquet", range(25))
    (night.data / "b.parquet").write_bytes(b"half")
    config = night.config(input={"shard_images": 10})
    plan, _ = planner.plan(night.store, config.input, StorageSettings(), NOW, lambda: None, lambda count: None)
    assert live(plan) == [("a.parquet", 0, 10), ("a.parquet", 10, 10), ("a.parquet", 20, 5)]
    assert len(plan.failed_files) == 1
