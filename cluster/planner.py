"""Planning on the cluster: the driver lists, tasks read the footers of files that no plan has seen, the driver packs shards.

As few files as one task would get are read by the driver itself: a night with little news needs no cluster to find it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from posixpath import normpath

from cluster.dispatch import Failure, dispatch
from cluster.retries import STORAGE_PATIENCE_S
from cluster.workers import TaskPool
from pipeline.errors import (
    AlreadyExistsError,
    EmptyInputError,
    HeldError,
    InputError,
    NightshiftError,
    StorageError,
)
from pipeline.partitions import partition_names
from pipeline.plans import Plan, changes, read_plan, read_unfinished, write_plan
from pipeline.refusals import printable
from pipeline.retrying import Patience, retried
from pipeline.selection import row_settings
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment, Shard, make_shards, unplanned_rows, update_shards
from pipeline.sources import (
    Listing,
    dataset_name,
    is_parquet,
    list_source,
    open_source,
    refuse_columns,
    segments_of,
)
from pipeline.storage import Entry, Storage

FILES_PER_TASK = 64
ATTEMPTS = 3
READS_AT_ONCE = 16
PATIENCE = Patience(100, STORAGE_PATIENCE_S)  # as long as tasks are tried again

Save = Callable[[Storage, Plan, str], None]
Scanned = list[tuple[Entry, list[Segment] | str]]


def plan(
    store: Storage, settings: InputSettings, storage: StorageSettings, now: str,
    connect: Callable[[], None], advanced: Callable[[int], None], columns: Sequence[str] = (),
    save: Save | None = None,
) -> tuple[Plan, bool]:  # fmt: skip
    """Bring the data set's plan up to date with its input.

    Parameters
    ----------
    now : str
        The time that the snapshot records.
    connect : Callable[[], None]
        Starts or joins the session; called only when there are more footers to read than the driver does by itself.
    advanced : Callable[[int], None]
        Told how many files were looked at, as it goes.
    columns : Sequence[str]
        What labelling copies: columns that tables must have, or Hive partitions.
    save : Callable[[Storage, Plan, str], None]
        Keeps a new snapshot, with its time (default: writes it); a dry run gives one that does not.

    Returns
    -------
    tuple[Plan, bool]
        The newest snapshot, and whether it is a new one: an unchanged input makes none.

    Raises
    ------
    InputError
        When there is no input, or none of its files can be read.
    HeldError
        When more of what an earlier plan knows is gone than `input.max_vanished_fraction`: no snapshot is made.
    """
    listing, dataset = _list(settings, storage), dataset_name(settings)
    while True:
        previous = read_plan(store, dataset)
        if isinstance(listing, EmptyInputError):
            if previous is None:
                raise listing
            listing = Listing(previous.details.get("format", ""), (), 0)
        source, passed = _of_rows(settings, columns, listing)
        try:
            return _update(
                store, source, storage, previous, listing, now, connect, advanced, passed, save or write_plan
            )
        except AlreadyExistsError:
            continue  # another planner completed this number: build on what it wrote


def _list(settings: InputSettings, storage: StorageSettings) -> Listing | EmptyInputError:
    """List the input; that there is none is the first plan's error, and a later plan's question."""
    try:
        return list_source(settings, storage)
    except EmptyInputError as error:
        return error


def _of_rows(settings: InputSettings, columns: Sequence[str], listing: Listing) -> tuple[InputSettings, list[str]]:
    """Return the input and the columns without what Hive partitions answer: the rest is asked of each table."""
    paths = [file.path for file in listing.files]
    source, names = row_settings(settings, paths), partition_names(paths)
    passed = [name for name in columns if name not in names]
    if listing.format == "images":
        refuse_columns(source, passed)
    return source, passed


def _update(
    store: Storage, settings: InputSettings, storage: StorageSettings, previous: Plan | None, listing: Listing,
    now: str, connect: Callable[[], None], advanced: Callable[[int], None], columns: Sequence[str], save: Save,
) -> tuple[Plan, bool]:  # fmt: skip
    dataset = dataset_name(settings)
    if previous:
        _check_place(settings, previous)
        _check_vanished(settings, previous, listing)
    history = [*(previous.shards if previous else ()), *read_unfinished(store, dataset)]
    kept = update_shards(history, {file.identity for file in listing.files})
    files = _unplanned(listing, kept)
    if not _read_here(listing, files):
        connect()
    _check_known(kept, settings, storage, columns)
    segments, failed = _scan(files, listing, settings, storage, advanced, columns)
    new = list(make_shards(unplanned_rows(segments, kept), settings.shard_images))
    if failed and not new and not kept:
        raise InputError(f"none of the {len(failed)} files can be read; the first: {failed[0]['error']}")
    n = previous.n + 1 if previous else 1
    if previous and (previous.shards, previous.failed_files) == (tuple(kept + new), tuple(failed)):
        return previous, False
    what = changes(previous.shards if previous else (), kept + new, {file["path"] for file in failed})
    details = {
        "format": listing.format,
        "files": len(listing.files),
        "url": printable(settings.url),
        "changes": asdict(what),
    }
    result = Plan(dataset, n, tuple(kept + new), tuple(failed), listing.ignored, details)
    save(store, result, now)
    return result, True


def _check_place(settings: InputSettings, previous: Plan) -> None:
    """Refuse another input of the same derived name: planning it would tombstone everything that the first one holds."""
    before = previous.details.get("url")
    if before and not settings.name and normpath(before) != normpath(printable(settings.url)):
        raise InputError(
            f"this store's data set {previous.dataset!r} was planned from {before}, and input.url is {printable(settings.url)}; another "
            f"input needs another input.name. If the same images have moved, say so with input.name: {previous.dataset}"
        )


def _check_vanished(settings: InputSettings, previous: Plan, listing: Listing) -> None:
    """Hold the night when too many known images are gone, but not for files that are now of another version."""
    there, known = {file.path for file in listing.files}, previous.num_images
    gone = sum(s.num_rows for shard in previous.shards for s in shard.live if s.path not in there)
    if gone and gone / known > settings.max_vanished_fraction:
        raise HeldError(
            f"{gone:,} of {known:,} known images ({gone / known:.0%}) are gone from {printable(settings.url)}, more than "
            f"input.max_vanished_fraction = {settings.max_vanished_fraction:g}. A share that is not mounted or a wrong prefix "
            "looks like this: check that the files are there. Nothing was planned, and the view stays as it was. If they "
            "were deleted on purpose, run this once with --set input.max_vanished_fraction=1"
        )


def _check_known(
    kept: Sequence[Shard], settings: InputSettings, storage: StorageSettings, columns: Sequence[str]
) -> None:
    """Check what is asked of columns on one file that an earlier plan has read, which asked for less perhaps."""
    known = next((s for shard in kept for s in shard.live if is_parquet(s.path)), None)
    if known and (settings.filter or columns):
        folder, _ = open_source(settings, storage)
        segments_of(Entry(*known.file), "parquet", settings, folder, columns)


def _unplanned(listing: Listing, kept: Sequence[Shard]) -> list[Entry]:
    """Return the files that have rows without a shard: new ones, and those that an unfinished plan got halfway through."""
    left: dict[tuple[str, int, str], int] = {}
    for segment in (segment for shard in kept for segment in shard.live):
        left[segment.file] = left.get(segment.file, segment.file_rows) - segment.num_rows
    return [file for file in listing.files if left.get(file.identity, 1) > 0]


def _scan(
    files: Sequence[Entry],
    listing: Listing,
    settings: InputSettings,
    storage: StorageSettings,
    advanced: Callable[[int], None],
    columns: Sequence[str],
) -> tuple[list[Segment], list[dict[str, str]]]:
    """Return the segments of files in listing order, and the files that cannot be read, with the reason."""
    found: dict[str, list[Segment]] = {}  # by the first file of a chunk
    failed: dict[str, str] = {}
    scan = partial(scan_files, kind=listing.format, settings=settings, storage=storage, columns=columns)
    here = _read_here(listing, files)
    chunks = _chunks(files, 1 if here and listing.format != "images" else FILES_PER_TASK)
    for chunk, result in _here(scan, chunks) if here else dispatch(TaskPool(scan), chunks, ATTEMPTS):
        advanced(len(chunk))
        if isinstance(result, Failure):
            failed |= {file.path: result.error for file in chunk}
            continue
        failed |= {file.path: outcome for file, outcome in result if isinstance(outcome, str)}
        found[chunk[0].path] = [segment for _, outcome in result if not isinstance(outcome, str) for segment in outcome]
    ordered = [segment for chunk in chunks for segment in found.get(chunk[0].path, ())]
    return ordered, [{"path": path, "error": failed[path]} for path in sorted(failed)]


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


def _read_here(listing: Listing, files: Sequence[Entry]) -> bool:
    """Say whether the driver reads the files: loose images have no footers, and a CSV is read whole, which may be a lot."""
    return listing.format == "images" or not files or (listing.format == "parquet" and len(files) <= FILES_PER_TASK)


def _here(
    scan: Callable[[Sequence[Entry]], Scanned], chunks: Iterable[Sequence[Entry]]
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
