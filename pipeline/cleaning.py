"""What nobody needs any more: superseded label files, old generations, features, trainings, plans, runs.

A file goes only when it is older than the cutoff *and* nothing needs it. The store's files are listed before anything
is read, so what is committed meanwhile is no candidate; and just before it goes each file is looked at once more.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline import layout
from pipeline.deltatable import VIEW as DELTA_TRANSACTION
from pipeline.documents import Document, read_document
from pipeline.errors import NotFoundError, StorageError
from pipeline.holds import REJECTED, Hold, read_holds
from pipeline.layout import Generation
from pipeline.ledger import read_ledger
from pipeline.plans import read_plan, read_unfinished
from pipeline.publication import read_view
from pipeline.shards import Shard
from pipeline.storage import Entry, Storage, scheme_of

AT_ONCE = 16
NIGHTS_KEPT = 30  # records of runs that later nights are compared with
FOUND = re.compile(r"/(result|tuning|trials/[^/]+|folds/[^/]+)\.json$")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")

Found = dict[str, list[Entry]]


@dataclass(frozen=True)
class Scope:
    """What is cleaned, and what is asked for now besides the views: `generations` of labels, `versions` of the model."""

    dataset: str
    model: str
    cutoff: datetime
    generations: frozenset[Generation]
    versions: frozenset[str]

    def old(self, entries: Iterable[Entry]) -> bool:
        """Say whether all of them were last written before the cutoff; a store that gives no time keeps everything."""
        return all(entry.modified_at is not None and entry.modified_at < self.cutoff for entry in entries)


def cutoff(days: int) -> datetime:
    """Return the moment so many days ago."""
    return datetime.now(UTC) - timedelta(days=days)


def superfluous(store: Storage, scope: Scope, with_models: bool = False) -> Found:
    """Return what may go, by kind, in the order in which it should: what names a file goes before the file."""
    dataset = scope.dataset
    folders = {
        "views": layout.published(dataset), "ledger": f"ledger/{dataset}", "labels": layout.table(dataset),
        "quarantine": f"quarantine/{dataset}", "plans": layout.plans(dataset), "features": f"features/{dataset}",
        "trainings": "trainings", "runs": "runs", "models": f"models/{scope.model}", "cache": "cache", "reviews": layout.reviews(dataset),
    }  # fmt: skip
    listed = {kind: list(store.list(folder)) for kind, folder in folders.items()}
    views = _kept_views(store, scope, listed["views"], _delta_view(store, scope, listed["labels"]))
    documents = list(views.values())
    ledger, labels, quarantine = _labels(store, scope, documents, listed)
    return {
        "views": [entry for entry in listed["views"] if scope.old([entry]) and _number(entry) not in views],
        "ledger": ledger,
        "labels": labels,
        "quarantine": quarantine,
        "plans": _plans(store, scope, listed["plans"]),
        "features": _features(scope, listed["features"], listed["trainings"]),
        "trainings": _trainings(scope, listed["trainings"]),
        "runs": _runs(store, scope, documents, listed["runs"]),
        "models": _models(store, scope, documents, listed["models"], listed["runs"]) if with_models else [],
        "cache": _cache(scope, listed["cache"]),
        "reviews": [entry for entry in listed["reviews"] if scope.old([entry]) and _number(entry) not in views],
        "temporary": [entry for entry in _temporary(store) if scope.old([entry])],
    }


def remove(store: Storage, scope: Scope, found: Found) -> Found:
    """Delete what was found, unless it was written again or published meanwhile; return what is gone."""
    view = read_view(store, scope.dataset)
    needed = _files_of([view.document]) if view else set()
    gone: Found = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for kind, entries in found.items():
            chosen = [entry for entry in entries if entry.path not in needed]
            documents = [entry for entry in chosen if entry.path.endswith(".json")]
            files = [entry for entry in chosen if not entry.path.endswith(".json")]
            deleted = [list(pool.map(lambda entry: _delete(store, scope, entry), part)) for part in (documents, files)]
            gone[kind] = [entry for part in deleted for entry in part if entry]
    return gone


def _delete(store: Storage, scope: Scope, entry: Entry) -> Entry | None:
    """Delete a file and return it, None when there was nothing to delete, or something new."""
    try:
        if not scope.old([store.stat(entry.path)]):
            return None
    except NotFoundError:
        return None
    store.delete(entry.path)
    return entry


# Views, and what they list.


def _kept_views(store: Storage, scope: Scope, listed: Sequence[Entry], delta_view: int | None) -> dict[int, Document]:
    """Return the documents of the newest view, and of those that were replaced after the cutoff: readers may be at them.

    A Delta table may be behind the views; from the one that it showed at the cutoff all stay.
    """
    entries = sorted((number, entry) for entry in listed if (number := _number(entry)) is not None)
    kept = {}
    for index, (number, entry) in enumerate(entries):
        replaced_by = entries[index + 1][1] if index + 1 < len(entries) else None
        shown = delta_view is not None and number >= delta_view
        if replaced_by is None or not scope.old([replaced_by]) or shown:
            kept[number] = read_document(store, entry.path)
    return kept


def _delta_view(store: Storage, scope: Scope, labels: Sequence[Entry]) -> int | None:
    """Return the number of the view that the Delta table showed at the cutoff, 0 when that cannot be known, None without one."""
    log = f"{layout.table(scope.dataset)}/_delta_log/"
    commits = [entry for entry in labels if entry.path.startswith(log)]
    seen: list[int] = []
    for entry in sorted(commits, key=lambda entry: entry.path, reverse=True):
        if not re.fullmatch(r"\d{20}\.json", entry.path.removeprefix(log)):
            continue
        actions = [json.loads(line) for line in store.read(entry.path).splitlines() if line.strip()]
        transactions = [action["txn"] for action in actions if "txn" in action]
        seen += [int(txn["version"]) for txn in transactions if txn["appId"] == DELTA_TRANSACTION]
        if seen and scope.old([entry]):
            break
    return min(seen, default=0) if commits else None


def _files_of(documents: Iterable[Document]) -> set[str]:
    """Return the label and quarantine files that views list."""
    return {
        path
        for document in documents
        for path in (*(file["path"] for file in document["files"]), *document["quarantine_files"])
    }


def _generations_of(documents: Iterable[Document]) -> set[str]:
    """Return the names of the generations that views take labels from."""
    found = set()
    for document in documents:
        found |= {document["generation"], *(file.get("generation") for file in document["files"])}
        if isinstance(document["shards_without_labels"], dict):
            found |= set(document["shards_without_labels"].values())
    return found - {None}


# Labels.


def _labels(
    store: Storage, scope: Scope, documents: Sequence[Document], listed: Found
) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Return the ledger entries, the label files and the quarantine files that nothing needs."""
    plan = read_plan(store, scope.dataset)
    if plan is None:
        return [], [], []  # nothing says which shards there are
    shards = [*plan.shards, *read_unfinished(store, scope.dataset)]
    ledgers = _grouped(listed["ledger"], 2)
    needed = _generations_of(documents) | {generation.name for generation in scope.generations}
    needed |= {name for name, entries in ledgers.items() if not scope.old(entries)}  # someone is at it
    needed |= {shard.rpartition("/")[0] for hold in _waiting(store, scope) for shard in hold.shards}
    known = {shard.id for shard in shards}
    ledger = [
        entry
        for name, entries in ledgers.items()
        for entry in entries
        if scope.old([entry]) and not (name in needed and (_stem(entry) in known or _is_rollup(entry)))
    ]
    keep = _files_of(documents) | _committed(store, scope.dataset, needed, shards)
    labels, quarantine = (
        [e for e in listed[kind] if scope.old([e]) and e.path not in keep and "@" in e.path.split("/")[2]]
        for kind in ("labels", "quarantine")
    )
    return ledger, labels, quarantine


