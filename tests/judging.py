"""The command `evaluate`, run in this process: a pool of actors is replaced by a loop."""

from cluster.dispatch import Failure
from jobs.evaluate import work
from jobs.runs import Run, execute


class Workers:
    """Takes the place of the pool of actors: judges in this process, notes the shards, and gives up some."""

    def __init__(self) -> None:
        self.shards, self.gives_up = [], set()

    def over_shards(self, shards, factory, settings):
        judge = factory()
        for shard in shards:
            self.shards.append(shard)
            failed = shard.segments[0].path in self.gives_up
            yield shard, Failure("TransientError: 503", 3) if failed else judge(shard)


def evaluate(night, config, split: str | None = None, run_id: str | None = None) -> dict:
    """Run the command; return the run's record."""
    run = Run("evaluate", config, run_id)
    execute(run, lambda current: work(current, split))
    return run.record


def judge_with(night, config, version: str, split: str | None = None) -> dict:
    """Run the command for one version; return the run's record."""
    chosen = config.model.model_copy(update={"version": version})
    return evaluate(night, config.model_copy(update={"model": chosen}), split)
