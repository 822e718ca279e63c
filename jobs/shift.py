"""What one run labels: shards over labellers, within the run's limits, with its books."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.console import Progress, say, stage
from jobs.limits import Limits
from jobs.runs import Run
from jobs.tally import Tally
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.shards import Shard
from pipeline.tasks import LabelTask

if TYPE_CHECKING:
    from cluster.dispatch import Failure


class Shift:
    """The labelling of one run. `done` holds the entries that it has committed, by shard id."""

    def __init__(self, run: Run) -> None:
        self._run, self.limits, self._tally = run, Limits(run.config.label, run.started), Tally(Counter())
        self.done: dict[str, LedgerEntry] = {}
        self._progress: Progress | None = None

    def label(self, shards: Iterable[Shard | None], task: LabelTask, images: int | None = None) -> None:
        """Label shards, as they come when there are None among them (see cluster.labeller); the run's record says how it went.

        `images` is how many they hold, when that is known; else see `expect`.
        """
        from cluster.labeller import label

        run = self._run
        run.start_cluster()
        with stage("label", images) as self._progress:
            for shard, outcome in label(shards, task, self.limits.passed, self._tally.retried):
                self._take(shard, outcome)
                self._progress.remark = self._tally.words
                self._progress.advance(shard.num_images)
        run.stage("label", self._progress.seconds, self._progress.done)
        run.note(images_per_s=round(self._progress.rate, 1), retries=self._tally.retries, engines=self._tally.engines)
        run.note(time_shares={stage: round(share, 3) for stage, share in self._tally.shares.items()})

    def expect(self, images: int) -> None:
        """Say how many images `label` works on, when it has begun without knowing."""
        if self._progress:
            self._progress.total = images

    def done_of(self, plan: Plan) -> dict[str, LedgerEntry]:
        """Return what was committed and is in a plan: of two planners' shards of the same rows one is left out."""
        return {shard.id: self.done[shard.id] for shard in plan.shards if shard.id in self.done}

    def _take(self, shard: Shard, outcome: "LedgerEntry | Failure") -> None:
        run = self._run
        if not isinstance(outcome, LedgerEntry):
            failures = [*run.record["failures"], {"shard": shard.id, **asdict(outcome)}]
            run.note(failures=failures, failed_shards=len(failures))
            return
        if not self.done and "said" in outcome.used:
            say(f"engine: {outcome.used['said']}")
        self.done[shard.id] = outcome
        live = outcome.live_counts(shard)
        self.limits.count(live.images_in)
        self._tally.add(outcome, live)
        run.count(self._tally.counts)  # a run that is stopped says what it did