def _waiting(store: Storage, scope: Scope) -> list[Hold]:
    """Return what checks have held back and nobody has rejected: it may be published yet."""
    return [hold for hold in read_holds(store, scope.dataset) if hold.decision != REJECTED]


def _committed(store: Storage, dataset: str, names: Iterable[str], shards: Sequence[Shard]) -> set[str]:
    """Return the files that the ledgers of some generations name for these shards."""
    found = set()
    for model, _, fingerprint in (name.rpartition("@") for name in names):
        for entry in read_ledger(store, Generation(dataset, model, fingerprint), shards).values():
            found |= {file.path for file in (entry.labels, entry.quarantine) if file}
    return found


# The other kinds.


def _plans(store: Storage, scope: Scope, listed: Sequence[Entry]) -> list[Entry]:
    """Return older snapshots, and what lies beside the newest complete one unlisted. Newer, unfinished ones are history."""
    groups = {int(name): entries for name, entries in _grouped(listed, 2).items() if name.isdigit()}
    complete = [n for n, entries in groups.items() if any(entry.path.endswith("/plan.json") for entry in entries)]
    if not complete:
        return []
    newest = max(complete)
    folder = f"{layout.plans(scope.dataset)}/{newest}"
    parts = {f"{folder}/{part}" for part in read_document(store, f"{folder}/plan.json")["parts"]}
    beside = [e for e in groups[newest] if scope.old([e]) and e.path not in parts | {f"{folder}/plan.json"}]
    older = [entry for n, entries in groups.items() if n < newest and scope.old(entries) for entry in entries]
    return older + beside


