import pyarrow as pa
import pytest

from pipeline.columns import common_fields
from pipeline.errors import StorageError
from pipeline.shards import Segment, Shard
from pipeline.storage import FileStorage


@pytest.fixture
def shard_of(tmp_path, write_parquet):
    """Write files of one column each, and return their folder and a shard of them all."""

    def make(**types: pa.DataType) -> tuple[FileStorage, Shard]:
        folder = FileStorage(str(tmp_path))
        for name, kind in types.items():
            write_parquet(tmp_path / f"{name}.parquet", {"c": pa.nulls(2, kind), "d": [1, 2]})
        entries = [folder.stat(f"{name}.parquet") for name in types]
        return folder, Shard(tuple(Segment(*entry.identity, 0, 2, 2) for entry in entries))

    return make


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([pa.int8(), pa.int64()], pa.int64()),
        ([pa.null(), pa.string()], pa.string()),
        ([pa.int32(), pa.float64()], pa.float64()),
        ([pa.dictionary(pa.int32(), pa.string()), pa.string()], pa.string()),
        ([pa.list_(pa.int32()), pa.list_(pa.int64())], pa.list_(pa.field("element", pa.int64()))),
        ([pa.struct([("a", pa.int64())])] * 2, pa.struct([("a", pa.int64())])),
    ],
)
def test_one_type_holds_the_values_of_all_files(shard_of, kinds, common):
    folder, shard = shard_of(a=kinds[0], b=kinds[1])
    assert [(f.name, f.type) for f in common_fields(folder, shard, ["c", "d"])] == [("c", common), ("d", pa.int64())]


def test_types_that_nothing_holds_are_refused_with_column_and_file(shard_of):
    folder, shard = shard_of(a=pa.int64(), b=pa.string())
    with pytest.raises(StorageError, match=r"column 'c' has other types in other files .* from int64 in a\.parquet on"):
        common_fields(folder, shard, ["c"])


def test_partitions_and_csv_columns_are_text_and_need_no_file():
    shard = Shard((Segment("day=1/a.parquet", 1, "v", 0, 1, 1), Segment("day=2/b.csv", 1, "v", 0, 1, 1)))
    assert common_fields(FileStorage("/nowhere"), shard, ["day"]) == [pa.field("day", pa.string())]
    assert common_fields(FileStorage("/nowhere"), shard, []) == []
