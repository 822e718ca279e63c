import pyarrow as pa
import pytest

from pipeline.schema import SCHEMA_VERSION, TOP_K, prediction_schema, quarantine_schema, table_of


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
