"""The rows of an evaluation: for each judged image the truth, what the model said, and how many mistakes that is.

One Parquet file beside the figures, from which all of them can be computed again, and models compared image by image.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.rows import Row
from pipeline.schema import table_of

KEY = ("segment", "position")  # what tells an image from all others, whatever its id


def judged_rows(rows: Sequence[Row], found: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of rows with what was found of each; the columns of the input come with them."""
    known = (
        {"image_id": str(row.image_id), "uri": row.uri, "segment": row.segment, "position": row.position, **row.extra}
        for row in rows
    )
    return table_of([{**row, **judged} for row, judged in zip(known, found, strict=True)], schema)


def joined_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Return all rows, in an order that no worker decides; a column of numbers here and text there becomes text."""
    schema = tables[0].schema
    for place, field in enumerate(schema):
        if len({table.schema.field(place).type for table in tables}) > 1:
            schema = schema.set(place, pa.field(field.name, pa.string()))
    return pa.concat_tables([table.cast(schema) for table in tables]).sort_by([(name, "ascending") for name in KEY])
