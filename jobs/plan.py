"""`nightshift plan`: look at the input and bring its shards up to date."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.console import counted, say, stage
from jobs.runs import HELD, Run, utc_now
from pipeline.plans import Changes, Plan, read_plan
from pipeline.storage import Storage

if TYPE_CHECKING:
    from cluster.planner import Look

Save = Callable[[Storage, Plan, str], None]


def work(run: Run) -> None:
    """Plan, and say what was found."""
    plan, new = make_plan(run)
    known = "snapshot" if new else "unchanged since snapshot"
    say(f"{counted(plan.num_images)} in {counted(len(plan.shards), 'shard')}, {known} {plan.n} of {plan.dataset}")


def make_plan(run: Run, save: Save | None = None) -> tuple[Plan, bool]:
    """Plan, and let `save` keep a new snapshot (default: in the store). Files that cannot be read make the run end with 3."""
    with stage("plan", None, "files") as progress:
        plan, new = bring_up_to_date(run, progress.advance, save=save)
    note_plan(run, plan, new, progress.seconds)
    return plan, new


def bring_up_to_date(
    run: Run, advanced: Callable[[int], None], found: "Look | None" = None, save: Save | None = None
) -> tuple[Plan, bool]:
    """Return the newest snapshot and whether it is new; `found` is what a listing of the input brought, if there was one."""
    from cluster.planner import plan as plan_input

    config = run.config
    return plan_input(
        run.store, config.input, config.storage, utc_now(), run.start_cluster, advanced, config.label.columns, save, found
    )  # fmt: skip


def note_plan(run: Run, plan: Plan, new: bool, seconds: float) -> None:
    """Record and say what planning found."""
    run.stage("plan", seconds, plan.num_images)
    if plan.ignored_files:
        say(f"ignored: {counted(plan.ignored_files, 'other file')}")
    what = plan.details["changes"] if new else asdict(Changes(0, 0, 0))
    run.note(changes=what)
    if new and plan.n > 1:
        say(f"new {what['new']:,}, changed {what['changed']:,}, deleted {counted(what['deleted'])}")
    note_failed_files(run, plan)


def present_plan(run: Run, save: Save | None = None) -> Plan:
    """Return the newest plan, made now if there is none."""
    plan = read_plan(run.store, run.config.dataset) or make_plan(run, save)[0]
    note_failed_files(run, plan)
    return plan


def note_failed_files(run: Run, plan: Plan) -> None:
    """Record the files that cannot be read: the rest goes on, the exit code says so."""
    if plan.failed_files and not run.record["failed_files"]:
        run.note(failed_files=list(plan.failed_files))
        for file in plan.failed_files[:5]:
            say(f"cannot be read: {file['error']}")
        run.end(HELD, f"{len(plan.failed_files)} input files cannot be read")
