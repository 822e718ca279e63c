"""What a Delta table can say of our Parquet files: columns with the types that it knows, and statistics per file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.schema import prediction_schema
from pipeline.storage import Storage, join

LONGEST_STATISTIC = 64  # characters: it stands in the table's log, which every reader reads
OWN = prediction_schema(pa.string()).remove(0)  # the columns that are alike in every file


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says: columns as a Delta table declares them, and statistics as its log has them."""

    columns: Mapping[str, pa.DataType]
    statistics: str


def read_footer(storage: Storage, path: str) -> Footer:
    """Read the end of a label file; UsageError when a Delta table cannot have one of its columns."""
    with storage.open(path) as file:
        metadata = pq.read_metadata(file)
    columns = declared(metadata.schema.to_arrow_schema(), join(storage.url, path))
    return Footer(columns, json.dumps(_statistics(metadata, columns)))


def declared(schema: pa.Schema, where: str) -> dict[str, pa.DataType]:
    """Return the columns of a table for files of this schema; those without a type yet are left to other files' rows."""
    columns = {field.name: _declared(field, where) for field in schema}
    return {name: kind for name, kind in columns.items() if not pa.types.is_null(kind)}


def _declared(field: pa.Field, where: str) -> pa.DataType:
    """Return the type of a table's column: ids and copied columns get the widest integer, as other files may need it."""
    kind = delta_type(field.type)
    if kind is None:
        raise UsageError(
            f"{where}: the column {field.name} has the type {field.type}, which a Delta table cannot have; leave it out of "
            "label.columns, or set output.table to files"
        )
    return pa.int64() if pa.types.is_integer(kind) and field.name not in OWN.names else kind


def delta_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type as which Delta reads an Arrow type without loss (times to microseconds), None when there is none."""
    is_a = pa.types
    if is_a.is_dictionary(kind):
        return delta_type(kind.value_type)
    if is_a.is_unsigned_integer(kind):  # Delta has signed ones only
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64()}.get(kind.bit_width, pa.decimal128(20, 0))
    if is_a.is_float16(kind):
        return pa.float32()
    if is_a.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if is_a.is_list(kind) or is_a.is_large_list(kind) or is_a.is_fixed_size_list(kind):
        inner = delta_type(kind.value_type)
        return inner and pa.list_(inner)
    if is_a.is_struct(kind):
        inners = [(field.name, delta_type(field.type)) for field in kind]
        return None if any(inner is None for _, inner in inners) else pa.struct(inners)
    return _plain_type(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    is_a = pa.types
    if is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind):
        return pa.string()
    if is_a.is_binary(kind) or is_a.is_large_binary(kind) or is_a.is_fixed_size_binary(kind):
        return pa.binary()
    known = (is_a.is_null, is_a.is_boolean, is_a.is_integer, is_a.is_floating, is_a.is_date32, is_a.is_decimal128)
    return kind if any(test(kind) for test in known) else None


def _statistics(metadata: pq.FileMetaData, columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Return the number of rows, and the least and greatest numbers and short words of flat columns."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        found = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        if name not in columns or not all(s is not None and s.has_min_max for s in found):
            continue
        low, high = [s.min for s in found], [s.max for s in found]
        if low and all(_is_plain(value) for value in low + high):
            least[name], most[name] = min(low), max(high)
    return {"numRecords": metadata.num_rows, "minValues": least, "maxValues": most}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_STATISTIC
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
