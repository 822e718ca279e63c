"""The current view: a published list of files, never a glob. Written last, create-only, so readers see one whole night.

Rows whose input vanished and second rows of an image id are left out by listing copies without them; a view may take
its shards from several generations, the newest that has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.compaction import Held, arrange, intact
from pipeline.counts import Counts
from pipeline.documents import Document, advance, digest, newest
from pipeline.duplicates import Digests, Positions, Repeated, digest64, find_repeated, read_digests
from pipeline.errors import AlreadyExistsError, IntegrityError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.settings import OutputSettings
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import create_table, read_table

Part = tuple[Generation, Mapping[str, LedgerEntry]]
NOTHING: Positions = np.empty(0, np.int64)


@dataclass(frozen=True)
class View:
    """View number n of a data set: its live label files."""

    n: int
    document: Document

    @property
    def files(self) -> list[str]:
        """Paths below the store."""
        return [file["path"] for file in self.document["files"]]

    @property
    def counts(self) -> Counts:
        """Live images, labelled and quarantined."""
        return Counts(**self.document["counts"])

    @property
    def shard_ids(self) -> set[str]:
        """Shards that were published with it, those without a single label as well."""
        return set(self.generations)

    @property
    def generations(self) -> dict[str, str]:
        """Name of the generation that each of its shards was taken from, by shard id."""
        labelled = {shard_id: file["generation"] for file in self.document["files"] for shard_id in file["shard_ids"]}
        return {**labelled, **self.document["shards_without_labels"]}


@dataclass(frozen=True)
class Chosen:
    """A shard with the generation and the entry that the view takes its labels from."""

    shard: Shard
    generation: Generation
    entry: LedgerEntry


def read_view(storage: Storage, dataset: str) -> View | None:
    """Return the current view, None before the first."""
    found = newest(storage, layout.published(dataset))
    return View(found[0], _present_form(found[1])) if found else None


def _present_form(document: Document) -> Document:
    """Return a document of nightshift 0.1, whose files held one shard each, as today's view would say it."""
    if "quarantine" in document:
        return document
    generation, model = document["generation"], document["model"]
    files = [
        {
            **file,
            "shard_ids": [file["shard_id"]],
            "states": [""],
            "shard_rows": [file["rows"]],
            "generation": generation,
            "model": model,
        }
        for file in document["files"]
    ]
    empty = dict.fromkeys(document["shards_without_labels"], generation)
    return {**document, "files": files, "shards_without_labels": empty, "quarantine": []}


def publish(
    storage: Storage, parts: Sequence[Part], plan: Plan, about: Document, output: OutputSettings | None = None
) -> tuple[View, bool]:
    """Make the live rows of the plan's committed shards the current view.

    Parameters
    ----------
    parts : Sequence[Part]
        Generations with their entries by shard id, the newest first: a shard is taken from the first part that has it.
    about : Document
        What else the view's document says: model (`name@version`, of the first part), run id, time.

    Returns
    -------
    tuple[View, bool]
        The current view, and whether it is a new one: an identical list is not published twice, and a view of a
        newer plan is never replaced by one of an older plan.
    """
    chosen, output = choose(parts, plan), output or OutputSettings()
    content = _content(chosen, parts)
    while True:
        current = read_view(storage, plan.dataset)
        if current and (current.document["plan"] > plan.n or _says(storage, current, content)):
            return current, False
        said = {**about, **_about(parts[0][0], plan, content)}
        document = {**said, **_build(storage, plan, chosen, said, current, output)}
        try:
            number = advance(storage, layout.published(plan.dataset), document, current.n if current else 0)
        except AlreadyExistsError:
            continue  # another run published meanwhile: look at what it wrote
        return View(number, {**document, "n": number}), True


def choose(parts: Sequence[Part], plan: Plan) -> list[Chosen]:
    """Return the plan's committed shards in its order, each with the entry of the first part that has it."""
    found = []
    for shard in plan.shards:
        generation, ledger = next((part for part in parts if shard.id in part[1]), (None, {}))
        if generation is not None:
            found.append(Chosen(shard, generation, ledger[shard.id]))
    return found


def live_rows(table: pa.Table, shard: Shard) -> pa.Table:
    """Return the rows whose segment still exists, of a table with the column `segment`."""
    if not shard.tombstoned:
        return table
    return table.filter(pc.invert(pc.is_in(table["segment"], value_set=pa.array(sorted(shard.tombstoned)))))


def _says(storage: Storage, view: View, content: str) -> bool:
    """Say whether a view publishes this content, with all the copies that were made for it."""
    if view.document["content"] != content:
        return False
    return all(
        len(intact(storage, view.document[kind])) == len(view.document[kind]) for kind in ("files", "quarantine")
    )


def _content(chosen: Sequence[Chosen], parts: Sequence[Part]) -> str:
    rows = [
        [c.generation.name, c.shard.id, c.entry.labels.path, c.entry.labels.sha256, sorted(c.shard.tombstoned)]
        for c in chosen
    ]
    return digest([parts[0][0].name, sorted(rows)])


