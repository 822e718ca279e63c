import json

import pyarrow as pa
import pytest

from pipeline.deltaschema import delta_type, read_footer
from pipeline.errors import UsageError
from pipeline.schema import prediction_schema
from pipeline.tables import write_table


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), pa.int8()), (pa.uint8(), pa.int16()), (pa.uint16(), pa.int32()), (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.decimal128(20, 0)), (pa.float16(), pa.float32()), (pa.float64(), pa.float64()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()), (pa.string_view(), pa.string()),
        (pa.binary(4), pa.binary()), (pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.uint8(), 3), pa.list_(pa.int16())), (pa.struct([("a", pa.uint8())]), pa.struct([("a", pa.int16())])),
        (pa.null(), pa.null()), (pa.date32(), pa.date32()), (pa.decimal128(9, 2), pa.decimal128(9, 2)),
        (pa.time64("us"), None), (pa.duration("s"), None), (pa.list_(pa.duration("s")), None),
        (pa.struct([("a", pa.time32("s"))]), None), (pa.map_(pa.string(), pa.int32()), None),
    ],
    ids=str,
)  # fmt: skip
def test_type_that_delta_reads_without_loss(kind, expected):
    assert delta_type(kind) == expected


@pytest.fixture
def footer(night):
    def write(table: pa.Table):
        write_table(night.store, "x.parquet", table)
        return read_footer(night.store, "x.parquet")

    return write


def test_own_integers_stay_and_others_are_the_widest(footer):
    columns = footer(prediction_schema(pa.int32()).empty_table()).columns
    assert columns["image_id"] == pa.int64()
    assert columns["class_index"] == columns["width"] == pa.int32()
    assert columns["top_k"].value_type.field("class_index").type == pa.int32()


def test_column_of_no_type_is_left_to_other_files(footer):
    assert footer(pa.table({"a": pa.nulls(2), "b": [1, 2]})).columns == {"b": pa.int64()}


def test_column_that_does_not_fit_is_named_with_its_file(night, footer):
    with pytest.raises(UsageError, match=r"store/x.parquet: the column d has the type duration"):
        footer(pa.table({"d": pa.array([1], pa.duration("us"))}))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([3, 1, None], pa.int32(), (1, 3)), ([0.5, 0.25], pa.float32(), (0.25, 0.5)), (["b", "a"], pa.string(), ("a", "b")),
        (["x" * 65], pa.string(), None), ([True], pa.bool_(), None), ([b"x"], pa.binary(), None), ([None], pa.int32(), None),
        ([float("inf"), 1.0], pa.float64(), None), ([[1]], pa.list_(pa.int32()), None), ([], pa.int32(), None),
    ],
    ids=str,
)  # fmt: skip
def test_statistics_are_numbers_and_short_words(footer, values, kind, expected):
    found = json.loads(footer(pa.table({"a": pa.array(values, kind)})).statistics)
    assert found["numRecords"] == len(values)
    assert (found["minValues"].get("a"), found["maxValues"].get("a")) == (expected or (None, None))
