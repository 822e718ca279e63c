"""The columns of what is written for users: predictions and quarantine. The version stands in each file's metadata."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "1"

TOP_K = pa.list_(pa.struct([("label", pa.string()), ("class_index", pa.int32()), ("probability", pa.float32())]))


def prediction_schema(
    id_type: pa.DataType, extra: Iterable[pa.Field] = (), embedding_size: int = 0, multi_label: bool = False
) -> pa.Schema:
    """Return the schema of a label file; ids and the columns passed through (`extra`) keep the types of the input.

    The column `embedding` is there where embeddings have a size, `labels` and `class_indices` are those of multi-label models.
    """
    said = [("labels", pa.list_(pa.string())), ("class_indices", pa.list_(pa.int32()))] if multi_label else []
    embedding = [("embedding", pa.list_(pa.float32(), embedding_size))] if embedding_size else []
    return pa.schema(
        [
            ("image_id", id_type),
            ("uri", pa.string()),  # below the input's url, or absolute; <file>#<row> for rows of tables
            ("label", pa.string()),  # the best class
            ("class_index", pa.int32()),
            ("confidence", pa.float32()),  # probability of the label, 0..1
            ("top_k", TOP_K),  # best first
            ("width", pa.int32()),  # pixels, upright
            ("height", pa.int32()),
            ("model", pa.string()),  # name@version of the bundle
            ("content_hash", pa.string()),  # SHA-256 of the encoded bytes, hex
            ("segment", pa.string()),  # file version and row range that the row was read from
            *said,  # all classes that reach their threshold, the surest first
            *embedding,  # what enters the classifier
            *((field.name, field.type) for field in extra),
        ],
        metadata={"nightshift.schema": f"predictions/{SCHEMA_VERSION}"},
    )


def quarantine_schema(id_type: pa.DataType, extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a quarantine file, with the same columns passed through."""
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
            *((field.name, field.type) for field in extra),
        ],
        metadata={"nightshift.schema": f"quarantine/{SCHEMA_VERSION}"},
    )


def judged_schema(extra: Iterable[pa.Field] = (), multi_label: bool = False) -> pa.Schema:
    """Return the schema of an evaluation's rows; `extra` are columns of the input."""
    found = (
        [
            ("labels", pa.list_(pa.string())),  # those of the truth that the model knows
            ("absent", pa.list_(pa.string())),  # known not to be there; null: all others
            ("predicted", pa.list_(pa.string())),  # all that are said
            ("confidence", pa.float64()),  # of the likeliest class
            ("probabilities", pa.large_list(pa.float32())),  # of every class
            ("unknown", pa.int32()),  # how many labels of the truth are no class of the model
        ]
        if multi_label
        else [
            ("label", pa.string()),  # the truth
            ("class_index", pa.int32()),
            ("predicted", pa.string()),
            ("predicted_index", pa.int32()),
            ("confidence", pa.float64()),  # of what is predicted
            ("probability", pa.float64()),  # of the truth
            ("rank", pa.int32()),  # how many classes are likelier than the truth
        ]
    )
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("uri", pa.string()),
            ("segment", pa.string()),
            ("position", pa.int64()),  # row in the whole file
            *found,
            ("errors", pa.int32()),  # how many mistakes: 0 is right
            *((field.name, field.type) for field in extra),
        ],
        metadata={"nightshift.schema": f"judged/{SCHEMA_VERSION}"},
    )


JUDGED_COLUMNS = frozenset((*judged_schema().names, *judged_schema(multi_label=True).names))
OWN_COLUMNS = frozenset(
    (*prediction_schema(pa.string(), embedding_size=1, multi_label=True).names, *quarantine_schema(pa.string()).names)
)


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of exactly this schema; values may be Arrow's scalars, also of a narrower type."""
    columns = [column_of([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def column_of(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array; they may be Arrow's scalars, also of a narrower type."""
    return pa.array([_fitting(value, kind) for value in values], kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    if not isinstance(value, pa.Scalar):
        return value
    if not value.is_valid:  # Arrow has no way from a null list to a value of an array
        return None
    value = value.value if isinstance(value, pa.DictionaryScalar) else value
    return value if value.type == kind else value.cast(kind)
