"""`nightshift reject CONFIG`: keep what a check held back out of every view."""

from jobs.console import counted, say
from jobs.runs import Run, utc_now
from pipeline.holds import REJECTED, decide, read_holds, to_decide


def work(run: Run, held: str | None = None) -> None:
    """Decide against a run's labels (default: the only ones that wait). They stay where they are, and nobody publishes them."""
    hold = to_decide(read_holds(run.store, run.config.dataset), held, REJECTED)
    decide(run.store, run.config.dataset, hold.run_id, REJECTED, {"at": utc_now(), "by": run.id})
    say(
        f"rejected: {counted(hold.images)} of run {hold.run_id} are in no view; changed images, another model or other settings "
        "of label are judged anew"
    )
