"""The end of a labelling run: check the books, publish or hold back, say what happened and what is left to do."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.console import counted, say
from jobs.gate import counts_of, judge
from jobs.runs import HELD, NOTHING_NEW, STOPPED, Run, utc_now
from pipeline import layout
from pipeline.coverage import Coverage, generations
from pipeline.deltatable import sync_table
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.publication import View, publish, read_view
from pipeline.review import write_review
from pipeline.shards import Shard
from pipeline.storage import join


def settle(
    run: Run, plan: Plan, coverage: Coverage, done: Mapping[str, LedgerEntry], left: Sequence[Shard], limit: str,
    judges_new: bool = True,
) -> None:  # fmt: skip
    """Settle a run.

    Parameters
    ----------
    done : Mapping[str, LedgerEntry]
        What this run committed.
    left : Sequence[Shard]
        What it was asked to label and did not.
    limit : str
        The limit that it met, in words; empty when it met none.
    judges_new : bool
        False for a run that decides about labels held back before: what else is new waits for the night that labels it.
    """
    new = counts_of(plan, done)
    run.count(new)
    run.note(skipped=counts_of(plan, coverage.entries).images_in - new.images_in)
    new.check(f"run {run.id}")
    _report_what_is_left(run, left, limit)
    verdict, view = judge(run, plan, coverage, judges_new), None
    if reason := verdict.fresh:
        ways = f"`nightshift approve CONFIG --run {verdict.hold}` publishes them, `reject` never does"
        _hold(run, left, f"{reason}; the labels are kept, the view stays as it was: {ways}")
    elif coverage.entries and not verdict.coverage.entries and not verdict.earlier:
        say("nothing is published: all that is labelled so far was rejected")
    elif reason := _incomplete(run, plan, verdict.coverage):
        _hold(run, left, f"{reason}; the labels are kept, the view stays as it was")
    else:
        view = _publish(run, plan, verdict.coverage)
    if verdict.earlier:
        _hold(run, (), f"{verdict.earlier}: `nightshift approve` or `reject` decides")
    if run.config.output.table == "delta" and sync_table(run.store, run.config.storage, plan.dataset):
        say(f"the Delta table at {join(run.store.url, layout.table(plan.dataset))} shows the current view")
    if view is not None:
        _review(run, view, coverage)
    if run.config.label.require_new and not new.images_in and judges_new:
        run.end(NOTHING_NEW)


def _report_what_is_left(run: Run, left: Sequence[Shard], limit: str) -> None:
    """Say which shards failed and how many images wait for the next run; the exit code follows."""
    failures = run.record["failures"]
    for failure in failures[:5]:
        say(f"shard {failure['shard']} failed {failure['attempts']} time(s): {failure['error']}")
    if failures:
        run.end(HELD, f"{counted(len(failures), 'shard')} failed; {_remedy(run.record['command'], failures)}")
    run.note(remaining=sum(shard.num_images for shard in left))
    failed = {failure["shard"] for failure in failures}
    if limit and any(shard.id not in failed for shard in left):
        run.end(STOPPED, f"{limit}; {counted(run.record['remaining'])} in {counted(len(left), 'shard')} remain")


def _remedy(command: str, failures: Sequence[Mapping[str, Any]]) -> str:
    """Return what becomes of failed shards next: planned files that changed need a plan of what they are now."""
    if command == "label" and any(failure["kind"] == "changed" for failure in failures):
        return "`nightshift nightly` plans again, takes changed files as they are now, and tries the others again"
    return "the same command tries them again"


def _hold(run: Run, left: Sequence[Shard], reason: str) -> None:
    if left:
        say(f"not published: {reason}")
    run.end(HELD, reason)


def _incomplete(run: Run, plan: Plan, coverage: Coverage) -> str:
    """Return why what is labelled makes no view, an empty string when it does."""
    view, entries = read_view(run.store, plan.dataset), coverage.entries
    if not entries:
        return "no shard is labelled yet" if plan.shards else "the plan holds no images"
    # A view may go on half done only with all the labels that it has: those of generations that answer for shards here.
    same = view is not None and set(generations(view)) <= {generation for generation, _ in coverage.parts}
    missing = [shard for shard in plan.shards if shard.id not in entries]
    if missing and view and not same:
        return (
            f"labels of another kind (a new model, filter or columns) replace the view only when every shard has them, and "
            f"{counted(len(missing), 'shard')} with {counted(sum(shard.num_images for shard in missing))} do not (label.relabel: all)"
        )
    return ""


def _about(run: Run) -> dict[str, Any]:
    return {
        "model": run.record["model"], "run_id": run.id, "published_at": utc_now(), "date": run.record["date"],
    }  # fmt: skip


def _publish(run: Run, plan: Plan, coverage: Coverage) -> View | None:
    """Publish, and return the current view, None when it is of a newer plan, of which this run knows nothing."""
    view, changed = publish(run.store, coverage.parts, plan, _about(run), run.config.output)
    run.note(view=view.n, duplicates=view.document["duplicates"])
    _announce(view, changed)
    if view.document["plan"] <= plan.n:
        return view
    newer = view.document["plan"]
    run.end(HELD, f"plan {plan.n} was overtaken by plan {newer}, whose view stays; the labels are kept")
    return None


def _review(run: Run, view: View, coverage: Coverage) -> None:
    """Write which labels a person should look at, if that is wanted. A run that died before it makes the next one do it."""
    below = run.config.label.review_below
    if below is not None:
        run.note(review=write_review(run.store, view, coverage.entries, below).to_json())


def _announce(view: View, changed: bool) -> None:
    if view.document["duplicates"]:
        say(f"quarantined with both locations: {counted(view.document['duplicates'], 'row')} whose image id is taken")
    labels = f"{view.counts.labelled:,} labels"
    if len(names := generations(view)) > 1:
        others = ", ".join(generation.name for generation in names[1:])
        models = {file["model"] for file in view.document["files"]}
        hint = "; each row's column `model` says whose it is" if len(models) > 1 else ""
        say(f"the view also lists labels of {others} (label.relabel: new){hint}")
    else:
        labels += f" of {view.document['model']}"
    say(f"view {view.n} {'published' if changed else 'unchanged'}: {labels}")
