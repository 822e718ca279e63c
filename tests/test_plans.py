import pytest

from pipeline import plans
from pipeline.errors import AlreadyExistsError
from pipeline.plans import Changes, Plan, changes, read_plan, read_unfinished, write_plan
from pipeline.shards import Segment, Shard, shards_to_table, update_shards
from pipeline.storage import FileStorage
from pipeline.tables import write_table


@pytest.fixture
def store(tmp_path):
    return FileStorage(str(tmp_path))


def shard(*paths: str) -> Shard:
    return Shard(tuple(Segment(path, 10, "v", 0, 4, 4) for path in paths))


def plan(n: int, *shards: Shard, dataset: str = "photos") -> Plan:
    return Plan(dataset, n, shards, ({"path": "bad.parquet", "error": "cut off"},), 3, {"format": "parquet"})


def write_part(store, n: int, name: str, *shards: Shard, dataset: str = "photos") -> None:
    write_table(store, f"plans/{dataset}/{n}/{name}.parquet", shards_to_table(shards))


def test_a_store_without_plans(store):
    assert read_plan(store, "photos") is None
    assert read_unfinished(store, "photos") == []


def test_a_plan_reads_back_as_it_was(store):
    written = plan(1, shard("a", "b"), Shard(shard("c", "d").segments, frozenset({shard("c").segments[0].key})))
    write_plan(store, written, "now")
    assert read_plan(store, "photos") == written
    assert read_plan(store, "photos").num_images == 12
    assert read_unfinished(store, "photos") == []


def test_the_newest_complete_snapshot_counts_and_data_sets_are_apart(store):
    for n in range(1, 12):  # 11 is more than 9, although "11" < "9"
        write_plan(store, plan(n, shard(f"f{n}")), "now")
    write_plan(store, plan(1, shard("x"), dataset="photos2"), "now")
    assert read_plan(store, "photos") == plan(11, shard("f11"))
    assert read_plan(store, "photos2") == plan(1, shard("x"), dataset="photos2")


def test_large_plans_have_several_parts(store, monkeypatch):
    monkeypatch.setattr(plans, "SEGMENTS_PER_PART", 3)
    written = plan(1, *(shard(f"{i}a", f"{i}b") for i in range(7)))
    write_plan(store, written, "now")
    assert len([e for e in store.list("plans/photos/1") if e.path.endswith(".parquet")]) == 4
    assert read_plan(store, "photos") == written


def test_a_plan_of_nothing_reads_back(store):
    write_plan(store, plan(1), "now")
    assert read_plan(store, "photos") == plan(1)


def test_a_number_has_one_winner_and_the_losers_parts_are_never_read(store, run_together):
    results = run_together(*[lambda i=i: write_plan(store, plan(1, shard(f"f{i}")), "now") for i in range(6)])
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError"] * 5 + ["NoneType"]
    assert read_plan(store, "photos") == plan(1, shard(f"f{results.index(None)}"))
    assert read_unfinished(store, "photos") == []
    with pytest.raises(AlreadyExistsError):
        write_plan(store, plan(1), "later")


def test_parts_of_unfinished_snapshots_are_history_in_a_fixed_order(store):
    write_plan(store, plan(1, shard("a")), "now")
    write_part(store, 10, "part-00000-cc", shard("e"))
    write_part(store, 2, "part-00000-bb", shard("c"))
    write_part(store, 2, "part-00000-aa", shard("b"))
    write_part(store, 2, "part-00001-aa", shard("d"), shard("b"))
    write_part(store, 1, "part-00000-zz", shard("loser"))
    assert read_unfinished(store, "photos") == [shard("b"), shard("c"), shard("d"), shard("e")]
    assert read_plan(store, "photos") == plan(1, shard("a"))


def test_two_killed_planners_leave_no_image_in_two_shards(store):
    """Both saw b, with other neighbours, and died after their parts, before plan.json."""
    write_part(store, 1, "part-00000-aa", shard("a", "b"))
    write_part(store, 1, "part-00000-bb", shard("b", "c"))
    history = read_unfinished(store, "photos")
    kept = update_shards(history, {s.file for old in history for s in old.segments})
    assert kept == [shard("a", "b")]


def test_other_files_below_the_plans_do_not_matter(store):
    write_plan(store, plan(1, shard("a")), "now")
    for name in ("README.md", "old/1/plan.json", "2/notes.txt"):
        store.write(f"plans/photos/{name}", b"x")
    assert read_plan(store, "photos") == plan(1, shard("a"))
    assert read_unfinished(store, "photos") == []


def test_plans_work_on_object_stores(s3):
    from pipeline.storage import open_storage

    store = open_storage(f"{s3[0]}/store", s3[1])
    write_plan(store, plan(1, shard("a")), "now")
    with pytest.raises(AlreadyExistsError):
        write_plan(store, plan(1, shard("b")), "now")
    assert read_plan(store, "photos") == plan(1, shard("a"))


def shard_of(*files) -> Shard:
    return Shard(tuple(Segment(path, 1, version, 0, rows, rows) for path, version, rows in files))


@pytest.mark.parametrize(
    ("before", "after", "unreadable", "expected"),
    [
        ([], [("a", "1", 5)], (), (5, 0, 0)),
        ([("a", "1", 5)], [("a", "1", 5)], (), (0, 0, 0)),
        ([("a", "1", 5), ("b", "1", 7)], [("b", "1", 7), ("c", "1", 2)], (), (2, 0, 5)),
        ([("a", "1", 5)], [("a", "2", 5)], (), (0, 5, 0)),
        ([("a", "1", 5)], [("a", "2", 8)], (), (3, 5, 0)),
        ([("a", "1", 5)], [("a", "2", 3)], (), (0, 3, 2)),
        ([("a", "1", 5)], [], ("a",), (0, 0, 0)),
        ([("a", "1", 5)], [], (), (0, 0, 5)),
    ],
)
def test_what_became_of_the_images(before, after, unreadable, expected):
    what = changes([shard_of(*before)], [shard_of(*after)], unreadable)
    assert (what.new, what.changed, what.deleted) == expected
    if not unreadable:
        assert sum(n for *_, n in before) + what.new - what.deleted == sum(n for *_, n in after)


def test_a_file_in_two_shards_is_one_file():
    first, second = Segment("a", 1, "1", 0, 5, 9), Segment("a", 1, "1", 5, 4, 9)
    assert changes([Shard((first,))], [Shard((first,)), Shard((second,))]) == Changes(4, 0, 0)
    dead = Shard((first, second), frozenset({second.key}))
    assert changes([Shard((first, second))], [dead]) == Changes(0, 0, 4)
