"""Labels that a check holds back, and what a person decided about them. Both are written once and kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from pipeline import layout
from pipeline.documents import Document, encode, find_document, read_document
from pipeline.errors import AlreadyExistsError, IntegrityError, UsageError
from pipeline.storage import Storage

APPROVED, REJECTED = "approved", "rejected"
MOST_OF_ONE_RUN = 100


@dataclass(frozen=True)
class Hold:
    """What one run committed and did not publish.

    `shards` are `<generation>/<shard id>`, whatever run labels them again under that name; `model` is `name@version`;
    `reasons` are for people. `decision` is None until there is one.
    """

    run_id: str
    model: str
    at: str
    images: int
    reasons: tuple[str, ...]
    shards: tuple[str, ...] = field(repr=False, default=())
    decision: str | None = None


def write_hold(storage: Storage, dataset: str, hold: Hold) -> str:
    """Record a hold and return its name: the run's, or that with a number where the run held something else before."""
    for number in range(1, MOST_OF_ONE_RUN):
        named = hold if number == 1 else replace(hold, run_id=f"{hold.run_id}.{number}")
        document = {key: value for key, value in asdict(named).items() if key != "decision"}
        path = f"{layout.holds(dataset)}/{named.run_id}/hold.json"
        try:
            storage.create(path, encode(document))
            return named.run_id
        except AlreadyExistsError:
            if tuple(read_document(storage, path)["shards"]) == hold.shards:
                return named.run_id
    raise IntegrityError(f"run {hold.run_id} has held back {MOST_OF_ONE_RUN - 1} times")


def read_holds(storage: Storage, dataset: str) -> list[Hold]:
    """Return all holds of a data set, the oldest first, each with its decision."""
    paths = {entry.path for entry in storage.list(layout.holds(dataset))}
    found = []
    for path in sorted(path for path in paths if path.endswith("/hold.json")):
        document = read_document(storage, path)
        hold = Hold(**{**document, "reasons": tuple(document["reasons"]), "shards": tuple(document["shards"])})
        decided = _decision(dataset, hold.run_id)
        if decided in paths:
            hold = replace(hold, decision=read_document(storage, decided)["decision"])
        found.append(hold)
    return sorted(found, key=lambda hold: (hold.at, hold.run_id))


def to_decide(holds: Sequence[Hold], run_id: str | None, decision: str) -> Hold:
    """Return the hold of a run, or the only one that waits. One that was decided so before is decided so again.

    Raises
    ------
    UsageError
        When it is decided otherwise, unknown, or one of several.
    """
    waiting = {hold.run_id: hold for hold in holds if hold.decision is None}
    named = ", ".join(waiting) or "none"
    if run_id is not None:
        known = {hold.run_id: hold for hold in holds}
        if run_id not in known:
            raise UsageError(f"nothing of run {run_id} is held back; waiting for a decision: {named}")
        if known[run_id].decision not in (None, decision):
            raise UsageError(f"what run {run_id} labelled was {known[run_id].decision} before; a decision stays")
        return known[run_id]
    if len(waiting) != 1:
        raise UsageError(
            f"which run? Waiting for a decision: {named}" + ("; give --run with one of them" if waiting else "")
        )
    return next(iter(waiting.values()))


def decide(storage: Storage, dataset: str, run_id: str, decision: str, about: Document) -> None:
    """Record a decision; UsageError when there is another one already."""
    path = _decision(dataset, run_id)
    try:
        storage.create(path, encode({"decision": decision, **about}))
    except AlreadyExistsError:
        if (there := find_document(storage, path)) and there["decision"] != decision:
            raise UsageError(f"what run {run_id} labelled was {there['decision']} before; a decision stays") from None


def _decision(dataset: str, run_id: str) -> str:
    return f"{layout.holds(dataset)}/{run_id}/decision.json"