def _features(scope: Scope, listed: Sequence[Entry], trainings: Sequence[Entry]) -> list[Entry]:
    """Return old example tables; none while a training is young, which may be reading them."""
    return [entry for entry in listed if scope.old([entry])] if scope.old(trainings) else []


def _trainings(scope: Scope, listed: Sequence[Entry]) -> list[Entry]:
    """Return the checkpoints of trainings that nothing was written to since the cutoff.

    That they are finished stays known, and so does what tuning and cross-validation found.
    """
    return [entry for entry in _old_groups(scope, listed) if not FOUND.search(entry.path)]


def _cache(scope: Scope, listed: Sequence[Entry]) -> list[Entry]:
    """Return old cache files, but not digests of ids: without them publishing reads all labels, and it joins them itself."""
    return [entry for entry in listed if scope.old([entry]) and not entry.path.startswith(layout.identities(""))]


def _runs(store: Storage, scope: Scope, documents: Sequence[Document], listed: Sequence[Entry]) -> list[Entry]:
    """Return the files of old runs of this data set, but not of those that made a view, nor of the last ones."""
    entries = [entry for entry in listed if entry.path.endswith("/run.json")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        records = list(pool.map(lambda entry: _record(store, entry.path), entries))
    pairs = [(entry, record) for entry, record in zip(entries, records, strict=True) if "started_at" in record]
    pairs.sort(key=lambda pair: (str(pair[1]["started_at"]), str(pair[0].modified_at)))  # of one second: as they ended
    own = [record for _, record in pairs if record.get("dataset") == scope.dataset]
    measured = [record for record in own if record.get("images_per_s")]  # --dry-run goes by the last one
    keep = {document.get("run_id") for document in documents} | {r["run_id"] for r in own[-1:] + measured[-1:]}
    nights = [record["run_id"] for record in own if (record.get("night") or {}).get("images_in")]
    keep |= {*nights[-NIGHTS_KEPT:], *(hold.run_id for hold in _waiting(store, scope))}
    keep |= {_folder(e) for e, r in zip(entries, records, strict=True) if r.get("dataset") != scope.dataset}
    return [entry for entry in _old_groups(scope, listed) if _folder(entry) not in keep]


def _models(
    store: Storage, scope: Scope, documents: Sequence[Document], listed: Sequence[Entry], runs: Sequence[Entry]
) -> list[Entry]:
    """Return the files of old bundles that the config, kept views, other data sets and young runs have nothing to do with."""
    own = f"{layout.published(scope.dataset)}/"
    others = [e.path for e in store.list("published") if _number(e) is not None and not e.path.startswith(own)]
    young = [entry.path for entry in runs if entry.path.endswith("/run.json") and not scope.old([entry])]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        documents = [*documents, *pool.map(lambda path: read_document(store, path), others)]
        records = list(pool.map(lambda path: _record(store, path), young))
    named = {str(found.get("model")) for found in (*documents, *records)}
    named |= {str(file.get("model")) for document in documents for file in document["files"]}
    named |= {hold.model for hold in _waiting(store, scope)}
    keep = scope.versions | {name.rpartition("@")[2] for name in named if name.startswith(f"{scope.model}@")}
    return [
        entry
        for version, entries in _grouped(listed, 2).items()
        if version not in keep | {"production"} and scope.old(entries)
        for entry in entries
    ]


def _temporary(store: Storage) -> Iterator[Entry]:
    """Yield what writers that were killed left on a file system. Object stores have none: we write by single PUTs."""
    if scheme_of(store.url) != "file":
        return
    root = Path(store.url)
    for path in root.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(NotFoundError):  # its writer is done
                yield store.stat(path.relative_to(root).as_posix())


def _old_groups(scope: Scope, listed: Sequence[Entry]) -> list[Entry]:
    """Return the files of folders one below a kind's in which nothing was written since the cutoff."""
    return [entry for entries in _grouped(listed, 1).values() if scope.old(entries) for entry in entries]


def _grouped(listed: Iterable[Entry], depth: int) -> dict[str, list[Entry]]:
    """Return the entries by the name that stands at this depth of their paths."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in listed:
        groups[entry.path.split("/")[depth]].append(entry)
    return groups


def _record(store: Storage, path: str) -> Document:
    """Return a run's record; an empty one when it cannot be read, so that it counts as someone else's."""
    try:
        return read_document(store, path)
    except StorageError:
        return {}


def _folder(entry: Entry) -> str:
    return entry.path.split("/")[1]


def _number(entry: Entry) -> int | None:
    return int(_stem(entry)) if _stem(entry).isdigit() else None


def _is_rollup(entry: Entry) -> bool:
    return entry.path.endswith(f"/{layout.ROLLUP}")


def _stem(entry: Entry) -> str:
    return entry.path.rsplit("/", 1)[-1].removesuffix(".json").removesuffix(".parquet")
