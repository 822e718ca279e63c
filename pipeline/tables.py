"""Parquet tables in a Storage: written whole, read whole."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import AlreadyExistsError, StorageError
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
    data = _encoded(table)
    storage.write(path, data)
    return Written(path, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def create_table(storage: Storage, path: str, table: pa.Table) -> Written:
    """Write a table under a name made of its content: the same file that is there already is left as it is.

    Somebody may be reading it, and whoever wrote it wrote the same rows. One of another size is damaged, and replaced.
    """
    data = _encoded(table)
    try:
        storage.create(path, data)
    except AlreadyExistsError:
        if storage.stat(path).size_bytes != len(data):
            storage.write(path, data)
    return Written(path, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def read_table(storage: Storage, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file of ours, or some of its columns; StorageError when it is damaged."""
    data = storage.read(path)
    try:
        return pq.read_table(io.BytesIO(data), columns=list(columns) if columns is not None else None)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise StorageError(f"{printable(join(storage.url, path))} is not a readable Parquet file: {error}") from error


def read_schema(storage: Storage, path: str) -> pa.Schema:
    """Return the columns of a Parquet file of ours by reading its end only; StorageError when it is damaged."""
    try:
        with storage.open(path) as file:
            return pq.read_schema(file)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise StorageError(f"{printable(join(storage.url, path))} is not a readable Parquet file: {error}") from error


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
