"""`nightshift evaluate`: judge a bundle on held-out images, and write evaluation.json beside it."""

import math
from functools import partial

from jobs.console import say, stage
from jobs.plan import present_plan
from jobs.runs import HELD, Run, utc_now
from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import InputError
from pipeline.metrics import Sums, summarize
from pipeline.plans import Plan
from pipeline.registry import read_bundle_document, resolve
from pipeline.rows import ShardReader
from pipeline.tasks import EvaluateTask

MISTAKES_KEPT = 10_000


def work(run: Run, split: str | None = None) -> None:
    """Evaluate the version that labels."""
    evaluate(run, split, resolve(run.store, run.config.model.name, run.config.model.version))


def evaluate(run: Run, split: str | None, version: str) -> Document:
    """Judge a version on `split` (several: `val+test`); return the evaluation."""
    config, plan = run.config, present_plan(run)
    splits = tuple(split.split("+")) if split else (_default_split(run, plan),)
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    task = EvaluateTask(
        config.store,
        config.storage,
        config.input,
        config.split,
        config.label,
        config.model.name,
        version,
        splits,
        threads,
    )
    run.note(model=f"{config.model.name}@{version}")
    sums = _judge(run, plan, task)
    if not sums.num_images:
        raise InputError(_nothing_judged(run, plan, splits, sums))
    names = [item["name"] for item in read_bundle_document(run.store, config.model.name, version)["classes"]]
    document = {
        "split": "+".join(splits), "dataset": plan.dataset, "plan": plan.n, "model": config.model.name, "version": version,
        "run_id": run.id, "evaluated_at": utc_now(), "classes": names, **summarize(sums, names),
    }  # fmt: skip
    document["misclassified"] = document["misclassified"][:MISTAKES_KEPT]
    run.store.write(f"{layout.bundle(config.model.name, version)}/evaluation.json", encode(document))
    run.note(evaluation={key: document[key] for key in ("split", "num_images", "top1", "top5", "loss", "interval95")})
    _announce(document)
    return document


def _judge(run: Run, plan: Plan, task: EvaluateTask) -> Sums:
    from cluster.dispatch import Failure
    from cluster.labeller import open_judge, over_shards

    run.start_cluster()
    sums, failures = Sums(), []
    with stage("evaluate", plan.num_images) as progress:
        for shard, outcome in over_shards(plan.shards, partial(open_judge, task), run.config.label):
            progress.advance(shard.num_images)
            if isinstance(outcome, Failure):
                failures.append({"shard": shard.id, "error": outcome.error, "attempts": outcome.attempts})
            else:
                sums += outcome
    run.stage("evaluate", progress.seconds, sums.num_images)
    if failures:
        run.note(failures=failures, failed_shards=len(failures))
        run.end(HELD, f"{len(failures)} shards could not be judged; the first: {failures[0]['error']}")
    return sums


def _default_split(run: Run, plan: Plan) -> str:
    """Return `test` where there is one, else `val`; InputError when there is neither."""
    reader, found = ShardReader(run.config.input, run.config.storage), set[str]()
    for shard in plan.shards:
        found |= reader.splits(shard)
        if "test" in found:
            break
    if not found:  # the input names no splits: a hash decides
        found = {name for name in ("test", "val") if getattr(run.config.split, name) > 0}
    for name in ("test", "val"):
        if name in found:
            return name
    raise InputError(
        f"there is no split test or val to judge on, only {', '.join(sorted(found))}; choose one with --split"
    )


def _nothing_judged(run: Run, plan: Plan, splits: tuple[str, ...], sums: Sums) -> str:
    if sums.unknown_labels:
        known = ", ".join(list(sums.unknown_labels)[:3])
        return f"none of the labels in {run.config.input.label_column} ({known}, ...) is a class of the model; check model.classes"
    if not run.config.input.label_column:
        return "evaluation needs labels: set input.label_column, or give images in class-named folders"
    reader = ShardReader(run.config.input, run.config.storage)
    found = sorted(set[str]().union(*(reader.splits(shard) for shard in plan.shards)))
    return f"no labelled image belongs to the split {'+'.join(splits)}" + (
        f"; there are: {', '.join(found)}" if found else ""
    )


def _announce(document: Document) -> None:
    low, high = document["interval95"]
    say(
        f"split {document['split']}: top-1 {document['top1']:.1%} ({low:.1%} to {high:.1%} with 95 % confidence), "
        f"top-5 {document['top5']:.1%}, loss {document['loss']:.3f}, on {document['num_images']:,} images"
    )
    if document["quarantined"]:
        say(f"{document['quarantined']:,} images of the split cannot be read")
    if document["unknown_labels"]:
        say(
            f"{sum(document['unknown_labels'].values()):,} images have labels that the model does not know; they are not judged"
        )
