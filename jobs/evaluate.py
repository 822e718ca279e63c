"""`nightshift evaluate`: judge a bundle on held-out images, and write evaluation.json beside it."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from jobs.console import counted, say, stage
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import HeldError, InputError
from pipeline.labelsums import LabelSums, summarize_labels
from pipeline.metrics import Sums, summarize
from pipeline.registry import read_bundle_document, resolve
from pipeline.rows import ShardReader
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Shard
from pipeline.splits import split_name
from pipeline.tasks import EvaluateTask

MISTAKES_KEPT, READS_AT_ONCE = 10_000, 16
NOTED = ("split", "num_images", "map", "top1", "top5", "loss", "interval95")


def work(run: Run, split: str | None = None) -> None:
    """Evaluate the version that labels."""
    evaluate(run, split, resolve(run.store, run.config.model))


def evaluate(run: Run, split: str | None, version: str) -> Document:
    """Judge a version on `split` (several: `val+test`); return the evaluation."""
    config, plan = run.config, present_plan(run)
    source = row_settings(config.input, live_paths(plan.shards))
    shards = selected(plan.shards, config.input)
    named = _named_splits(shards, source, config.storage)
    splits = tuple(split_name(name) for name in split.split("+")) if split else (_default_split(run, named),)
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    task = EvaluateTask(
        config.store,
        config.storage,
        source,
        config.split,
        config.label,
        config.model.name,
        version,
        splits,
        threads,
        config.model.builder,
    )
    run.note(model=f"{config.model.name}@{version}")
    # Rows that the input puts into no split (None) get theirs by a hash of their bytes: those must be read to know.
    wanted = [shard for shard, found in zip(shards, named, strict=True) if found & {*splits, None}]
    bundle = read_bundle_document(run.store, config.model.name, version)
    _check_kind(bundle, source, task)
    sums = _judge(run, wanted, task, LabelSums() if "thresholds" in bundle else Sums())
    if not sums.num_images:
        raise InputError(_nothing_judged(run, named, splits, sums, plan.details.get("format", "")))
    names = [item["name"] for item in bundle["classes"]]
    figures = (
        summarize_labels(sums, names, bundle["thresholds"]) if isinstance(sums, LabelSums) else summarize(sums, names)
    )
    document = {
        "split": "+".join(splits), "dataset": plan.dataset, "plan": plan.n, "model": config.model.name, "version": version,
        "run_id": run.id, "evaluated_at": utc_now(), "classes": names, **figures,
    }  # fmt: skip
    document["misclassified"] = document["misclassified"][:MISTAKES_KEPT]
    run.store.write(f"{layout.bundle(config.model.name, version)}/evaluation.json", encode(document))
    run.note(evaluation={key: document[key] for key in NOTED if key in document})
    _announce(document)
    return document


def _check_kind(bundle: Document, source: InputSettings, task: EvaluateTask) -> None:
    """Raise InputError when the model answers with one label and the input has several, or the other way round."""
    multi_label = "thresholds" in bundle
    if multi_label != source.multi_label:
        kind, key = ("any number of labels", "labels_column") if multi_label else ("one label", "label_column")
        raise InputError(
            f"{task.model}@{task.version} answers with {kind} for an image, and the input does not say what they are; set input.{key} "
            f"(which is {getattr(source, key)}, and no other), or judge another model"
        )


def _judge(run: Run, shards: Sequence[Shard], task: EvaluateTask, sums: Sums | LabelSums) -> Sums | LabelSums:
    """Add up the shards' sums; HeldError when some cannot be judged: half an evaluation must not replace a whole one."""
    if not shards:
        return sums
    from cluster.dispatch import Failure
    from cluster.labeller import open_judge, over_shards

    run.start_cluster()
    failures = []
    with stage("evaluate", sum(shard.num_images for shard in shards)) as progress:
        for shard, outcome in over_shards(shards, partial(open_judge, task), run.config.label):
            progress.advance(shard.num_images)
            if isinstance(outcome, Failure):
                failures.append({"shard": shard.id, "error": outcome.error, "attempts": outcome.attempts})
            else:
                sums += outcome
    run.stage("evaluate", progress.seconds, sums.num_images)
    if failures:
        run.note(failures=failures, failed_shards=len(failures))
        raise HeldError(
            f"{len(failures)} of {len(shards)} shards could not be judged, so evaluation.json stays as it was; "
            f"the same command tries again. The first: {failures[0]['error']}"
        )
    return sums


def _named_splits(shards: Sequence[Shard], source: InputSettings, storage: StorageSettings) -> list[set[str | None]]:
    """Return per shard the splits that the input names in it, None for rows that it puts into none."""
    reader = ShardReader(source, storage)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(reader.splits, shards))


def _default_split(run: Run, named: list[set[str | None]]) -> str:
    """Return `test` where there is one, else `val`; InputError when there is neither."""
    found = set[str | None]().union(*named)
    hashed = {name for name in ("test", "val") if None in found and getattr(run.config.split, name) > 0}
    for names in (found, hashed):  # what the input says comes first
        for name in ("test", "val"):
            if name in names:
                return name
    raise InputError(
        f"there is no split test or val to judge on, only {_listed(named) or 'train'}; choose one with --split"
    )


def _listed(named: list[set[str | None]]) -> str:
    return ", ".join(sorted(name for name in set[str | None]().union(*named) if name))


def _nothing_judged(
    run: Run, named: list[set[str | None]], splits: tuple[str, ...], sums: Sums | LabelSums, plan_format: str
) -> str:
    if sums.unknown_labels:
        known = ", ".join(list(sums.unknown_labels)[:3])
        return f"none of the labels in {run.config.input.label_column} ({known}, ...) is a class of the model; check model.classes"
    source = run.config.input
    if not source.label_column and not source.labels_column and plan_format != "images":
        return "evaluation needs labels: set input.label_column, or labels_column for several of each image"
    found = _listed(named)
    return f"no labelled image belongs to the split {'+'.join(splits)}" + (f"; there are: {found}" if found else "")


def _announce(document: Document) -> None:
    if document.get("task") == "multi_label":
        _announce_labels(document)
    else:
        _announce_classes(document)
    if document["quarantined"]:
        say(f"{counted(document['quarantined'])} of the split cannot be read")
    if document["unknown_labels"] and document.get("task") == "multi_label":
        say(
            f"{counted(sum(document['unknown_labels'].values()), 'label')} of the split not judged: no class of the model"
        )
    elif document["unknown_labels"]:
        say(
            f"{counted(sum(document['unknown_labels'].values()))} of the split not judged: the model does not know the label"
        )


def _announce_labels(document: Document) -> None:
    micro = document["micro"]
    say(
        f"split {document['split']}: mean average precision {_share(document['map'])}; with the thresholds of the bundle F1 "
        f"{_share(micro['f1'])} (precision {_share(micro['precision'])}, recall {_share(micro['recall'])}), all labels of an "
        f"image right {document['exact']:.1%}; loss {document['loss']:.3f}, on {counted(document['num_images'])}"
    )


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def _announce_classes(document: Document) -> None:
    low, high = document["interval95"]
    say(
        f"split {document['split']}: top-1 {document['top1']:.1%} ({low:.1%} to {high:.1%} with 95 % confidence), "
        f"top-5 {document['top5']:.1%}, loss {document['loss']:.3f}, on {counted(document['num_images'])}; confidence and accuracy "
        f"are {document['calibration']['ece']:.1%} apart"
    )
