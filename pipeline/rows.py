"""The rows of a shard, image bytes included, in the order of its segments; only the needed columns and row groups are read.

Rows that `input.filter` does not take are as good as not there: their images are not read where that can be helped, and
never decoded. Predicates on Hive partitions are not its business: see `selection`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.columns import common_fields
from pipeline.errors import ImageError, StorageError
from pipeline.locations import DENIED, fetch
from pipeline.partitions import partitions_of
from pipeline.planned import open_planned
from pipeline.predicates import matching
from pipeline.refusals import printable
from pipeline.rowgroups import Group, GroupReader
from pipeline.settings import InputSettings, SplitSettings, StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.sources import PASSED, check_columns, is_parquet, open_source, read_csv, refuse_columns
from pipeline.splits import SPLITS, split_name, split_of
from pipeline.storage import join

FETCHES_AT_ONCE = 16
BUFFER_BYTES = 256 << 20
LISTS_WAITING = 8  # a list of rows takes at most this part of the buffer, or is a single row
MASK_ROWS = 4096  # of the filter's columns, decoded at a time

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One image as the input has it.

    `image_id` keeps the type of the input's column. `uri` says where the bytes are: a file below the input, or
    `<file>#<row>`. `segment` and `position`, the row in the whole file, identify it. Exactly one of `data` and `error`
    is None. `extra` holds the columns that are passed through, as Arrow's scalars: no type loses anything.
    """

    image_id: Any
    uri: str
    segment: str
    position: int
    data: bytes | None
    error: ImageError | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None  # of a multi-label data set: all that are there
    absent: tuple[str, ...] | None = None  # and those known not to be, None for all others
    split: str | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def content_hash(self) -> str | None:
        """SHA-256 of the encoded bytes, hex."""
        return hashlib.sha256(self.data).hexdigest() if self.data is not None else None

    def side(self, settings: SplitSettings) -> str:
        """Return the split that the row belongs to: the input's, else that of a hash of its group or bytes."""
        return self.split or split_of(self.group or self.content_hash or "", settings)


