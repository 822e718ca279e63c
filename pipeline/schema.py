"""The columns of what is written for users: predictions and quarantine. The version stands in each file's metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "1"

TOP_K = pa.list_(pa.struct([("label", pa.string()), ("class_index", pa.int32()), ("probability", pa.float32())]))


def prediction_schema(id_type: pa.DataType) -> pa.Schema:
    """Return the schema of a label file; ids keep the type that they have in the input."""
    return pa.schema(
        [
            ("image_id", id_type),
            ("uri", pa.string()),  # below the input's url, or absolute; <file>#<row> for rows of tables
            ("label", pa.string()),
            ("class_index", pa.int32()),
            ("confidence", pa.float32()),  # probability of the label, 0..1
            ("top_k", TOP_K),  # best first
            ("width", pa.int32()),  # pixels, upright
            ("height", pa.int32()),
            ("model", pa.string()),  # name@version of the bundle
            ("content_hash", pa.string()),  # SHA-256 of the encoded bytes, hex
            ("segment", pa.string()),  # file version and row range that the row was read from
        ],
        metadata={"nightshift.schema": f"predictions/{SCHEMA_VERSION}"},
    )


def quarantine_schema(id_type: pa.DataType) -> pa.Schema:
    """Return the schema of a quarantine file."""
    return pa.schema(
        [
            ("image_id", id_type),
            ("uri", pa.string()),
            ("stage", pa.string()),  # read, decode or publish
            ("reason", pa.string()),  # a slug to group by
            ("error_type", pa.string()),
            ("message", pa.string()),
            ("content_hash", pa.string()),
            ("segment", pa.string()),
        ],
        metadata={"nightshift.schema": f"quarantine/{SCHEMA_VERSION}"},
    )


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of exactly this schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)
