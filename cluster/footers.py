"""Footers of files that no plan has seen, read by tasks of the cluster, or by the driver itself.

As few files as one task would get are read by the driver: a night with little news needs no cluster to find it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cluster.dispatch import Failure, dispatch
from cluster.retries import STORAGE_PATIENCE_S
from cluster.workers import TaskPool
from pipeline.errors import InputError, NightshiftError, StorageError
from pipeline.retrying import Patience, retried
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment
from pipeline.sources import open_source, segments_of
from pipeline.storage import Entry

FILES_PER_TASK = 64
ATTEMPTS = 3
READS_AT_ONCE = 16
PATIENCE = Patience(100, STORAGE_PATIENCE_S)  # as long as tasks are tried again

Scanned = list[tuple[Entry, list[Segment] | str]]


@dataclass(frozen=True)
class FooterReader:
    """Reads the footers of files of one format.

    Parameters
    ----------
    columns : Sequence[str]
        What a table must have besides the columns that `settings` names.
    connect : Callable[[], None], optional
        Starts or joins the session, when there are more files than the driver reads by itself. Without it the driver reads all:
        labellers may hold the cluster.
    """

    kind: str
    settings: InputSettings
    storage: StorageSettings
    columns: Sequence[str] = ()
    connect: Callable[[], None] | None = None

    def read(self, files: Sequence[Entry]) -> Iterator[tuple[Entry, list[Segment] | str]]:
        """Yield each file with its segments, or with the words for why it has none; in no fixed order."""
        scan = partial(scan_files, kind=self.kind, settings=self.settings, storage=self.storage, columns=self.columns)
        for chunk, outcome in self._scanned(scan, files):
            if isinstance(outcome, Failure):
                yield from ((file, outcome.error) for file in chunk)
            else:
                yield from outcome

    def _scanned(
        self, scan: Callable[[Sequence[Entry]], Scanned], files: Sequence[Entry]
    ) -> Iterator[tuple[Sequence[Entry], Scanned | Failure]]:
        # Loose images have no footers, so many are nothing; a CSV is read whole, which may be a lot.
        few = self.kind == "images" or not files or (self.kind == "parquet" and len(files) <= FILES_PER_TASK)
        if self.connect and not few:
            self.connect()
            return dispatch(TaskPool(scan), _chunks(files, FILES_PER_TASK), ATTEMPTS)
        return _here(scan, _chunks(files, FILES_PER_TASK if self.kind == "images" else 1))


def scan_files(
    files: Sequence[Entry], kind: str, settings: InputSettings, storage: StorageSettings, columns: Sequence[str] = ()
) -> Scanned:
    """Return each file with its segments, or with the words for why it has none."""
    folder, _ = open_source(settings, storage)
    results: Scanned = []
    for file in files:
        try:
            results.append((file, segments_of(file, kind, settings, folder, columns)))
        except (InputError, StorageError) as error:
            results.append((file, str(error)))
    return results


def _here(
    scan: Callable[[Sequence[Entry]], Scanned], chunks: Sequence[Sequence[Entry]]
) -> Iterator[tuple[Sequence[Entry], Scanned | Failure]]:
    """Scan in this process, some chunks at a time."""

    def attempt(chunk: Sequence[Entry]) -> tuple[Sequence[Entry], Scanned | Failure]:
        try:
            return chunk, retried(partial(scan, chunk), PATIENCE)
        except NightshiftError as error:
            return chunk, Failure(str(error), 1)

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        yield from pool.map(attempt, chunks)


def _chunks(files: Sequence[Entry], size: int) -> list[Sequence[Entry]]:
    return [files[i : i + size] for i in range(0, len(files), size)]
