"""`--dry-run`: what tonight would label, how long that may take and what it may cost. Nothing is written to the store."""

import json
from typing import Any

from jobs.console import counted, say
from jobs.gate import counts_of
from jobs.label import check_output, covered, open_shards
from jobs.limits import Limits
from jobs.plan import make_plan, present_plan
from jobs.runs import OUTCOMES, Run, conclude, perform, read_runs
from pipeline.documents import Document
from pipeline.plans import Plan
from pipeline.registry import resolve
from pipeline.shards import Shard
from pipeline.storage import Storage


def estimate(run: Run, as_json: bool) -> int:
    """Say what the run's command would do, for people or as one line of JSON; return the exit code that it has so far."""
    found: dict[str, Any] = {}

    def look(current: Run) -> None:
        found.update(_figures(current))
        _say(found)

    perform(run, look)
    code = conclude(run)
    if as_json:
        said = {"outcome": OUTCOMES[code], **run.record}
        outcome = {key: said[key] for key in ("command", "dataset", "date", "exit_code", "outcome")}
        print(json.dumps({"dry_run": True, **outcome, **found}, ensure_ascii=False))
    return code


def _figures(run: Run) -> dict[str, Any]:
    """Return what would be labelled, by whom, and from the last run's rate the time and the cost."""
    config = run.config
    check_output(run)
    version = resolve(run.store, config.model)
    plan = make_plan(run, _forget)[0] if run.record["command"] == "nightly" else present_plan(run, _forget)
    coverage = covered(run, plan, version)
    todo = Limits(config.label, run.started).take(open_shards(run, plan, coverage))
    images = sum(shard.num_images for shard in todo)
    last = _last_run(run.store, plan.dataset, config.model.name)
    rate = float(last["images_per_s"]) if last else None
    seconds = images / rate if rate else None
    price = config.cluster.price_per_hour
    return {
        "plan": plan.n, "model": run.record["model"], "fingerprint": run.record["fingerprint"], "shards": len(todo),
        "images": images, "bytes": sum(_bytes(shard) for shard in todo),
        "skipped": counts_of(plan, coverage.entries).images_in,
        "rate_of_run": last and last["run_id"], "rate_of_model": last and last["model"], "images_per_s": rate,
        "seconds": None if seconds is None else round(seconds, 1), "price_per_hour": price,
        "cost": None if seconds is None or price is None else round(seconds / 3600 * price, 4),
    }  # fmt: skip


def _forget(store: Storage, plan: Plan, now: str) -> None:
    """Stand where a plan is written: a dry run keeps none."""


def _bytes(shard: Shard) -> int:
    """Return the encoded bytes of the live segments; of a table's file, the share of their rows."""
    return sum(segment.size_bytes * segment.num_rows // max(1, segment.file_rows) for segment in shard.live)


def _last_run(store: Storage, dataset: str, model: str) -> Document | None:
    """Return the last run that measured how fast this model labels this data set."""
    runs = [run for run in read_runs(store) if run.get("dataset") == dataset and run.get("images_per_s")]
    runs = [run for run in runs if str(run.get("model")).rpartition("@")[0] == model]
    return runs[-1] if runs else None


def _say(found: dict[str, Any]) -> None:
    say(
        f"dry run, nothing is written: {found['model']} would label {counted(found['images'])} in "
        f"{counted(found['shards'], 'shard')} of plan {found['plan']}; {found['skipped']:,} are done already"
    )
    say(f"to read: about {found['bytes'] / 1e6:,.1f} MB, without what URIs in tables point to")
    if not found["images"]:
        return
    if found["seconds"] is None:
        say("time and cost: unknown, no earlier run of this data set and model has measured its rate")
        return
    say(
        f"time: about {_duration(found['seconds'])} at {found['images_per_s']:,.1f} images/s, the rate of run "
        f"{found['rate_of_run']} ({found['rate_of_model']})"
    )
    if found["cost"] is None:
        say("cost: unknown, cluster.price_per_hour is not set")
    else:
        say(f"cost: about {found['cost']:,.2f} at {found['price_per_hour']:g} per hour (cluster.price_per_hour)")


def _duration(seconds: float) -> str:
    """Spell a duration with the two units that matter."""
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {int(seconds % 60):02d} s" if minutes else f"{seconds:.0f} s"
