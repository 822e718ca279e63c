import pyarrow as pa
import pytest

from pipeline.schema import OWN_COLUMNS, SCHEMA_VERSION, TOP_K, prediction_schema, quarantine_schema, table_of


def test_predictions_have_the_documented_columns():
    assert prediction_schema(pa.int64()).names == [
        "image_id", "uri", "label", "class_index", "confidence", "top_k", "width", "height", "model", "content_hash",
        "segment",
    ]  # fmt: skip


def test_quarantine_has_the_documented_columns():
    assert quarantine_schema(pa.string()).names == [
        "image_id", "uri", "stage", "reason", "error_type", "message", "content_hash", "segment",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint32(), pa.string(), pa.large_string()])
def test_ids_keep_the_type_of_the_input(kind):
    for schema in (prediction_schema(kind), quarantine_schema(kind)):
        assert schema.field("image_id").type == kind


def test_the_version_stands_in_the_metadata():
    assert prediction_schema(pa.string()).metadata == {b"nightshift.schema": f"predictions/{SCHEMA_VERSION}".encode()}
    assert quarantine_schema(pa.string()).metadata == {b"nightshift.schema": f"quarantine/{SCHEMA_VERSION}".encode()}


def test_rows_become_a_table_of_exactly_the_schema():
    schema = prediction_schema(pa.int64())
    row = dict.fromkeys(schema.names) | {
        "image_id": 7,
        "top_k": [{"label": "cat", "class_index": 3, "probability": 0.5}],
    }
    table = table_of([row], schema)
    assert table.schema.equals(schema, check_metadata=True)
    assert table["top_k"].type == TOP_K
    assert table.to_pylist() == [row]


def test_no_rows_give_an_empty_table_of_the_schema():
    schema = quarantine_schema(pa.string())
    assert table_of([], schema).schema.equals(schema, check_metadata=True)
    assert table_of([], schema).num_rows == 0


def test_a_value_of_another_type_is_refused():
    with pytest.raises(pa.ArrowException):
        table_of([{"image_id": "x"}], quarantine_schema(pa.int64()))


EXTRA = [pa.field("price", pa.float32()), pa.field("box", pa.struct([("x", pa.int64())]))]


def test_columns_passed_through_stand_after_ours():
    for make in (prediction_schema, quarantine_schema):
        schema = make(pa.int64(), EXTRA)
        assert schema.names == [*make(pa.int64()).names, "price", "box"]
        assert set(schema.names) - {"price", "box"} <= OWN_COLUMNS
        assert [schema.field(field.name).type for field in EXTRA] == [field.type for field in EXTRA]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1, None], pa.int8()), pa.int64()),
        (pa.array(["a", None]).dictionary_encode(), pa.string()),
        (pa.array(["a", None], pa.string_view()), pa.string()),
        (pa.array([[1, 2], None], pa.list_(pa.int32())), pa.list_(pa.int64())),
        (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), pa.map_(pa.string(), pa.int64())),
        (pa.array([b"xy", None], pa.binary(2)), pa.binary(2)),
        (pa.array([5, None], pa.duration("ns")), pa.duration("ns")),
        (pa.array([None, None], pa.null()), pa.string()),
        (pa.array([b"0" * 16, None], pa.uuid()), pa.uuid()),
    ],
    ids=str,
)
def test_scalars_become_values_of_the_column(values, kind):
    rows = [{"n": 1, "x": value} for value in values] + [{"n": 2}]
    table = table_of(rows, pa.schema([("n", pa.int64()), ("x", kind)]))
    assert table.schema.field("x").type == kind
    assert table["x"].to_pylist() == [*values.to_pylist(), None]