class ShardReader:
    """Reads the live segments of shards of one input."""

    def __init__(
        self,
        settings: InputSettings,
        storage: StorageSettings,
        columns: Sequence[str] = (),
        buffer_bytes: int = BUFFER_BYTES,
        named_by: str = PASSED,
    ) -> None:
        self._settings, self._storage, self._passed, self._buffer_bytes = settings, storage, columns, buffer_bytes
        self._named_by = named_by
        self._folder, _ = open_source(settings, storage)
        self._last_csv: tuple[tuple[str, str], pa.Table] | None = None
        self._matched: dict[
            str, int
        ] = {}  # by segment, from its reading to its counting: several shards may be read at a time

    def id_type(self, shard: Shard) -> pa.DataType:
        """Return the Arrow type that holds the image ids of all live files; StorageError when no type does."""
        name = self._settings.id_column
        return common_fields(self._folder, shard, [name])[0].type if name else pa.string()

    def extra_fields(self, shard: Shard) -> list[pa.Field]:
        """Return the passed-through columns with types that hold the values of all live files, as `id_type` does."""
        return common_fields(self._folder, shard, self._passed)

    def matched(self, shard: Shard) -> dict[str, int]:
        """Return by segment key the rows that the filter takes, of a shard that was read to its end; once for each reading."""
        if not self._settings.filter:
            return {segment.key: segment.num_rows for segment in shard.live}
        return {segment.key: self._matched.pop(segment.key) for segment in shard.live}

    def read(self, shard: Shard, batch_size: int = 64) -> Iterator[list[Row]]:
        """Yield the live rows that the filter takes, in lists of at most `batch_size`, shorter where images are large.

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
        num_bytes = 0
        for row in (row for rows in self._read_segments(shard.live, batch_size) for row in rows):
            size = len(row.data or b"")
            if len(pending) >= batch_size or (pending and num_bytes + size > self._buffer_bytes // LISTS_WAITING):
                yield pending
                pending, num_bytes = [], 0
            pending.append(row)
            num_bytes += size
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
                with open_planned(self._folder, segment.path, segment.version) as handle:
                    found |= {_split(value) for value in self._column(handle, segment, self._settings.split_column)}
        return found

    def _column(self, handle: BinaryIO, segment: Segment, name: str) -> list[Any]:
        if not is_parquet(segment.path):
            values: list[Any] = self._csv(segment)[name].unique().to_pylist()
            return values
        file = self._open(handle, segment)
        batches = file.batches(file.groups(segment), [name], MASK_ROWS)
        return list({value for batch in batches for value in batch.column(name).unique().to_pylist()})

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
                refuse_columns(self._settings)
                yield from self._read_files(list(together), batch_size)
                continue
            for segment in together:
                read = self._read_parquet if is_parquet(segment.path) else self._read_csv
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
        extra = self._extra(segment, None, [0])[0]
        return Row(segment.path, segment.path, segment.key, 0, data, label=label, split=split, extra=extra)

    def _read_csv(self, segment: Segment, batch_size: int) -> Iterator[list[Row]]:
        table = self._csv(segment)
        keep = self._mask(table)
        self._note_matched(segment, int(keep.sum()))
        positions = np.arange(segment.first_row, segment.end_row)
        yield from self._kept(table.to_batches(batch_size), segment, positions, keep)

    def _csv(self, segment: Segment) -> pa.Table:
        """Return the segment's rows. A CSV is parsed whole, so the last one is kept: its segments come one after another."""
        key = segment.path, segment.version
        last = self._last_csv  # looked at once: another thread may read another file
        if last is None or last[0] != key:
            location = self._location(segment)
            with self._folder.open(*key) as handle:
                table = read_csv(handle, location)
            check_columns(table.schema, self._settings, location, self._columns_of_tables(segment), self._named_by)
            self._last_csv = last = key, table
        return last[1].slice(segment.first_row, segment.num_rows)

    def _read_parquet(self, segment: Segment, batch_size: int) -> Iterator[list[Row]]:
        with open_planned(self._folder, segment.path, segment.version) as handle:
            file = self._open(handle, segment)
            groups, masks = self._taken(file, segment)
            self._note_matched(segment, sum(int(mask.sum()) for mask in masks))
            if groups:
                positions = np.concatenate([np.arange(g.first_row, g.first_row + g.num_rows) for g in groups])
                columns = [*self._columns(), *self._columns_of_tables(segment)]
                batches = file.batches(groups, list(dict.fromkeys(columns)), batch_size)
                yield from self._kept(batches, segment, positions, np.concatenate(masks))

    def _open(self, handle: BinaryIO, segment: Segment) -> GroupReader:
        location = self._location(segment)
        file = GroupReader(handle, location, self._buffer_bytes)
        # Again: the plan checked the columns that the config named then, and only in files that were new then.
        check_columns(file.schema, self._settings, location, self._columns_of_tables(segment), self._named_by)
        return file

    def _location(self, segment: Segment) -> str:
        """Return where a segment's file lies, for messages."""
        return printable(join(self._folder.url, segment.path))

    def _taken(self, file: GroupReader, segment: Segment) -> tuple[list[Group], list[npt.NDArray[np.bool_]]]:
        """Return the row groups in which the filter takes rows, and which; only its own columns are read for that."""
        groups = file.groups(segment, self._settings.filter)
        if not self._settings.filter:
            return groups, [np.ones(group.num_rows, np.bool_) for group in groups]
        names = list(dict.fromkeys(name for name, _, _ in self._settings.filter))
        masks = [
            np.concatenate([self._mask(batch) for batch in file.batches([group], names, MASK_ROWS)]) for group in groups
        ]
        taken = [(group, mask) for group, mask in zip(groups, masks, strict=True) if mask.any()]
        return [group for group, _ in taken], [mask for _, mask in taken]

    def _note_matched(self, segment: Segment, num_rows: int) -> None:
        if self._settings.filter:
            self._matched[segment.key] = num_rows

    def _mask(self, rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Return which rows the filter takes."""
        held = [matching(rows.column(predicate[0]), predicate) for predicate in self._settings.filter]
        if not held:
            return np.ones(rows.num_rows, np.bool_)
        return np.asarray(reduce(pc.and_, held).to_numpy(zero_copy_only=False), np.bool_)

    def _kept(
        self, batches: Iterable[pa.RecordBatch], segment: Segment, positions: Positions, keep: npt.NDArray[np.bool_]
    ) -> Iterator[list[Row]]:
        """Yield rows of batches that follow each other: those to keep, with their positions in the file."""
        first = 0
        for batch in batches:
            chosen = np.flatnonzero(keep[first : first + batch.num_rows])
            yield self._rows(batch, segment, chosen.tolist(), positions[first + chosen].tolist())
            first += batch.num_rows
        if first != len(keep):
            raise StorageError(
                f"{self._location(segment)}: {first} rows where the footer promises {len(keep)}; replace the "
                "file, then plan again"
            )

    def _columns_of_tables(self, segment: Segment) -> list[str]:
        """Return the passed-through columns that are not partitions of the file."""
        partitions = partitions_of(segment.path)
        return [name for name in self._passed if name not in partitions]

    def _columns(self) -> list[str]:
        s = self._settings
        names = (s.image_column, s.uri_column, s.id_column, *self._truth_columns())
        return [name for name in names if name]

    def _truth_columns(self) -> tuple[str | None, ...]:
        s = self._settings
        return s.label_column, s.labels_column, s.absent_column, s.split_column, s.group_column

    def _rows(self, batch: pa.RecordBatch, segment: Segment, chosen: list[int], positions: list[int]) -> list[Row]:
        """Return the chosen rows of a batch; `positions` are theirs in the file."""
        s = self._settings

        def column(name: str | None) -> list[Any]:
            if not name:
                return [None] * len(chosen)
            values = batch.column(name)
            return values.to_pylist() if len(chosen) == len(values) else [values[i].as_py() for i in chosen]

        images, located = self._images(column(s.image_column), column(s.uri_column))
        ids = column(s.id_column)
        labels, lists, absent, splits, groups = (column(name) for name in self._truth_columns())
        extras = self._extra(segment, batch, chosen)
        rows = []
        for i, position in enumerate(positions):
            place = located[i] or f"{segment.path}#{position}"
            data, error = images[i]
            image_id = ids[i] if s.id_column else place
            if image_id is None:
                data, error = (
                    None,
                    ImageError("read", "null_id", f"{place}: {s.id_column} is null; every image needs an id"),
                )
            there, known = (_labels(values[i], s.labels_separator) for values in (lists, absent))
            truth = (_text(labels[i]), there, known, _split(splits[i]), _text(groups[i]))
            rows.append(Row(image_id, place, segment.key, position, data, error, *truth, extras[i]))
        return rows

    def _extra(self, segment: Segment, batch: pa.RecordBatch | None, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """Return the passed-through columns of rows, as scalars; partitions go before columns of the same name."""
        partitions = partitions_of(segment.path)
        rows: list[dict[str, Any]] = [{} for _ in chosen]
        for name in self._passed:
            column = batch.column(name) if batch is not None and name not in partitions else None
            for row, i in zip(rows, chosen, strict=True):
                row[name] = pa.scalar(partitions.get(name), pa.string()) if column is None else column[i]
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


def is_table(path: str) -> bool:
    """Say whether a file holds rows; else it is an image."""
    return is_parquet(path) or path.lower().endswith(".csv")


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


def _labels(value: Any, separator: str) -> tuple[str, ...] | None:
    """Return the labels of a list, or of text with a separator between them; each once, sorted."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(separator)] if isinstance(value, str) else map(_text, value)
    return tuple(sorted({part for part in parts if part}))


def _split(value: Any) -> str | None:
    return None if value is None else split_name(str(value))
