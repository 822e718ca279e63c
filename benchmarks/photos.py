"""The photos that the benchmark labels: flowers5, repeated with unique ids until there are as many as wanted."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE, ROWS_PER_GROUP = 500, 100


def make_photos(source: Path, folder: Path, count: int) -> int:
    """Write `count` photos as Parquet files of 500 with the columns image_id and image; return their bytes.

    The images are not compressed again; each repetition of a photo has an id of its own.
    """
    table = pq.read_table(source, columns=["image_id", "image"])
    folder.mkdir(parents=True)
    written = 0
    for number, first in enumerate(range(0, count, ROWS_PER_FILE)):
        rows = range(first, min(first + ROWS_PER_FILE, count))
        part = table.take(pa.array([row % table.num_rows for row in rows]))
        ids = [
            f"{name}-{row // table.num_rows:03d}" for row, name in zip(rows, part["image_id"].to_pylist(), strict=True)
        ]
        part = part.set_column(0, "image_id", pa.array(ids))
        path = folder / f"photos-{number:05d}.parquet"
        pq.write_table(part, path, row_group_size=ROWS_PER_GROUP, compression={"image_id": "zstd", "image": "none"})
        written += path.stat().st_size
    return written
