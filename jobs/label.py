"""`nightshift label`: label what the newest plan holds and nothing has labelled yet, check the books, publish the view."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from jobs.config import Config
from jobs.console import say, stage
from jobs.limits import Limits
from jobs.plan import present_plan
from jobs.runs import Run
from jobs.settle import counts_of, settle
from jobs.tally import Tally
from pipeline.coverage import Coverage, read_coverage
from pipeline.deltatable import require_deltalake
from pipeline.errors import IntegrityError, StorageError, TransientError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, roll_up
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
    version = resolve(run.store, run.config.model.name, run.config.model.version)
    label_plan(run, present_plan(run), version, retry_quarantined)


def check_output(run: Run) -> None:
    """Refuse a table that cannot be kept, before any work starts."""
    if run.config.output.table == "delta":
        require_deltalake(run.config.store, run.config.dataset)


def label_plan(run: Run, plan: Plan, version: str, retry_quarantined: bool = False) -> None:
    """Label the plan's open shards and publish."""
    earlier = covered(run, plan, version)
    before = earlier.entries
    again = [shard_id for shard_id, entry in before.items() if entry.quarantine] if retry_quarantined else []
    coverage, limits = earlier.without(again), Limits(run.config.label, run.started)
    run.note(skipped=counts_of(plan, coverage.entries).images_in)
    coverage = _label_rounds(run, plan, version, coverage, limits)
    left = open_shards(run, plan, coverage)
    if again:  # shards that were not reached keep the labels that they have
        coverage = coverage.completed(earlier.without(earlier.mismatched(run.store)))
    _roll_up(run, coverage)
    done = {shard_id: entry for shard_id, entry in coverage.entries.items() if entry is not before.get(shard_id)}
    settle(run, plan, coverage, done, left, limits.reason)


def _roll_up(run: Run, coverage: Coverage) -> None:
    """Keep the ledger in one file for the next night. It saves requests and decides nothing: a full disk is met elsewhere."""
    try:
        roll_up(run.store, coverage.asked, coverage.ledger)
    except (StorageError, TransientError) as error:
        say(f"the ledger could not be copied into one file, so the next run reads its entries one by one: {error}")


def covered(run: Run, plan: Plan, version: str) -> Coverage:
    """Return what is labelled already, as this config asks for it."""
    asked = asked_of(run.config, plan, version)
    run.note(model=f"{asked.model}@{version}", fingerprint=asked.fingerprint)
    if plan.shards and not selected(plan.shards, run.config.input):
        predicates = ", ".join(f"{name} {operator} {value}" for name, operator, value in run.config.input.filter)
        say(f"input.filter ({predicates}) takes none of the partitions of plan {plan.n}: there is nothing to label")
    view = read_view(run.store, plan.dataset)
    return read_coverage(run.store, asked, plan.shards, view, run.config.label.relabel)


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


def _label_rounds(run: Run, plan: Plan, version: str, coverage: Coverage, limits: Limits) -> Coverage:
    """Label until every entry's file is there as committed, or a limit is met."""
    tally = Tally(Counter())
    for _ in range(ROUNDS):
        for shard_id in (lost := coverage.mismatched(run.store)):
            say(f"shard {shard_id}: a file of it is not what the ledger says; labelling it again")
        coverage = coverage.without(lost)
        failed = {failure["shard"] for failure in run.record["failures"]}
        todo = limits.take([shard for shard in open_shards(run, plan, coverage) if shard.id not in failed])
        if not todo or limits.passed():
            return coverage
        coverage = coverage.extended(_label_shards(run, todo, _task(run, plan, coverage.asked, version), limits, tally))
    if lost := coverage.mismatched(run.store):
        raise IntegrityError(
            f"{len(lost)} shards, such as {lost[0]}, have other files than their ledger says, {ROUNDS} times in a row; nothing "
            f"was published. Something else writes to {run.store.url}, or it loses what it was given: find out which"
        )
    return coverage


def _task(run: Run, plan: Plan, asked: Generation, version: str) -> LabelTask:
    config = run.config
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    return LabelTask(
        config.store, config.storage, _rows(config, plan), config.label, asked, version, run.id, threads
    )  # fmt: skip


def _label_shards(
    run: Run, shards: Sequence[Shard], task: LabelTask, limits: Limits, tally: Tally
) -> dict[str, LedgerEntry]:
    from cluster.dispatch import Failure
    from cluster.labeller import label

    entries: dict[str, LedgerEntry] = {}
    failures = list(run.record["failures"])
    run.start_cluster()
    with stage("label", sum(shard.num_images for shard in shards)) as progress:
        for shard, outcome in label(shards, task, limits.passed, tally.retried):
            if isinstance(outcome, Failure):
                failures.append({"shard": shard.id, **asdict(outcome)})
            else:
                if not entries and "said" in outcome.used:
                    say(f"engine: {outcome.used['said']}")
                entries[shard.id] = outcome
                live = outcome.live_counts(shard)
                limits.count(live.images_in)
                tally.add(outcome, live)
                run.count(tally.counts)  # a run that is stopped says what it did
            progress.remark = tally.words
            progress.advance(shard.num_images)
    run.stage("label", progress.seconds, progress.done)
    run.note(failures=failures, failed_shards=len(failures), images_per_s=round(progress.rate, 1))
    run.note(retries=tally.retries, engines=tally.engines)
    run.note(time_shares={stage: round(share, 3) for stage, share in tally.shares.items()})
    return entries
