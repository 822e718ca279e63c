"""`nightshift approve CONFIG`: publish what a check held back."""

from jobs.console import counted, say
from jobs.label import covered, open_shards
from jobs.overlap import alone
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from jobs.settle import settle
from pipeline.errors import UsageError
from pipeline.holds import APPROVED, decide, read_holds, to_decide
from pipeline.registry import resolve


def work(run: Run, held: str | None = None) -> None:
    """Decide for a run's labels (default: the only ones that wait), and publish. Asked again, it publishes again."""
    with alone(run) as ours:
        if ours:
            _approve(run, held)


def _approve(run: Run, held: str | None) -> None:
    dataset = run.config.dataset
    hold = to_decide(read_holds(run.store, dataset), held, APPROVED)
    plan = present_plan(run)
    coverage = covered(run, plan, resolve(run.store, run.config.model))
    there = {f"{generation.name}/{shard_id}" for generation, entries in coverage.parts for shard_id in entries}
    if not there & set(hold.shards):
        raise UsageError(
            f"what run {hold.run_id} labelled ({hold.model}) is not what is published now: that is {coverage.asked.name}. Another "
            "model or other settings have superseded it, or its images are gone; `nightshift reject` closes it"
        )
    decide(run.store, dataset, hold.run_id, APPROVED, {"at": utc_now(), "by": run.id})
    say(f"approved: {counted(hold.images)} of run {hold.run_id}")
    settle(run, plan, coverage, {}, open_shards(run, plan, coverage), "", judges_new=False)
