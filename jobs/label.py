"""`nightshift label`: label what the newest plan holds and nothing has labelled yet, check the books, publish the view."""

import math

from jobs.config import Config
from jobs.console import say
from jobs.gate import counts_of
from jobs.overlap import alone
from jobs.plan import present_plan
from jobs.runs import Run
from jobs.settle import settle
from jobs.shift import Shift
from pipeline.coverage import Coverage, read_coverage
from pipeline.deltatable import require_deltalake
from pipeline.errors import IntegrityError, StorageError, TransientError
from pipeline.layout import Generation
from pipeline.ledger import roll_up
from pipeline.plans import Plan
from pipeline.publication import read_view
from pipeline.registry import generation, resolve
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings
from pipeline.shards import Shard
from pipeline.tasks import LabelTask

ROUNDS = 3  # of labelling, then comparing the files with the ledger


def work(run: Run, retry_quarantined: bool = False) -> None:
    """Label and publish."""
    check_output(run)
    with alone(run) as ours:
        if ours:
            version = resolve(run.store, run.config.model)
            label_plan(run, present_plan(run), version, retry_quarantined)


def check_output(run: Run) -> None:
    """Refuse a table that cannot be kept, before any work starts."""
    if run.config.output.table == "delta":
        require_deltalake(run.config.store, run.config.dataset)


def label_plan(
    run: Run, plan: Plan, version: str, retry_quarantined: bool = False,
    shift: Shift | None = None, earlier: Coverage | None = None,
) -> None:  # fmt: skip
    """Label the plan's open shards and publish.

    `shift` may have labelled some of them while the plan was made; `earlier` is what was covered, when that was read already.
    """
    shift = shift or Shift(run)
    earlier = (earlier or covered(run, plan, version)).without(shift.done)
    before = earlier.entries
    again = [shard_id for shard_id, entry in before.items() if entry.quarantine] if retry_quarantined else []
    coverage = earlier.without(again)
    run.note(skipped=counts_of(plan, coverage.entries).images_in)
    coverage = _label_rounds(run, plan, version, coverage, shift)
    left = open_shards(run, plan, coverage)
    if again:  # shards that were not reached keep the labels that they have
        coverage = coverage.completed(earlier.without(earlier.mismatched(run.store)))
    _roll_up(run, coverage)
    done = {shard_id: entry for shard_id, entry in coverage.entries.items() if entry is not before.get(shard_id)}
    settle(run, plan, coverage, done, left, shift.limits.reason)


def _roll_up(run: Run, coverage: Coverage) -> None:
    """Keep the ledger in one file for the next night. It saves requests and decides nothing: a full disk is met elsewhere."""
    try:
        roll_up(run.store, coverage.asked, coverage.ledger)
    except (StorageError, TransientError) as error:
        say(f"the ledger could not be copied into one file, so the next run reads its entries one by one: {error}")


def covered(run: Run, plan: Plan, version: str) -> Coverage:
    """Return what is labelled already, as this config asks for it."""
    asked = ask(run, plan, version)
    if plan.shards and not selected(plan.shards, run.config.input):
        predicates = ", ".join(f"{name} {operator} {value}" for name, operator, value in run.config.input.filter)
        say(f"input.filter ({predicates}) takes none of the partitions of plan {plan.n}: there is nothing to label")
    view = read_view(run.store, plan.dataset)
    return read_coverage(run.store, asked, plan.shards, view, run.config.label.relabel)


def ask(run: Run, plan: Plan, version: str) -> Generation:
    """Return the generation that this run's labels belong to, and record it."""
    asked = asked_of(run.config, plan, version)
    run.note(model=f"{asked.model}@{version}", fingerprint=asked.fingerprint)
    return asked


def asked_of(config: Config, plan: Plan, version: str) -> Generation:
    """Return the generation that labels by this config belong to."""
    return generation(plan.dataset, config.model.name, version, _rows(config, plan), config.label)


def _rows(config: Config, plan: Plan) -> InputSettings:
    """Return the input as readers and generations mean it: without the predicates that only choose shards."""
    return row_settings(config.input, live_paths(plan.shards))


def open_shards(run: Run, plan: Plan, coverage: Coverage) -> list[Shard]:
    """Return the shards that this run is asked to label and that nothing has labelled."""
    done = coverage.entries
    return [shard for shard in selected(plan.shards, run.config.input) if shard.id not in done]


def _label_rounds(run: Run, plan: Plan, version: str, coverage: Coverage, shift: Shift) -> Coverage:
    """Label until every entry's file is there as committed, or a limit is met."""
    for _ in range(ROUNDS):
        coverage = coverage.extended(shift.done_of(plan))
        for shard_id in (lost := coverage.mismatched(run.store)):
            say(f"shard {shard_id}: a file of it is not what the ledger says; labelling it again")
        coverage = coverage.without(lost)
        failed = {failure["shard"] for failure in run.record["failures"]}
        todo = shift.limits.take([shard for shard in open_shards(run, plan, coverage) if shard.id not in failed])
        if not todo or shift.limits.passed():
            return coverage
        shift.label(todo, task_of(run, plan, coverage.asked, version), sum(shard.num_images for shard in todo))
    coverage = coverage.extended(shift.done_of(plan))
    if lost := coverage.mismatched(run.store):
        raise IntegrityError(
            f"{len(lost)} shards, such as {lost[0]}, have other files than their ledger says, {ROUNDS} times in a row; nothing "
            f"was published. Something else writes to {run.store.url}, or it loses what it was given: find out which"
        )
    return coverage


def task_of(run: Run, plan: Plan, asked: Generation, version: str) -> LabelTask:
    """Return what labellers need to know."""
    config = run.config
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    return LabelTask(
        config.store, config.storage, _rows(config, plan), config.label, asked, version, run.id, threads,
        config.model.builder,
    )  # fmt: skip
