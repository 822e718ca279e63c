"""`nightshift nightly`: plan again, label what is new, check, publish, report. The line for a scheduler."""

from jobs.ahead import plan_and_label
from jobs.label import check_output
from jobs.overlap import alone
from jobs.runs import Run
from pipeline.registry import resolve


def work(run: Run) -> None:
    """Do one night; the report is written when its record is."""
    check_output(run)
    with alone(run) as ours:
        if ours:
            version = resolve(run.store, run.config.model)
            plan_and_label(run, version)
