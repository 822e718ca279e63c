import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from pipeline.duplicates import CACHE_FILES, digest64, find_repeated, read_digests
from pipeline.layout import identities
from pipeline.tables import read_table, write_table


@pytest.fixture
def label_file(night):
    """Write a label file of ids: `label_file(name, ids)`; every row is a segment of its own, called like its uri."""

    def write(name: str, ids, kind=None, **extra):
        uris = [f"{name}#{row}" for row in range(len(ids))]
        columns = {
            "image_id": pa.array(ids, kind),
            "uri": uris,
            "segment": uris,
            "content_hash": ["h"] * len(ids),
            **extra,
        }
        return write_table(night.store, f"labels/{name}.parquet", pa.table(columns))

    return write


class Counting:
    def __init__(self, storage) -> None:
        self._storage, self.read_paths = storage, []

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def read(self, path, version=None):
        self.read_paths.append(path)
        return self._storage.read(path, version)


def look(storage, files, live=None):
    digests = read_digests(storage, "data", files)
    return find_repeated(storage, files, digests, live or [np.ones(file.rows, bool) for file in files])


def test_digests_are_the_same_in_every_process():
    assert digest64(["a", "b"]).tolist() == [3405396810240292928, 8453121595177857668]
    assert digest64([]).tolist() == []


def test_first_row_stays_and_the_others_are_named_with_both_places(night, label_file):
    files = [label_file("a", ["x", "y", "x"]), label_file("b", ["z"]), label_file("c", ["y", "w", "y"])]
    found = look(night.store, files)
    assert [positions.tolist() for positions in found.positions] == [[2], [], [0, 2]]
    rows = found.table().to_pylist()
    assert [(row["uri"], row["image_id"]) for row in rows] == [("a#2", "x"), ("c#0", "y"), ("c#2", "y")]
    assert "is at a#1 (kept) and again at c#2 (left out)" in rows[2]["message"]


def test_rows_that_do_not_count_take_no_id(night, label_file):
    files = [label_file("a", ["x", "y"]), label_file("b", ["x"]), label_file("c", ["x"])]
    found = look(night.store, files, [np.array([False, True]), np.array([True]), np.array([True])])
    assert [positions.tolist() for positions in found.positions] == [[], [], [0]]
    assert "is at b#0 (kept) and again at c#0" in str(found.rows[0]["message"])


def test_equal_digests_of_different_ids_repeat_nothing(night, label_file, monkeypatch):
    monkeypatch.setattr("pipeline.duplicates.digest64", lambda words: np.full(len(words), 7, np.uint64))
    files = [label_file("a", ["x", "y"]), label_file("b", ["z", "y"])]
    found = look(night.store, files)
    assert [positions.tolist() for positions in found.positions] == [[], [1]]


def test_number_and_word_that_read_alike_are_one_id(night, label_file):
    found = look(night.store, [label_file("a", [1, 2], pa.int64()), label_file("b", ["2", "3"])])
    assert found.table()["image_id"].to_pylist() == ["2"]


def test_columns_that_are_passed_through_come_along_with_their_types(night, label_file):
    taken, tags = pa.array([1, None], pa.timestamp("ns")), pa.array([["a", None], None])
    files = [
        label_file("a", ["x", "y"], price=pa.array([1, 2], pa.int16()), code=pa.array([7, 8])),
        label_file(
            "b", ["y", "x"], price=pa.array([3, 4], pa.int64()), code=pa.array(["007", None]), taken=taken, tags=tags
        ),
        label_file("c", ["x"], price=pa.array([5], pa.int16()), code=pa.array([9])),
    ]
    table = look(night.store, files).table()
    assert table.schema.field("taken").type == pa.timestamp("ns")
    assert table.select(["image_id", "price", "code", "tags", "stage"]).to_pylist() == [
        {"image_id": "y", "price": 3, "code": "007", "tags": ["a", None], "stage": "publish"},
        {"image_id": "x", "price": 4, "code": None, "tags": None, "stage": "publish"},
        {"image_id": "x", "price": 5, "code": "9", "tags": None, "stage": "publish"},
    ]


def test_nothing_repeats_in_nothing(night, label_file):
    assert look(night.store, []).rows == []
    assert look(night.store, [label_file("a", [], pa.string())]).rows == []


def test_a_night_reads_only_its_own_files(night, label_file):
    files = [label_file(f"{n}", [f"{n}-{row}" for row in range(3)]) for n in range(5)]
    first = read_digests(night.store, "data", files)
    counting, more = Counting(night.store), label_file("new", ["q"])
    again = read_digests(counting, "data", [*files, more])
    assert [path for path in counting.read_paths if path.startswith("labels")] == [more.path]
    for old, new in zip(first, again, strict=False):
        assert old.ids.tolist() == new.ids.tolist()
        assert old.segments.tolist() == new.segments.tolist()
        assert old.schema == new.schema


def test_file_written_again_is_read_again(night, label_file):
    look(night.store, [label_file("a", ["x"]), label_file("b", ["y"])])
    again = look(night.store, [label_file("a", ["y"]), label_file("b", ["y"])])
    assert again.table()["image_id"].to_pylist() == ["y"]


def test_cache_of_many_nights_is_joined_and_forgets_what_is_gone(night, label_file):
    files = [label_file(f"{n}", [f"{n}"]) for n in range(CACHE_FILES + 1)]
    for number in range(len(files)):
        read_digests(night.store, "data", files[: number + 1])
    (entry,) = night.store.list(identities("data"))
    assert read_table(night.store, entry.path).num_rows == len(files)
    counting = Counting(night.store)
    read_digests(counting, "data", files)
    assert counting.read_paths == [entry.path]


@pytest.mark.parametrize("damage", ["garbage", "another table"])
def test_damaged_cache_is_as_none(night, label_file, damage):
    files = [label_file("a", ["x", "x"])]
    look(night.store, files)
    (entry,) = night.store.list(identities("data"))
    if damage == "garbage":
        night.store.write(entry.path, b"garbage")
    else:
        write_table(night.store, entry.path, pa.table({"x": [1]}))
    assert look(night.store, files).table()["image_id"].to_pylist() == ["x"]


def test_several_at_once_agree(night, label_file, run_together):
    files = [label_file(f"{n}", [f"{n % 7}"]) for n in range(30)]
    results = run_together(*[lambda: len(look(night.store, files).rows)] * 5)
    assert results == [23] * 5


def test_a_hundred_thousand_ids_take_little_memory(night, label_file):
    """The second night: what grows with the data is 16 bytes an image, here 1.6 MB, and copies of it while it is sorted."""
    files = [label_file(f"{n}", [f"image-{n}-{row:05d}.jpg" for row in range(10_000)]) for n in range(10)]
    read_digests(night.store, "data", files)
    tracemalloc.start()
    try:
        assert look(night.store, files).rows == []
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
