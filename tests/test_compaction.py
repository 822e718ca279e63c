import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline import compaction
from pipeline.compaction import Held, arrange, intact
from pipeline.documents import digest
from pipeline.layout import Generation
from pipeline.shards import Segment, Shard
from pipeline.tables import Written, read_table, write_table

GENERATION = Generation("data", "m", "1")
NONE = np.empty(0, np.int64)


def shard_of(number: int, rows: int) -> Shard:
    """Two segments, of which the first has half of the rows."""
    half = rows // 2
    parts = [Segment(f"{number}-{part}", 1, "v", 0, count, count) for part, count in enumerate((half, rows - half))]
    return Shard(tuple(parts))


@pytest.fixture
def hold(night):
    """Write a shard's label file: `hold(number, rows)`; ids are `<number>-<row>`."""

    def write(number: int, rows: int, generation=GENERATION, run_id="r", kind=None) -> Held:
        shard = shard_of(number, rows)
        segments = [segment.key for segment in shard.segments for _ in range(segment.num_rows)]
        ids = pa.array([f"{number}-{row}" for row in range(rows)]) if kind is None else pa.array(range(rows), kind)
        table = pa.table({"image_id": ids, "segment": segments, "run": [run_id] * rows})
        file = write_table(night.store, generation.labels(shard.id, run_id), table)
        return Held(shard, generation, file, str(table.schema), NONE, NONE)

    return write


def without_first_segment(held: Held) -> Held:
    first = held.shard.segments[0]
    return replace(held, shard=Shard(held.shard.segments, frozenset((first.key,))), stale=np.arange(first.num_rows))


def ids_of(night, entries) -> list[str]:
    return [str(i) for entry in entries for i in read_table(night.store, entry["path"])["image_id"].to_pylist()]


def expected(held) -> list[str]:
    left_out = {h.shard.id: {*h.stale.tolist(), *h.repeated.tolist()} for h in held}
    return [
        f"{h.shard.segments[0].path[:-2]}-{row}"
        for h in held
        for row in range(h.file.rows)
        if row not in left_out[h.shard.id]
    ]


class Counting:
    """A storage that remembers what was read and written."""

    def __init__(self, storage) -> None:
        self._storage, self.read_paths, self.created = storage, [], []

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def read(self, path, version=None):
        self.read_paths.append(path)
        return self._storage.read(path, version)

    def create(self, path, data):
        self.created.append(path)
        self._storage.create(path, data)


def test_few_small_files_are_listed_as_they_are(night, hold):
    held = [hold(n, 3) for n in range(16)]
    counting = Counting(night.store)
    entries = arrange(counting, "labels", held, [], 100)
    assert [entry["path"] for entry in entries] == [h.file.path for h in held]
    assert counting.read_paths == counting.created == []


@pytest.mark.parametrize("kind", ["labels", "quarantine"])
def test_many_small_files_become_one_that_names_their_shards(night, hold, kind):
    held = [hold(n, 3) for n in range(17)]
    (entry,) = arrange(night.store, kind, held, [], 100)
    assert entry["path"].startswith(f"{kind}/data/m@1/compacted/")
    assert entry["shard_ids"] == [h.shard.id for h in held]
    assert entry["shard_rows"] == [3] * 17
    assert (entry["rows"], entry["generation"]) == (51, "m@1")
    assert ids_of(night, [entry]) == expected(held)


def test_nothing_is_joined_when_switched_off_or_large(night, hold):
    held = [hold(n, 3) for n in range(40)]
    assert len(arrange(night.store, "labels", held, [], 0)) == 40
    assert len(arrange(night.store, "labels", held, [], 3)) == 40


def test_files_that_are_right_are_listed_again_without_a_look_at_them(night, hold):
    held = [hold(n, 3) for n in range(17)]
    before = arrange(night.store, "labels", [*held[:16], without_first_segment(held[16])], [], 100)
    counting = Counting(night.store)
    more = [*held[:16], without_first_segment(held[16]), hold(17, 5)]
    after = arrange(counting, "labels", more, before, 100)
    assert after[0] == before[0]
    assert len(after) == 2
    assert counting.read_paths == counting.created == []


def test_rows_that_vanished_leave_by_a_copy_of_the_joined_file(night, hold):
    held = [hold(n, 4) for n in range(20)]
    before = arrange(night.store, "labels", held, [], 1000)
    assert len(before) == 1
    counting = Counting(night.store)
    now = [*held[:7], *map(without_first_segment, held[7:12]), *held[13:]]
    after = arrange(counting, "labels", now, before, 1000)
    assert ids_of(night, after) == expected(now)
    assert counting.read_paths == [before[0]["path"]]
    assert ids_of(night, before) == expected(held)  # who reads yesterday's view goes on reading it


def test_relabelled_shard_leaves_the_joined_file_for_its_own(night, hold):
    held = [hold(n, 4) for n in range(20)]
    before = arrange(night.store, "labels", held, [], 1000)
    now = [*held[:5], hold(5, 4, run_id="r2"), *held[6:]]
    after = arrange(night.store, "labels", now, before, 1000)
    assert len(after) == 2
    assert sorted(ids_of(night, after)) == sorted(expected(now))
    runs = [read_table(night.store, entry["path"])["run"].to_pylist() for entry in after]
    assert sum(run.count("r2") for run in runs) == 4


