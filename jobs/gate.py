"""Between labelling and publishing: what the checks say of labels that nobody has published yet, and of those held back before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from jobs.runs import OK, Run, read_runs, utc_now
from pipeline.counts import Counts
from pipeline.coverage import Coverage
from pipeline.documents import Document
from pipeline.errors import ModelError, UsageError
from pipeline.holds import APPROVED, REJECTED, Hold, decide, read_holds, write_hold
from pipeline.ledger import LedgerEntry
from pipeline.nights import Night, by_date, compare, night_of, objections
from pipeline.plans import Plan
from pipeline.publication import View, read_view
from pipeline.registry import read_bundle_document

Entries = Mapping[str, LedgerEntry]


@dataclass(frozen=True)
class Verdict:
    """What may be published, why this run's new labels may not, and why earlier runs' may not; empty where they may.

    `hold` is the name that `approve` and `reject` call the new ones by.
    """

    coverage: Coverage
    fresh: str = ""
    earlier: str = ""
    hold: str = ""


def judge(run: Run, plan: Plan, coverage: Coverage, judges_new: bool) -> Verdict:
    """Check what is not published yet: what runs before had held back, each by itself, and the rest together.

    Earlier labels that are within the bounds of now go through, as if they were approved. What was rejected stays out, and so
    does what is new where that is not to be judged: another run may be at it.
    """
    gate = _Gate(run, plan, coverage)
    earlier = [said for hold in gate.holds if (said := gate.look_at(hold))]
    if not judges_new:
        gate.out |= set(gate.open)
        return Verdict(coverage.without(gate.out), earlier="; ".join(earlier))
    found, reasons = gate.objections(gate.open)
    run.note(night=night_of(gate.open.values()).to_json(), checks=found)
    name = ""
    if reasons:
        name = gate.hold(reasons)
        gate.out |= set(gate.open)
    return Verdict(coverage.without(gate.out), "; ".join(reasons), "; ".join(earlier), name)


def counts_of(plan: Plan, entries: Entries) -> Counts:
    """Return the books of the plan's shards that have an entry."""
    return sum((entries[s.id].live_counts(s) for s in plan.shards if s.id in entries), Counts())


def published(view: View | None, coverage: Coverage) -> set[str]:
    """Return the shards that the view has from the generation that answers for them."""
    names = view.generations if view else {}
    return {
        shard_id
        for generation, entries in coverage.parts
        for shard_id in entries
        if names.get(shard_id) == generation.name
    }


class _Gate:
    """What is open: committed, not published, and not yet decided about in this run. `out` is what may not go through."""

    def __init__(self, run: Run, plan: Plan, coverage: Coverage) -> None:
        self._run, self._plan = run, plan
        self._view = read_view(run.store, plan.dataset)
        self.holds, self.out = read_holds(run.store, plan.dataset), set[str]()
        self._names = {
            shard_id: f"{generation.name}/{shard_id}" for generation, entries in coverage.parts for shard_id in entries
        }
        there = published(self._view, coverage)
        self.open = {shard_id: entry for shard_id, entry in coverage.entries.items() if shard_id not in there}
        self._relabels = self._view is not None and coverage.asked.name not in self._view.generations.values()
        self._before: Sequence[Night] | None = None

    def look_at(self, hold: Hold) -> str:
        """Take what a hold names out of what is open; return why it waits still, if it does."""
        named = set(hold.shards)
        group = {shard_id: entry for shard_id, entry in self.open.items() if self._names[shard_id] in named}
        self.open = {shard_id: entry for shard_id, entry in self.open.items() if shard_id not in group}
        if not group or hold.decision == APPROVED:
            return ""
        if hold.decision == REJECTED:
            self.out |= set(group)
            return ""
        if reasons := self.objections(group)[1]:
            self.out |= set(group)
            return f"what run {hold.run_id} labelled is held back still ({'; '.join(reasons)})"
        about = {"at": utc_now(), "by": self._run.id, "reason": "within the bounds of this run"}
        try:
            decide(self._run.store, self._plan.dataset, hold.run_id, APPROVED, about)
        except UsageError:  # a person has rejected it this moment
            self.out |= set(group)
        return ""

    def objections(self, entries: Entries) -> tuple[Document, list[str]]:
        """Return what was measured of some labels, and why they should not be published."""
        if not entries:
            return {}, []
        run, said = self._run, []
        counts, limit = counts_of(self._plan, entries), run.config.label.max_bad_fraction
        if counts.bad_fraction > limit:
            said.append(
                f"{counts.quarantined:,} of {counts.images_in:,} new images are bad ({counts.bad_fraction:.1%}), more than "
                f"label.max_bad_fraction = {limit:g}; look at `nightshift report`, then correct the input or raise the limit"
            )
        settings = run.config.checks
        if self._before is None:
            self._before = _nights_before(run, self.holds)
        found = compare(night_of(entries.values()), self._before[-settings.nights :], settings, self._class_names())
        if (
            self._relabels or run.record["exit_code"] != OK
        ):  # no night of its own: all is new, or a part is still to come
            found["volume"] = None
        return found, said + objections(found, settings)

    def hold(self, reasons: Sequence[str]) -> str:
        """Record what is open as held back, and return the name of that."""
        shards = tuple(sorted(self._names[shard_id] for shard_id in self.open))
        model, images = str(self._run.record["model"]), counts_of(self._plan, self.open).images_in
        hold = Hold(self._run.id, model, utc_now(), images, tuple(reasons), shards)
        return write_hold(self._run.store, self._plan.dataset, hold)

    def _class_names(self) -> dict[str, str]:
        model, _, version = str(self._run.record["model"]).partition("@")
        with suppress(ModelError):
            classes = read_bundle_document(self._run.store, model, version)["classes"]
            return {str(index): item["name"] for index, item in enumerate(classes)}
        return {}


def _nights_before(run: Run, holds: Sequence[Hold]) -> list[Night]:
    """Return the nights of the data set whose labels were published, oldest first; so a night that was held is no measure."""
    decisions = {hold.run_id: hold.decision for hold in holds}
    records = [
        record
        for record in read_runs(run.store)
        if record["dataset"] == run.config.dataset and record["run_id"] != run.id
        and (record.get("night") or {}).get("images_in")
        and (decisions[record["run_id"]] == APPROVED if record["run_id"] in decisions else record.get("view") is not None)
    ]  # fmt: skip
    return by_date(records)
