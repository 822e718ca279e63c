"""Row groups read within a memory budget: what is fetched, inflated and decoded at a time is bounded, whatever the file says.

Groups are fetched in runs that fit the budget, in as few requests as their places allow; a group that does not fit is
streamed page by page. The number of rows decoded at a time follows from the page headers.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceChangedError, StorageError
from pipeline.pages import Page, pages_of
from pipeline.predicates import excluded
from pipeline.refusals import damaged
from pipeline.settings import Predicate
from pipeline.shards import Segment

GAP_BYTES = 64 << 10  # it costs less to read over a gap than to ask again
STREAM_BYTES = 4 << 20
# Of the buffer, what is fetched at a time, and what is decoded at a time: rows that wait for their turn take the rest.
SHARE = 4
# Writers make large pages without being asked: pyarrow looks at a page's size after every 1,024 values only.
PAGE_BUFFERS = 4


@dataclass(frozen=True)
class Group:
    """Row group `index` of a file: rows [first_row, first_row + num_rows)."""

    index: int
    first_row: int
    num_rows: int


class GroupReader:
    """Reads row groups of one open Parquet file."""

    def __init__(self, handle: BinaryIO, location: str, buffer_bytes: int) -> None:
        self._handle, self._location = handle, location
        self._budget, self._largest_page = buffer_bytes // SHARE, buffer_bytes * PAGE_BUFFERS
        try:
            file = pq.ParquetFile(handle)
        except (pa.ArrowException, OSError) as error:
            raise damaged(location, error) from error
        self.metadata, self.schema = file.metadata, file.schema_arrow
        self._paths = [file.schema.column(i).path for i in range(len(file.schema))]

    def groups(self, segment: Segment, predicates: Sequence[Predicate] = ()) -> list[Group]:
        """Return the row groups that hold exactly the segment's rows, without those that statistics rule out."""
        groups, first = [], 0
        for index in range(self.metadata.num_row_groups):
            group = Group(index, first, self.metadata.row_group(index).num_rows)
            if group.num_rows and segment.first_row <= first < segment.end_row:
                groups.append(group)
            first += group.num_rows
        if first != segment.file_rows:
            raise SourceChangedError(f"{segment.path} has {first} rows, planned were {segment.file_rows}; plan again")
        return [group for group in groups if not any(self._excluded(group.index, p) for p in predicates)]

    def batches(self, groups: Sequence[Group], columns: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of groups in order, at most `batch_size` at a time and fewer where they are large.

        Raises
        ------
        StorageError
            When a page inflates to more than memory allows, or is damaged.
        """
        leaves = [i for i, path in enumerate(self._paths) if any(f"{path}.".startswith(f"{c}.") for c in columns)]
        for run, num_bytes in self._runs(groups, leaves):
            chunks = [(group, leaf, *self._place(group, leaf)) for group in run for leaf in leaves]
            fits = num_bytes <= self._budget
            window = _Window(self._handle, [(start, size) for *_, start, size in chunks] if fits else [])
            rows = self._check_pages(window, chunks, batch_size)
            # A chunk in the window is taken whole, another one bit by bit; pre_buffer would fetch all of it first.
            reading = {"pre_buffer": False, "buffer_size": 0 if fits else STREAM_BYTES}
            try:
                file = pq.ParquetFile(pa.PythonFile(window, "r"), metadata=self.metadata, **reading)
                yield from file.iter_batches(rows, [group.index for group in run], columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise damaged(self._location, error) from error

    def _excluded(self, index: int, predicate: Predicate) -> bool:
        leaf = self._paths.index(predicate[0])
        statistics = self.metadata.row_group(index).column(leaf).statistics
        return excluded(statistics, self.schema.field(predicate[0]).type, predicate)

    def _place(self, group: Group, leaf: int) -> tuple[int, int]:
        """Return offset and size of a column chunk."""
        chunk = self.metadata.row_group(group.index).column(leaf)
        starts = (chunk.dictionary_page_offset, chunk.data_page_offset)
        return min(start for start in starts if start), chunk.total_compressed_size

    def _runs(self, groups: Sequence[Group], leaves: Sequence[int]) -> Iterator[tuple[list[Group], int]]:
        """Yield neighbouring groups that fit the budget together, with what they take of the file."""
        run: list[Group] = []
        total = 0
        for group in groups:
            size = sum(self._place(group, leaf)[1] for leaf in leaves)
            if run and total + size > self._budget:
                yield run, total
                run, total = [], 0
            run.append(group)
            total += size
        if run:
            yield run, total

    def _check_pages(self, window: "_Window", chunks: Sequence[tuple[Group, int, int, int]], batch_size: int) -> int:
        """Refuse what cannot be held in memory; return how many rows may be decoded at a time."""
        columns: dict[int, list[Page]] = {}
        for group, leaf, start, size in chunks:
            for page in pages_of(window.at, start, size):
                if page.inflated_bytes > self._largest_page:
                    raise self._too_large(group, leaf, page)
                columns.setdefault(leaf, []).append(page)
        rows = batch_size
        while rows > 1 and sum(_most_bytes(pages, rows, self._budget) for pages in columns.values()) > self._budget:
            rows //= 2
        return rows

    def _too_large(self, group: Group, leaf: int, page: Page) -> StorageError:
        return StorageError(
            f"{self._location}: row group {group.index}, column {self._paths[leaf]!r}: a page of {_mb(page.compressed_bytes)} "
            f"inflates to {_mb(page.inflated_bytes)}, and at most {_mb(self._largest_page)} ({PAGE_BUFFERS} x label.buffer_mb) "
            "are read at once. Write the file with smaller row groups or pages, or raise label.buffer_mb if the data is right"
        )


class _Window(io.RawIOBase):
    """A file of which some parts were fetched ahead."""

    def __init__(self, handle: BinaryIO, places: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._handle, self._position = handle, 0
        self._parts: list[tuple[int, memoryview]] = []
        for start, end in _joined(places):
            self._parts.append((start, self._fetch(start, end - start)))
        self._starts = [start for start, _ in self._parts]

    def at(self, offset: int, size: int) -> memoryview:
        """Return up to `size` bytes from `offset`."""
        index = bisect_right(self._starts, offset) - 1
        if index >= 0:
            start, data = self._parts[index]
            if offset + size <= start + len(data):
                return data[offset - start : offset - start + size]
        return self._fetch(offset, size)

    def _fetch(self, offset: int, size: int) -> memoryview:
        self._handle.seek(offset)
        return memoryview(self._handle.read(size))

    def read(self, size: int = -1) -> memoryview:
        """Read on from the position."""
        data = self.at(self._position, size) if size >= 0 else self._fetch(self._position, -1)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        origin = (0, self._position, 0)[whence] if whence < io.SEEK_END else self._handle.seek(0, io.SEEK_END)
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Say that it is open for reading."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from anywhere."""
        return True


def _joined(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the places (offset, size) as few intervals [start, end)."""
    joined: list[tuple[int, int]] = []
    for start, size in sorted(places):
        if joined and start <= joined[-1][1] + GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], start + size))
        else:
            joined.append((start, start + size))
    return joined


def _most_bytes(pages: Sequence[Page], num_rows: int, enough: int) -> int:
    """Return what any `num_rows` neighbouring values of a column take at most; anything over `enough` is as good."""
    data = [page for page in pages if not page.is_dictionary]
    if sum(page.decoded_bytes(num_rows) for page in data) <= enough:
        return sum(page.decoded_bytes(num_rows) for page in data)
    most = 0
    for first in range(len(data)):
        left, total = num_rows, 0
        for page in data[first:]:  # the first may be entered at its last value
            total += page.decoded_bytes(left)
            left -= page.num_values if page is not data[first] else 1
            if left <= 0 or total > enough:
                break
        most = max(most, total)
        if most > enough:
            break
    return most


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.1f} MB"
