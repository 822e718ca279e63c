"""`nightshift label`: label what the newest plan holds and nothing has labelled yet, check the books, publish the view."""

import math
from typing import Any

from jobs.console import counted, say, stage
from jobs.plan import present_plan
from jobs.runs import HELD, NOTHING_NEW, Run, utc_now
from pipeline.counts import Counts
from pipeline.errors import IntegrityError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, mismatched, read_ledger
from pipeline.plans import Plan
from pipeline.publication import View, publish, read_view
from pipeline.registry import generation, resolve
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings
from pipeline.shards import Shard
from pipeline.tasks import LabelTask

ROUNDS = 3  # of labelling, then comparing the files with the ledger


def work(run: Run, retry_quarantined: bool = False) -> None:
    """Label and publish."""
    version = resolve(run.store, run.config.model.name, run.config.model.version)
    label_plan(run, present_plan(run), version, retry_quarantined)


def label_plan(run: Run, plan: Plan, version: str, retry_quarantined: bool = False) -> None:
    """Label the plan's open shards and publish."""
    config = run.config
    source = row_settings(config.input, live_paths(plan.shards))
    asked = generation(plan.dataset, config.model.name, version, source, config.label)
    run.note(model=f"{config.model.name}@{version}", fingerprint=asked.fingerprint)
    ledger = read_ledger(run.store, asked, plan.shards)
    if retry_quarantined:
        ledger = {shard_id: entry for shard_id, entry in ledger.items() if not entry.quarantine}
    before = dict(ledger)
    run.note(skipped=_counts(plan, before).images_in)
    ledger = _label_rounds(run, plan, asked, version, ledger)
    done = {shard_id: entry for shard_id, entry in ledger.items() if entry is not before.get(shard_id)}
    skipped = {shard_id: entry for shard_id, entry in ledger.items() if shard_id not in done}
    _settle(run, plan, asked, ledger, _counts(plan, done), _counts(plan, skipped))


def _label_rounds(
    run: Run, plan: Plan, asked: Generation, version: str, ledger: dict[str, LedgerEntry]
) -> dict[str, LedgerEntry]:
    """Label until every entry's file is there as committed; return the ledger."""
    for _ in range(ROUNDS):
        for shard_id in mismatched(run.store, asked, ledger):
            say(f"shard {shard_id}: a file of it is not what the ledger says; labelling it again")
            del ledger[shard_id]
        todo = [shard for shard in selected(plan.shards, run.config.input) if shard.id not in ledger]
        failed = {failure["shard"] for failure in run.record["failures"]}
        if not [shard for shard in todo if shard.id not in failed]:
            return ledger
        source = row_settings(run.config.input, live_paths(plan.shards))
        ledger = ledger | _label_shards(run, todo, source, asked, version)
    if lost := mismatched(run.store, asked, ledger):
        raise IntegrityError(
            f"{len(lost)} shards, such as {lost[0]}, have other files than their ledger says, {ROUNDS} times in a row; nothing "
            f"was published. Something else writes to {run.store.url}, or it loses what it was given: find out which"
        )
    return ledger


def _label_shards(
    run: Run, shards: list[Shard], source: InputSettings, asked: Generation, version: str
) -> dict[str, LedgerEntry]:
    from cluster.dispatch import Failure
    from cluster.labeller import label

    config, entries, failures, done = run.config, {}, [], Counts()
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    run.start_cluster()
    task = LabelTask(config.store, config.storage, source, config.label, asked, version, run.id, threads)
    with stage("label", sum(shard.num_images for shard in shards)) as progress:
        for shard, outcome in label(shards, task):
            progress.advance(shard.num_images)
            if isinstance(outcome, Failure):
                failures.append({"shard": shard.id, "error": outcome.error, "attempts": outcome.attempts})
            else:
                entries[shard.id] = outcome
                done += outcome.live_counts(shard)
                run.count(done)  # a run that is stopped says what it did
    run.stage("label", progress.seconds, progress.done)
    run.note(failures=failures, failed_shards=len(failures), images_per_s=round(progress.rate, 1))
    return entries


def _settle(
    run: Run, plan: Plan, asked: Generation, ledger: dict[str, LedgerEntry], done: Counts, skipped: Counts
) -> None:
    """Check the books, publish or hold back, and say what happened."""
    run.count(done)
    run.note(skipped=skipped.images_in)
    done.check(f"run {run.id}")
    _report_failures(run)
    reason = _held(run, plan, asked, ledger)
    if reason:
        run.end(HELD, f"{reason}; the labels are kept, the view stays as it was")
    else:
        view, new = publish(run.store, asked, plan, ledger, _about(run))
        run.note(view=view.n, duplicates=view.document["duplicates"])
        _announce(run, view, new, done)
        if view.document["plan"] > plan.n:
            run.end(
                HELD,
                f"plan {plan.n} was overtaken by plan {view.document['plan']}, whose view stays; the labels are kept",
            )
    if run.config.label.require_new and not done.images_in:
        run.end(NOTHING_NEW)


def _held(run: Run, plan: Plan, asked: Generation, ledger: dict[str, LedgerEntry]) -> str:
    """Return why the result must not be published, an empty string when it may."""
    view = read_view(run.store, plan.dataset)
    if not ledger:
        return "no shard could be labelled" if plan.shards else "the plan holds no images"
    same = view is not None and view.document["generation"] == asked.name
    if view and not same and len(ledger) < len(plan.shards):
        return (
            f"{len(ledger)} of {counted(len(plan.shards), 'shard')} are labelled in this way (another model, filter or columns than "
            "the view's), and they replace the view only when all are"
        )
    fresh = {
        shard_id: entry for shard_id, entry in ledger.items() if not (same and view and shard_id in view.shard_ids)
    }
    counts, limit = _counts(plan, fresh), run.config.label.max_bad_fraction
    if counts.bad_fraction > limit:
        return (
            f"{counts.quarantined:,} of {counts.images_in:,} new images are bad ({counts.bad_fraction:.1%}), more than "
            f"label.max_bad_fraction = {limit:g}; look at `nightshift report`, then correct the input or raise the limit"
        )
    return ""


def _report_failures(run: Run) -> None:
    for failure in run.record["failures"][:5]:
        say(f"shard {failure['shard']} failed {failure['attempts']} time(s): {failure['error']}")
    if run.record["failures"]:
        run.end(HELD, f"{counted(len(run.record['failures']), 'shard')} failed; the same command tries them again")


def _about(run: Run) -> dict[str, Any]:
    return {"model": run.record["model"], "run_id": run.id, "published_at": utc_now()}


def _announce(run: Run, view: View, new: bool, done: Counts) -> None:
    say(
        f"{counted(done.images_in)} in = {done.labelled:,} labelled + {done.quarantined:,} quarantined; "
        f"{run.record['skipped']:,} were done before"
    )
    if view.document["duplicates"]:
        say(f"quarantined with both locations: {counted(view.document['duplicates'], 'row')} whose image id is taken")
    say(
        f"view {view.n} {'published' if new else 'unchanged'}: {view.counts.labelled:,} labels of {run.record['model']}"
    )


def _counts(plan: Plan, entries: dict[str, LedgerEntry]) -> Counts:
    return sum((entries[s.id].live_counts(s) for s in plan.shards if s.id in entries), Counts())
