"""The rows of a shard, image bytes included, in the order of its segments; only the needed columns and row groups are read."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageError, NotFoundError, SourceChangedError, StorageError
from pipeline.locations import DENIED, fetch
from pipeline.refusals import changed, printable
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.sources import check_columns, open_source, read_csv, value_type
from pipeline.splits import SPLITS, split_name
from pipeline.storage import join

FETCHES_AT_ONCE = 16


@dataclass(frozen=True)
class Row:
    """One image as the input has it.

    `image_id` keeps the type of the input's column. `uri` says where the bytes are: a file below the input, or
    `<file>#<row>`. `segment` and `position`, the row in the whole file, identify it. Exactly one of `data` and `error`
    is None.
    """

    image_id: Any
    uri: str
    segment: str
    position: int
    data: bytes | None
    error: ImageError | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None

    @property
    def content_hash(self) -> str | None:
        """SHA-256 of the encoded bytes, hex."""
        return hashlib.sha256(self.data).hexdigest() if self.data is not None else None


class ShardReader:
    """Reads the live segments of shards of one input."""

    def __init__(self, settings: InputSettings, storage: StorageSettings) -> None:
        self._settings, self._storage = settings, storage
        self._folder, _ = open_source(settings, storage)
        self._last_csv: tuple[tuple[str, str], pa.Table] | None = None

    def id_type(self, shard: Shard) -> pa.DataType:
        """Return the Arrow type that holds the image ids of all live files; StorageError when no type does."""
        name = self._settings.id_column
        files = dict.fromkeys((s.path, s.version) for s in shard.live)  # a tombstoned one may be gone
        schemas = [self._id_schema(path, version) for path, version in files if name and _is_parquet(path)]
        if not schemas:
            return pa.string()
        try:
            return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except pa.ArrowTypeError as error:
            raise StorageError(
                f"shard {shard.id}: column {name!r} has other types in other files ({_line(error)}), from "
                f"{schemas[0].field(0).type} in {next(iter(files))[0]} on; write the files with one type of id"
            ) from error

    def _id_schema(self, path: str, version: str) -> pa.Schema:
        with self._intact(path, version) as handle:
            kind = pq.read_schema(handle).field(self._settings.id_column).type
        return pa.schema([("id", value_type(kind))])

    def read(self, shard: Shard, batch_size: int = 64) -> Iterator[list[Row]]:
        """Yield the live rows in lists of at most `batch_size`.

        Raises
        ------
        SourceChangedError
            When a file is no longer the version that was planned.
        StorageError
            When a file's rows are damaged.
        TransientError
            When the storage could not answer.
        """
        pending: list[Row] = []
        for rows in self._read_segments(shard.live, batch_size):
            pending += rows
            while len(pending) >= batch_size:
                yield pending[:batch_size]
                pending = pending[batch_size:]
        if pending:
            yield pending

    def splits(self, shard: Shard) -> set[str | None]:
        """Return the splits that the input names in a shard, None for rows without; reads that column alone."""
        found: set[str | None] = set()
        for segment in shard.live:
            if not is_table(segment.path):
                found.add(_split_folder(segment.path))
            elif not self._settings.split_column:
                found.add(None)
            else:
                with self._intact(segment.path, segment.version) as handle:
                    found |= {_split(value) for value in self._column(handle, segment, self._settings.split_column)}
        return found

    def _column(self, handle: BinaryIO, segment: Segment, name: str) -> list[Any]:
        if _is_parquet(segment.path):
            parquet = pq.ParquetFile(handle)
            table = parquet.read_row_groups(_groups(parquet.metadata, segment), columns=[name])
        else:
            table = self._csv(segment)
        values: list[Any] = table[name].unique().to_pylist()
        return values

    def read_one(self, uri: str) -> bytes:
        """Return the bytes at a row's `uri`: for pictures in reports."""
        if self._settings.uri_column:
            return fetch(uri, self._folder.url, self._settings, self._storage)
        if not self._settings.image_column:  # the name of a loose image may hold any character
            return self._folder.read(uri)
        path, _, row = uri.rpartition("#")
        with self._folder.open(path) as handle:
            parquet, first, index = pq.ParquetFile(handle), 0, 0
            while first + (rows := parquet.metadata.row_group(index).num_rows) <= int(row):
                first, index = first + rows, index + 1
            table = parquet.read_row_group(index, columns=[self._settings.image_column]).slice(int(row) - first, 1)
        data, _ = self._embedded(table.column(0)[0].as_py())
        return data or b""

    def _read_segments(self, segments: Sequence[Segment], batch_size: int) -> Iterator[list[Row]]:
        for tabular, together in groupby(segments, key=lambda segment: is_table(segment.path)):
            if not tabular:
                yield from self._read_files(list(together), batch_size)
                continue
            for segment in together:
                read = self._read_parquet if _is_parquet(segment.path) else self._read_csv
                yield from read(segment, batch_size)

    def _read_files(self, segments: Sequence[Segment], batch_size: int) -> Iterator[list[Row]]:
        """Read loose images, several at once: each is a request of its own on an object store."""
        with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
            for first in range(0, len(segments), batch_size):
                yield list(pool.map(self._read_file, segments[first : first + batch_size]))

    def _read_file(self, segment: Segment) -> Row:
        *folders, _ = segment.path.split("/")
        data = self._folder.read(segment.path, segment.version)
        label, split = folders[-1] if folders else None, _split_folder(segment.path)
        return Row(segment.path, segment.path, segment.key, 0, data, label=label, split=split)

    def _read_csv(self, segment: Segment, batch_size: int) -> Iterator[list[Row]]:
        first = segment.first_row
        for batch in self._csv(segment).to_batches(batch_size):
            yield self._rows(batch, segment, first)
            first += batch.num_rows

    def _csv(self, segment: Segment) -> pa.Table:
        """Return the segment's rows. A CSV is parsed whole, so the last one is kept: its segments come one after another."""
        key = segment.path, segment.version
        if self._last_csv is None or self._last_csv[0] != key:
            location = join(self._folder.url, segment.path)
            with self._folder.open(*key) as handle:
                table = read_csv(handle, location)
            check_columns(table.schema, self._settings, location)
            self._last_csv = key, table
        return self._last_csv[1].slice(segment.first_row, segment.num_rows)

    def _read_parquet(self, segment: Segment, batch_size: int) -> Iterator[list[Row]]:
        with self._intact(segment.path, segment.version) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=True)
            # Again: the plan checked the columns that the config named then, and only in files that were new then.
            check_columns(parquet.schema_arrow, self._settings, join(self._folder.url, segment.path))
            groups = _groups(parquet.metadata, segment)
            first = segment.first_row
            for batch in parquet.iter_batches(batch_size, groups, columns=self._columns()):
                yield self._rows(batch, segment, first)
                first += batch.num_rows

    @contextmanager
    def _intact(self, path: str, version: str) -> Iterator[BinaryIO]:
        """Open a Parquet file; StorageError when its rows are damaged, which the footer that was planned does not show.

        A file that changed while it was read looks damaged, so its version is asked for before it is blamed.
        """
        with self._folder.open(path, version) as handle:
            try:
                yield handle
            except (pa.ArrowException, OSError) as error:
                location = printable(join(self._folder.url, path))
                with suppress(NotFoundError):
                    if self._folder.stat(path).version == version:
                        raise StorageError(
                            f"{location}: damaged rows ({_line(error)}); replace the file, then plan again"
                        ) from error
                raise changed(location) from error

    def _columns(self) -> list[str]:
        s = self._settings
        names = (s.image_column, s.uri_column, s.id_column, s.label_column, s.split_column, s.group_column)
        return [name for name in names if name]

    def _rows(self, batch: pa.RecordBatch, segment: Segment, first: int) -> list[Row]:
        s, count = self._settings, batch.num_rows

        def column(name: str | None) -> list[Any]:
            return batch.column(name).to_pylist() if name else [None] * count

        images, located = self._images(column(s.image_column), column(s.uri_column))
        ids, labels, splits, groups = (column(n) for n in (s.id_column, s.label_column, s.split_column, s.group_column))
        rows = []
        for i in range(count):
            place = located[i] or f"{segment.path}#{first + i}"
            data, error = images[i]
            image_id = ids[i] if s.id_column else place
            if image_id is None:
                data, error = (
                    None,
                    ImageError("read", "null_id", f"{place}: {s.id_column} is null; every image needs an id"),
                )
            extra = (_text(labels[i]), _split(splits[i]), _text(groups[i]))
            rows.append(Row(image_id, place, segment.key, first + i, data, error, *extra))
        return rows

    def _images(
        self, encoded: list[Any], uris: list[str | None]
    ) -> tuple[list[tuple[bytes | None, ImageError | None]], list[str | None]]:
        """Return (data, error) per row, and the location where it is not simply a row of the table."""
        if not self._settings.uri_column:
            return [self._embedded(value) for value in encoded], [None] * len(encoded)
        with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
            fetched = list(pool.map(self._fetch, uris))
        denied = [error for _, error in fetched if error and error.reason == DENIED]
        if len(denied) == len(fetched) > 1:  # credentials that expired say nothing of the images: nothing is committed
            raise StorageError(f"all {len(denied)} locations are refused; the first: {denied[0].message}")
        return fetched, uris

    def _embedded(self, value: Any) -> tuple[bytes | None, ImageError | None]:
        data, path = _encoded(value)
        return (data, None) if data is not None else self._fetch(path)

    def _fetch(self, uri: str | None) -> tuple[bytes | None, ImageError | None]:
        if not uri:
            return None, _null()
        try:
            return fetch(uri, self._folder.url, self._settings, self._storage), None
        except ImageError as error:
            return None, error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def _groups(metadata: Any, segment: Segment) -> list[int]:
    """Return the row groups that hold exactly the segment's rows."""
    groups, first = [], 0
    for index in range(metadata.num_row_groups):
        if segment.first_row <= first < segment.end_row:
            groups.append(index)
        first += metadata.row_group(index).num_rows
    if first != segment.file_rows:
        raise SourceChangedError(f"{segment.path} has {first} rows, planned were {segment.file_rows}; plan again")
    return groups


def _is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def is_table(path: str) -> bool:
    """Say whether a file holds rows; else it is an image."""
    return _is_parquet(path) or path.lower().endswith(".csv")


def _split_folder(path: str) -> str | None:
    """Return the split that `train/daisy/1.jpg` names by its first folder, when a class folder follows."""
    *folders, _ = path.split("/")
    name = split_name(folders[0]) if len(folders) > 1 else ""
    return name if name in SPLITS else None


def _encoded(value: Any) -> tuple[bytes | None, str | None]:
    """Return bytes and path of an image cell: plain bytes, or a struct<bytes, path>."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return value, None


def _null() -> ImageError:
    return ImageError("read", "null", "the image is null in the input")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _split(value: Any) -> str | None:
    return None if value is None else split_name(str(value))
