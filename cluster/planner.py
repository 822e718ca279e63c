"""Planning on the cluster: the driver lists, footers of files that no plan has seen are read, the driver packs shards.

A listing that takes its time is planned while it goes on: the shards of its first files can be labelled before its end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from posixpath import normpath

from cluster.early import EarlyShards, Emit, History
from cluster.footers import FooterReader
from pipeline.errors import (
    AlreadyExistsError,
    EmptyInputError,
    HeldError,
    InputError,
    StoppedError,
)
from pipeline.partitions import partition_names
from pipeline.plans import PartWriter, Plan, changes, read_plan, read_unfinished, write_plan
from pipeline.refusals import printable
from pipeline.selection import row_settings
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment, Shard, make_shards, unplanned_rows, update_shards
from pipeline.sources import (
    Listing,
    dataset_name,
    is_parquet,
    listed,
    listing_of,
    open_source,
    refuse_columns,
    segments_of,
)
from pipeline.storage import Entry, Storage

Save = Callable[[Storage, Plan, str], None]


@dataclass(frozen=True)
class Look:
    """What the input holds now, and whether shards of it were handed over while it was listed."""

    listing: Listing | EmptyInputError
    early: bool = False


def look(
    store: Storage, settings: InputSettings, storage: StorageSettings,
    columns: Sequence[str] = (), emit: Emit | None = None, stop: Callable[[], bool] = lambda: False,
) -> Look:  # fmt: skip
    """List the input.

    Parameters
    ----------
    emit : Callable[[Sequence[Shard]], None]
        Given the new shards of a long listing while it goes on, each part after it was kept, but not those of inputs whose
        questions only the whole listing answers: with a filter or passed-through columns (what is a partition?).
    stop : Callable[[], bool]
        Asked before each file; once it says True the listing ends with StoppedError.

    Raises
    ------
    InputError
        When it cannot be listed. That there is nothing is the first plan's error, and a later plan's question.
    """
    early = _early(store, settings, storage, emit) if emit and not (settings.filter or columns) else None
    entries: list[Entry] = []
    try:
        for entry in listed(settings, storage):
            if stop():
                raise StoppedError("the listing was stopped")
            entries.append(entry)
            if early:
                early.take(entry)
        listing = listing_of(settings, entries)
    except EmptyInputError as error:
        return Look(error)
    if early:
        early.finish()
    return Look(listing, bool(early and early.emitted))


def _early(store: Storage, settings: InputSettings, storage: StorageSettings, emit: Emit) -> EarlyShards:
    def history() -> History:
        dataset = dataset_name(settings)
        previous = read_plan(store, dataset)
        if previous:
            _check_place(settings, previous)
        shards = [*(previous.shards if previous else ()), *read_unfinished(store, dataset)]
        return History(
            previous.details.get("format", "") if previous else "",
            {segment.file for shard in shards for segment in shard.segments},
            PartWriter(store, dataset, previous.n + 1 if previous else 1),
        )

    def scan(files: Sequence[Entry], kind: str) -> Iterator[Sequence[Segment]]:
        for _, outcome in FooterReader(kind, settings, storage).read(files):
            if not isinstance(outcome, str):
                yield outcome

    return EarlyShards(settings, history, scan, emit)


def plan(
    store: Storage, settings: InputSettings, storage: StorageSettings, now: str,
    connect: Callable[[], None], advanced: Callable[[int], None], columns: Sequence[str] = (),
    save: Save | None = None, found: Look | None = None,
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
    found : Look
        The input (default: it is listed now). After one that handed shards over the driver reads the remaining footers by
        itself: labellers may hold the cluster.

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
    found = found or look(store, settings, storage)
    listing, dataset = found.listing, dataset_name(settings)
    while True:
        previous = read_plan(store, dataset)
        if isinstance(listing, EmptyInputError):
            if previous is None:
                raise listing
            listing = Listing(previous.details.get("format", ""), (), 0)
        source, passed = _of_rows(settings, columns, listing)
        reader = FooterReader(listing.format, source, storage, passed, None if found.early else connect)
        try:
            return _update(store, previous, listing, now, reader, advanced, save or write_plan)
        except AlreadyExistsError:
            continue  # another planner completed this number: build on what it wrote


def _of_rows(settings: InputSettings, columns: Sequence[str], listing: Listing) -> tuple[InputSettings, list[str]]:
    """Return the input and the columns without what Hive partitions answer: the rest is asked of each table."""
    paths = [file.path for file in listing.files]
    source, names = row_settings(settings, paths), partition_names(paths)
    passed = [name for name in columns if name not in names]
    if listing.format == "images":
        refuse_columns(source, passed)
    return source, passed


def _update(
    store: Storage, previous: Plan | None, listing: Listing, now: str, reader: FooterReader,
    advanced: Callable[[int], None], save: Save,
) -> tuple[Plan, bool]:  # fmt: skip
    settings = reader.settings
    dataset = dataset_name(settings)
    if previous:
        _check_place(settings, previous)
        _check_vanished(settings, previous, listing)
    history = [*(previous.shards if previous else ()), *read_unfinished(store, dataset)]
    kept = update_shards(history, {file.identity for file in listing.files})
    files = _unplanned(listing, kept)
    _check_known(kept, reader)
    segments, failed = _scan(files, reader, advanced)
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
            "looks like this: check that the files are there. No plan was made, and the view stays as it was. If they "
            "were deleted on purpose, run this once with --set input.max_vanished_fraction=1"
        )


def _check_known(kept: Sequence[Shard], reader: FooterReader) -> None:
    """Check what is asked of columns on one file that an earlier plan has read, which asked for less perhaps."""
    known = next((s for shard in kept for s in shard.live if is_parquet(s.path)), None)
    if known and (reader.settings.filter or reader.columns):
        folder, _ = open_source(reader.settings, reader.storage)
        segments_of(Entry(*known.file), "parquet", reader.settings, folder, reader.columns)


def _unplanned(listing: Listing, kept: Sequence[Shard]) -> list[Entry]:
    """Return the files that have rows without a shard: new ones, and those that an unfinished plan got halfway through."""
    left: dict[tuple[str, int, str], int] = {}
    for segment in (segment for shard in kept for segment in shard.live):
        left[segment.file] = left.get(segment.file, segment.file_rows) - segment.num_rows
    return [file for file in listing.files if left.get(file.identity, 1) > 0]


def _scan(
    files: Sequence[Entry], reader: FooterReader, advanced: Callable[[int], None]
) -> tuple[list[Segment], list[dict[str, str]]]:
    """Return the segments of files in listing order, and the files that cannot be read, with the reason."""
    found: dict[str, list[Segment]] = {}
    failed: dict[str, str] = {}
    for file, outcome in reader.read(files):
        advanced(1)
        if isinstance(outcome, str):
            failed[file.path] = outcome
        else:
            found[file.path] = outcome
    ordered = [segment for file in files for segment in found.get(file.path, ())]
    return ordered, [{"path": path, "error": failed[path]} for path in sorted(failed)]