def test_row_whose_id_is_free_again_comes_back(night, hold):
    held = [hold(n, 4) for n in range(20)]
    repeating = [*held[:19], replace(held[19], repeated=np.array([1, 3]))]
    before = arrange(night.store, "labels", repeating, [], 1000)
    assert ids_of(night, before) == expected(repeating)
    after = arrange(night.store, "labels", held, before, 1000)
    assert sorted(ids_of(night, after)) == sorted(expected(held))


def test_shard_of_which_nothing_is_left_is_in_no_file(night, hold):
    held = [hold(n, 2) for n in range(17)]
    gone = replace(held[3], repeated=np.array([0, 1]))
    entries = arrange(night.store, "labels", [*held[:3], gone, *held[4:]], [], 100)
    assert len(entries) == 16
    assert gone.shard.id not in {shard_id for entry in entries for shard_id in entry["shard_ids"]}
    assert arrange(night.store, "labels", [], entries, 100) == []


def test_generations_and_schemas_are_not_mixed(night, hold):
    other = Generation("data", "m", "2")
    held = [
        *(hold(n, 2) for n in range(17)),
        *(hold(n, 2, other) for n in range(17, 34)),
        *(hold(n, 2, kind=pa.int64()) for n in range(34, 51)),
    ]
    entries = arrange(night.store, "labels", held, [], 100)
    assert [(entry["generation"], entry["rows"]) for entry in entries] == [("m@1", 34), ("m@2", 34), ("m@1", 34)]


def test_files_are_not_larger_than_they_may_be(night, hold, monkeypatch):
    monkeypatch.setattr(compaction, "ROWS_PER_FILE", 100)
    held = [hold(n, 7) for n in range(60)]
    entries = arrange(night.store, "labels", held, [], 1000)
    assert len(entries) == 5
    assert all(70 <= entry["rows"] <= 105 for entry in entries)
    assert ids_of(night, entries) == expected(held)
    more = [hold(n, 7) for n in range(60, 62)]
    assert arrange(night.store, "labels", [*held, *more], entries, 1000)[:5] == entries


def test_bytes_are_limited_too(night, hold, monkeypatch):
    held = [hold(n, 7) for n in range(60)]
    monkeypatch.setattr(compaction, "BYTES_PER_FILE", held[0].file.size_bytes * 10)
    assert 5 <= len(arrange(night.store, "labels", held, [], 1000)) <= 7


def test_copy_that_is_lost_or_damaged_is_made_again(night, hold):
    held = [hold(n, 3) for n in range(17)]
    before = arrange(night.store, "labels", held, [], 100)
    assert intact(night.store, before) == before
    night.store.write(before[0]["path"], b"damaged")
    assert intact(night.store, before) == []
    assert arrange(night.store, "labels", held, [], 100) == before
    night.store.delete(before[0]["path"])
    assert intact(night.store, before) == []
    assert arrange(night.store, "labels", held, [], 100) == before
    assert ids_of(night, before) == expected(held)


def test_same_copy_made_again_leaves_the_file_alone(night, hold):
    held = [hold(n, 3) for n in range(17)]
    (entry,) = arrange(night.store, "labels", held, [], 100)
    found = night.store.stat(entry["path"])
    arrange(night.store, "labels", held, [], 100)
    assert night.store.stat(entry["path"]) == found


@pytest.mark.parametrize(
    ("rows", "tier"), [(1, 0), (15, 0), (16, 1), (255, 1), (256, 2), (4095, 2), (4096, 3), (65536, 4)]
)
def test_tiers(rows, tier):
    assert compaction._tier(rows) == tier


class Books:
    """Nights without storage: what is copied, by the real rules."""

    def __init__(self, monkeypatch) -> None:
        self.entries, self.held, self.copied = [], [], 0
        monkeypatch.setattr(compaction, "_copy", self._copy)

    def night(self, *rows: int) -> None:
        for count in rows:
            shard = shard_of(len(self.held), count)
            file = Written(f"labels/data/m@1/{shard.id}.parquet", count, 100 * count, shard.id)
            self.held.append(Held(shard, GENERATION, file, "s", NONE, NONE))
        self.entries = arrange(None, "labels", self.held, self.entries, 10_000)
        assert sum(entry["rows"] for entry in self.entries) == sum(h.rows for h in self.held)

    def _copy(self, storage, kind, group):
        rows = sum(piece.rows for piece in group)
        self.copied += rows
        name = digest([piece.file.sha256 for piece in group])
        return Written(f"labels/data/m@1/compacted/{name}.parquet", rows, 100 * rows, name)


def test_ten_thousand_tiny_shards_become_few_files(monkeypatch):
    books = Books(monkeypatch)
    books.night(*[100] * 10_000)
    assert len(books.entries) == 10
    assert books.copied == 1_000_000


@pytest.mark.parametrize("most", [1, 60, 700])
def test_rows_are_copied_a_few_times_however_many_nights_there_are(monkeypatch, most):
    books, generator = Books(monkeypatch), random.Random(0)
    for _ in range(400):
        books.night(generator.randint(1, most))
        assert len(books.entries) <= 4 * 17 + sum(h.rows for h in books.held) // 10_000
    assert books.copied <= 4 * sum(h.rows for h in books.held)
