"""Which images have an id that another one took before: exactly, from 16 bytes an image, and read once.

The rows of a label file never change, so digests of their ids and segments are kept in the store's cache: a night
reads only the files that it wrote, and those where two digests are equal.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import layout
from pipeline.documents import digest
from pipeline.errors import StorageError
from pipeline.schema import OWN_COLUMNS, quarantine_schema, table_of
from pipeline.storage import Storage
from pipeline.tables import Written, read_table, write_table

READS_AT_ONCE = 8
CACHE_FILES = 16  # more are joined into one: a year of nights is not a year of requests

PLAIN = ("uri", "segment", "content_hash")  # columns that labels and quarantine share, of one type in all files

Numbers = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
CACHE_SCHEMA = pa.schema(
    [("key", pa.string()), ("schema", pa.string()), ("ids", pa.list_(pa.uint64())), ("segments", pa.list_(pa.uint64()))]
)


@dataclass(frozen=True)
class Digests:
    """Of the rows of one file, in its order: 64 bits of each id and of each segment key; and which columns it has."""

    ids: Numbers
    segments: Numbers
    schema: str


@dataclass(frozen=True)
class Repeated:
    """Rows to leave out: their positions per file, and what the quarantine says of them."""

    positions: list[Positions]
    rows: list[dict[str, Any]]
    fields: dict[str, list[pa.Field]]  # the ids and the columns passed through, as the files have them

    def table(self) -> pa.Table:
        """Return the quarantine rows; ids and columns passed through keep their types, or become text where these clash."""
        ids, *extra = (_one_type(fields) for fields in self.fields.values())
        schema = quarantine_schema(ids.type, extra)
        return table_of([{**row, **_texts(row, schema)} for row in self.rows], schema)


def digest64(words: Sequence[str]) -> Numbers:
    """Return 64 bits of a digest of each word: the same in every process."""
    return np.frombuffer(b"".join(hashlib.blake2b(w.encode(), digest_size=8).digest() for w in words), np.uint64)


def read_digests(storage: Storage, dataset: str, files: Sequence[Written]) -> list[Digests]:
    """Return the digests of each label or quarantine file, from the cache or else from the file."""
    keys = [_key(file) for file in files]
    known, num_cached = _read_cache(storage, dataset, set(keys))
    missing = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        read = dict(zip(missing, pool.map(lambda file: _of_file(storage, file), missing.values()), strict=True))
    if read:
        everything = num_cached >= CACHE_FILES
        _write_cache(storage, dataset, known | read if everything else read, everything)
    found = known | read
    return [found[key] for key in keys]


def find_repeated(
    storage: Storage, files: Sequence[Written], digests: Sequence[Digests], live: Sequence[Mask]
) -> Repeated:
    """Find live rows that repeat the id of an earlier live row, in the order of files and rows.

    Parameters
    ----------
    live : Sequence[Mask]
        Per file which of its rows count.
    """
    values, counts = np.unique(
        _concatenated(d.ids[mask] for d, mask in zip(digests, live, strict=True)), return_counts=True
    )
    several = values[counts > 1]
    candidates = [np.flatnonzero(np.isin(d.ids, several) & mask) for d, mask in zip(digests, live, strict=True)]
    suspects = [number for number, positions in enumerate(candidates) if len(positions)]
    result = Repeated([np.empty(0, np.int64)] * len(files), [], {})
    first: dict[str, str] = {}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        tables = pool.map(lambda n: _rows(storage, files[n], candidates[n]), suspects)
        for number, table in zip(suspects, tables, strict=True):
            for column in table.schema:
                if column.name not in PLAIN:
                    result.fields.setdefault(column.name, []).append(column)
            again = list(_rejected(table, first))
            result.positions[number] = candidates[number][[index for index, _ in again]]
            result.rows.extend(row for _, row in again)
    return result


def _rejected(rows: pa.Table, first: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows whose id is taken, as scalars, with their index; `first` says where ids were seen, and learns."""
    for index, (key, uri) in enumerate(
        zip(map(str, rows["image_id"].to_pylist()), rows["uri"].to_pylist(), strict=True)
    ):
        if key not in first:
            first[key] = uri
            continue
        message = f"image id {key!r} is at {first[key]} (kept) and again at {uri} (left out); ids must be unique"
        reason = {"stage": "publish", "reason": "duplicate_id", "error_type": "InputError", "message": message}
        yield index, {name: rows[name][index] for name in rows.column_names} | reason


