import logging

import pytest

from pipeline.rollup import read_rollup, write_rollup
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

PATH = "ledger/rollup.parquet"


@pytest.fixture(params=["file", "s3"])
def store(request, s3, tmp_path):
    url, settings = (str(tmp_path / "store"), StorageSettings()) if request.param == "file" else s3
    return open_storage(url, settings)


def fill(store, names):
    """Write small objects and roll them up as they were written."""
    written = [(store.write(f"ledger/{name}.json", name.encode()), name.encode()) for name in names]
    write_rollup(store, PATH, written)
    return written


def listed(store):
    return {entry.path: entry for entry in store.list("ledger") if entry.path.endswith(".json")}


def held(store):
    return {entry.path.rsplit("/", 1)[-1]: document for entry, document in read_rollup(store, PATH, listed(store))}


def test_what_a_write_returns_is_what_a_listing_shows(store):
    written = fill(store, ["a", "b"])
    assert [entry for entry, _ in written] == sorted(listed(store).values(), key=lambda entry: entry.path)


def test_documents_come_back_with_the_objects_that_they_are_copies_of(store):
    fill(store, ["a", "b"])
    assert held(store) == {"a.json": b"a", "b.json": b"b"}


def test_an_object_that_was_written_again_or_deleted_or_came_later_is_not_in_it(store):
    fill(store, ["a", "b", "c"])
    store.write("ledger/a.json", b"another")
    store.delete("ledger/b.json")
    store.write("ledger/d.json", b"d")
    assert held(store) == {"c.json": b"c"}


def test_of_two_roll_ups_the_last_one_stands(store):
    fill(store, ["a", "b"])
    fill(store, ["c"])
    assert held(store) == {"c.json": b"c"}


def test_without_a_roll_up_there_is_nothing_in_it(store):
    assert list(read_rollup(store, PATH, {})) == []


def test_more_documents_than_are_packed_at_a_time(store, monkeypatch):
    monkeypatch.setattr("pipeline.rollup.AT_ONCE", 3)
    fill(store, [str(number) for number in range(10)])
    assert held(store) == {f"{number}.json": str(number).encode() for number in range(10)}


@pytest.mark.parametrize("damage", ["no_parquet", "cut", "other_columns", "empty"])
def test_a_damaged_roll_up_gives_nothing_wrong_and_says_so(store, damage, write_parquet, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "nightshift")
    fill(store, [f"{number:03d}" for number in range(50)])
    data = store.read(PATH)
    write_parquet(tmp_path / "other.parquet", {"x": [1]})
    store.write(
        PATH,
        {
            "no_parquet": b"{}",
            "cut": data[: len(data) // 2],
            "other_columns": (tmp_path / "other.parquet").read_bytes(),
            "empty": b"",
        }[damage],
    )
    assert held(store) == {}
    assert "a damaged roll-up of the ledger" in caplog.text


def test_a_flipped_bit_anywhere_never_gives_another_document(tmp_path):
    store = open_storage(str(tmp_path / "store"), StorageSettings())
    fill(store, [f"{number:03d}" for number in range(50)])
    whole, there = store.read(PATH), listed(store)
    for position in range(0, len(whole), 5):
        store.write(PATH, whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        for entry, document in read_rollup(store, PATH, there):
            assert entry.path == f"ledger/{document.decode()}.json"
