import hashlib

import pyarrow as pa
import pytest

from pipeline.errors import NotFoundError, StorageError
from pipeline.storage import FileStorage
from pipeline.tables import create_table, read_schema, read_table, write_table

TABLE = pa.table({"id": [1, 2, 3], "name": ["a", None, "ü"]}).replace_schema_metadata({"nightshift.schema": "x/1"})


@pytest.fixture
def store(tmp_path):
    return FileStorage(str(tmp_path))


def test_a_table_reads_back_with_its_metadata(store):
    write_table(store, "a/t.parquet", TABLE)
    back = read_table(store, "a/t.parquet")
    assert back.equals(TABLE)
    assert back.schema.metadata[b"nightshift.schema"] == b"x/1"


def test_only_the_columns_asked_for(store):
    write_table(store, "t.parquet", TABLE)
    assert read_table(store, "t.parquet", ["name"]).to_pydict() == {"name": ["a", None, "ü"]}


def test_what_the_ledger_keeps_is_true_of_the_file(store):
    written = write_table(store, "t.parquet", TABLE)
    data = store.read("t.parquet")
    assert written.to_json() == {
        "path": "t.parquet",
        "rows": 3,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert write_table(store, "u.parquet", TABLE).sha256 == written.sha256


def test_a_table_without_rows_keeps_its_schema(store):
    assert write_table(store, "t.parquet", TABLE.slice(0, 0)).rows == 0
    assert read_table(store, "t.parquet").schema.equals(TABLE.schema)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "middle"])
def test_a_damaged_table_is_named(store, damage):
    write_table(store, "t.parquet", TABLE)
    data = store.read("t.parquet")
    damaged = {
        "empty": b"",
        "garbage": b"<html>" * 50,
        "cut": data[: len(data) // 2],
        "middle": data[:4] + bytes(60) + data[64:],
    }[damage]
    store.write("t.parquet", damaged)
    with pytest.raises(StorageError, match=r"t\.parquet is not a readable Parquet file"):
        read_table(store, "t.parquet")


def test_a_table_that_is_not_there(store):
    with pytest.raises(NotFoundError):
        read_table(store, "t.parquet")


def test_file_that_is_there_already_is_left_as_it_is_unless_damaged(store):
    written = create_table(store, "t.parquet", TABLE)
    found = store.stat("t.parquet")
    assert create_table(store, "t.parquet", TABLE) == written
    assert store.stat("t.parquet") == found
    store.write("t.parquet", b"damaged")
    assert create_table(store, "t.parquet", TABLE) == written
    assert read_table(store, "t.parquet").equals(TABLE)


def test_columns_are_read_from_the_end_of_a_file(store):
    write_table(store, "t.parquet", TABLE)
    assert read_schema(store, "t.parquet").equals(TABLE.schema, check_metadata=True)
    store.write("t.parquet", b"<html>" * 50)
    with pytest.raises(StorageError, match=r"t\.parquet is not a readable Parquet file"):
        read_schema(store, "t.parquet")