def _rows(storage: Storage, file: Written, positions: Positions) -> pa.Table:
    """Return rows of a label file, with the columns that the quarantine has as well."""
    table = read_table(storage, file.path).take(pa.array(positions))
    return table.select(
        [name for name in table.column_names if name in PLAIN or name not in OWN_COLUMNS or name == "image_id"]
    )


def _one_type(fields: Sequence[pa.Field]) -> pa.Field:
    try:
        return pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive").field(0)
    except pa.ArrowTypeError:
        return pa.field(fields[0].name, pa.string())


def _texts(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, str]:
    """Return the values of a row that are no text where the column is."""
    values = {field.name: row[field.name] for field in schema if isinstance(row.get(field.name), pa.Scalar)}
    return {
        name: str(value.as_py())
        for name, value in values.items()
        if value.is_valid and pa.types.is_string(schema.field(name).type) and not isinstance(value.as_py(), str)
    }


def _concatenated(arrays: Iterable[Numbers]) -> Numbers:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


def _of_file(storage: Storage, file: Written) -> Digests:
    table = read_table(storage, file.path)
    ids, segments = (table[name].cast(pa.string()).combine_chunks() for name in ("image_id", "segment"))
    encoded = segments.dictionary_encode()
    segment_digests = digest64(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    return Digests(digest64(ids.to_pylist()), segment_digests, digest(str(table.schema.remove_metadata()), 8))


def _key(file: Written) -> str:
    return f"{file.path}@{file.sha256}"


def _read_cache(storage: Storage, dataset: str, wanted: set[str]) -> tuple[dict[str, Digests], int]:
    """Return what the cache knows of the wanted files, and in how many objects; what cannot be read is not known."""
    paths = [entry.path for entry in storage.list(layout.identities(dataset))]
    known: dict[str, Digests] = {}
    for path in paths:
        with suppress(StorageError):
            known.update(_from_table(read_table(storage, path), wanted))
    return known, len(paths)


def _from_table(table: pa.Table, wanted: set[str]) -> Iterator[tuple[str, Digests]]:
    if table.schema != CACHE_SCHEMA:
        return
    ids, segments = (table[name].combine_chunks() for name in ("ids", "segments"))
    offsets, values, of_segments = ids.offsets.to_numpy(), ids.values.to_numpy(), segments.values.to_numpy()
    for index, (key, schema) in enumerate(zip(table["key"].to_pylist(), table["schema"].to_pylist(), strict=True)):
        if key in wanted:
            rows = slice(offsets[index], offsets[index + 1])
            yield key, Digests(values[rows], of_segments[rows], schema)


def _write_cache(storage: Storage, dataset: str, digests: dict[str, Digests], everything: bool) -> None:
    """Add an object to the cache; one with `everything` takes the place of all that there are."""
    old = [entry.path for entry in storage.list(layout.identities(dataset))] if everything else []
    path = f"{layout.identities(dataset)}/{digest(sorted(digests))}.parquet"
    offsets = pa.array(np.cumsum([0, *(len(d.ids) for d in digests.values())]), pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(_concatenated(arrays)))
        for arrays in ([d.ids for d in digests.values()], [d.segments for d in digests.values()])
    ]
    names = [pa.array(list(digests), pa.string()), pa.array([d.schema for d in digests.values()], pa.string())]
    write_table(storage, path, pa.table([*names, *columns], CACHE_SCHEMA))
    for other in old:
        if other != path:
            storage.delete(other)
