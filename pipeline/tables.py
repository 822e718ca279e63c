"""Parquet tables in a Storage: written whole, read whole."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.refusals import printable
from pipeline.storage import Storage, join


@dataclass(frozen=True)
class Written:
    """What a ledger keeps of a file: enough to notice that it is another one."""

    path: str
    rows: int
    size_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def write_table(storage: Storage, path: str, table: pa.Table) -> Written:
    """Replace the Parquet file at `path` by `table` (zstd)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue()
    storage.write(path, data)
    return Written(path, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def read_table(storage: Storage, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file of ours, or some of its columns; StorageError when it is damaged."""
    data = storage.read(path)
    try:
        return pq.read_table(io.BytesIO(data), columns=list(columns) if columns is not None else None)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise StorageError(f"{printable(join(storage.url, path))} is not a readable Parquet file: {error}") from error