def _about(generation: Generation, plan: Plan, content: str) -> Document:
    return {
        "dataset": plan.dataset, "generation": generation.name, "fingerprint": generation.fingerprint,
        "plan": plan.n, "content": content,
    }  # fmt: skip


def _build(
    storage: Storage, plan: Plan, chosen: Sequence[Chosen], said: Document, current: View | None, output: OutputSettings
) -> Document:
    """Return the part of the document that lists files and counts, after writing the copies that it lists."""
    labels, repeated = _labels(storage, plan.dataset, chosen)
    bad = _quarantine(storage, plan.dataset, chosen)
    before = current.document if current else {"files": [], "quarantine": []}
    files, rejected = (
        arrange(storage, kind, held, intact(storage, before[name]), output.compact_below)
        for kind, held, name in (("labels", labels, "files"), ("quarantine", bad, "quarantine"))
    )
    models = _models(storage, chosen, said, before["files"])
    counts = _checked(plan, chosen, files, rejected, len(repeated.rows))
    return {
        "counts": asdict(counts),
        "files": [{**file, "model": models[file["generation"]]} for file in files],
        "shards_without_labels": {h.shard.id: h.generation.name for h in labels if not h.rows},
        "quarantine": rejected,
        "quarantine_files": [file["path"] for file in rejected] + _write_repeated(storage, chosen, repeated),
        "duplicates": len(repeated.rows),
    }


def _labels(storage: Storage, dataset: str, chosen: Sequence[Chosen]) -> tuple[list[Held], Repeated]:
    """Return the live rows of the shards' label files, each id once, and the rows that repeat one."""
    files = [c.entry.labels for c in chosen]
    digests = read_digests(storage, dataset, files)
    stale = [_stale(d, c.shard) for d, c in zip(digests, chosen, strict=True)]
    repeated = find_repeated(storage, files, digests, [~gone for gone in stale])
    held = [
        Held(c.shard, c.generation, c.entry.labels, d.schema, np.flatnonzero(gone), again)
        for c, d, gone, again in zip(chosen, digests, stale, repeated.positions, strict=True)
    ]
    return held, repeated


def _quarantine(storage: Storage, dataset: str, chosen: Sequence[Chosen]) -> list[Held]:
    """Return the live rows of the shards' quarantine files."""
    bad = [(c, c.entry.quarantine) for c in chosen if c.entry.quarantine]
    digests = read_digests(storage, dataset, [file for _, file in bad])
    return [
        Held(c.shard, c.generation, file, d.schema, np.flatnonzero(_stale(d, c.shard)), NOTHING)
        for (c, file), d in zip(bad, digests, strict=True)
    ]


def _stale(digests: Digests, shard: Shard) -> npt.NDArray[np.bool_]:
    return np.isin(digests.segments, digest64(sorted(shard.tombstoned)))


def _checked(
    plan: Plan, chosen: Sequence[Chosen], files: Sequence[Document], rejected: Sequence[Document], num_repeated: int
) -> Counts:
    """Return the counts of the view; IntegrityError unless they balance, and the files hold as many rows."""
    counts = sum((c.entry.live_counts(c.shard) for c in chosen), Counts()) + Counts(0, -num_repeated, num_repeated)
    counts.check(f"data set {plan.dataset}, plan {plan.n}")
    labelled = sum(file["rows"] for file in files)
    quarantined = sum(file["rows"] for file in rejected) + num_repeated
    if (labelled, quarantined) != (counts.labelled, counts.quarantined):
        raise IntegrityError(
            f"data set {plan.dataset}, plan {plan.n}: the ledger says {counts.labelled} labelled and {counts.quarantined} "
            f"quarantined rows, the files to publish hold {labelled} and {quarantined}; nothing was published. Look for what "
            f"else writes to the store; if nothing does, delete its folder {layout.identities(plan.dataset)}, a cache, and report it"
        )
    return counts


def _models(
    storage: Storage, chosen: Sequence[Chosen], said: Document, before: Sequence[Document]
) -> dict[str, str | None]:
    """Return which model, as `name@version`, made each generation: as said, as in the last view, or as its rows say."""
    known = {file["generation"]: file["model"] for file in before} | {said["generation"]: said.get("model")}
    for c in chosen:
        if c.generation.name not in known and c.entry.labels.rows:
            known[c.generation.name] = read_table(storage, c.entry.labels.path, ("model",))["model"][0].as_py()
    return known


def _write_repeated(storage: Storage, chosen: Sequence[Chosen], repeated: Repeated) -> list[str]:
    """Write the rows whose id is taken; return where, an empty list when there are none."""
    if not repeated.rows:
        return []
    table = repeated.table()
    name = digest([table.column_names, *(table[name].to_pylist() for name in ("segment", "uri", "message"))])
    return [create_table(storage, chosen[0].generation.copy("quarantine", "duplicates", name), table).path]
