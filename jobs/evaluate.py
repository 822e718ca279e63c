"""`nightshift evaluate`: judge a bundle on held-out images, and write evaluation.json beside it."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from jobs.console import say, stage
from jobs.figures import announce
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from pipeline import layout
from pipeline.documents import Document, encode, find_document
from pipeline.errors import HeldError, InputError, UsageError
from pipeline.judged import joined_rows
from pipeline.labelsums import LabelSums, summarize_labels
from pipeline.looks import count_looks, read_look, record_look, rows_digest
from pipeline.metrics import Sums, summarize
from pipeline.partitions import partition_names
from pipeline.plans import Plan
from pipeline.registry import read_bundle_document, resolve
from pipeline.rows import ShardReader, is_table
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Shard
from pipeline.slices import sliced
from pipeline.sources import refuse_columns
from pipeline.splits import split_name
from pipeline.tables import write_table
from pipeline.tasks import EvaluateTask

MISTAKES_KEPT, READS_AT_ONCE = 10_000, 16
NOTED = ("split", "num_images", "map", "top1", "top5", "loss", "interval95", "looks")
TEST = "test"


def work(run: Run, split: str | None = None) -> None:
    """Evaluate the version that labels."""
    evaluate(run, split, resolve(run.store, run.config.model))


@dataclass(frozen=True)
class Question:
    """A version and the rows that it is judged on: `shards` may hold some of them, `named` are the splits in every shard."""

    task: EvaluateTask
    dataset: str
    rows: str  # the same for the same rows with the same truth
    is_test: bool
    shards: Sequence[Shard]
    named: list[set[str | None]]
    tables: bool  # else loose images

    @property
    def judged(self) -> str:
        """`name@version`."""
        return f"{self.task.model}@{self.task.version}"

    @property
    def path(self) -> str:
        """Where the figures and the rows lie, without suffix."""
        return layout.evaluation(self.dataset, self.rows, self.judged)


def evaluate(run: Run, split: str | None, version: str, known: bool = False) -> Document:
    """Judge a version on `split` (several: `train+val`); return the evaluation.

    A version has one look at a test set: whoever asks again is given what was found then. `known`: also of other splits what
    was found before is good enough.
    """
    plan = present_plan(run)
    asked = _question(run, plan, split, version)
    run.note(model=asked.judged)
    document = (
        _looked_before(run, asked)
        or (find_document(run.store, f"{asked.path}.json") if known else None)
        or _judged(run, plan, asked)
    )
    if asked.is_test:  # by now; others may have looked since this one did
        document["looks"] = count_looks(run.store, asked.dataset, asked.rows)
    run.store.write(f"{layout.bundle(asked.task.model, version)}/evaluation.json", encode(document))
    run.note(evaluation={key: document[key] for key in NOTED if key in document})
    announce(document)
    return document


def _question(run: Run, plan: Plan, split: str | None, version: str) -> Question:
    config = run.config
    paths = live_paths(plan.shards)
    source = row_settings(config.input, paths)
    shards = selected(plan.shards, config.input)
    tables = any(map(is_table, paths))
    if not tables:
        refuse_columns(
            source, [s for s in config.evaluate.slices if s not in partition_names(paths)], "evaluate.slices"
        )
    named = named_splits(shards, source, config.storage)
    splits = _asked_splits(split) or (_default_split(run, named),)
    threads = max(1, math.ceil(config.label.cpus_per_worker))
    task = EvaluateTask(
        config.store, config.storage, source, config.split, config.label, config.model.name, version, splits, threads,
        config.model.builder, config.evaluate.slices,
    )  # fmt: skip

    # Rows that the input puts into no split (None) get theirs by a hash of their bytes: those must be read to know.
    wanted = [shard for shard, found in zip(shards, named, strict=True) if found & {*splits, None}]
    by_hash = any(None in found for found in named)
    rows = rows_digest(wanted, source, config.split if by_hash else None, splits)
    return Question(task, plan.dataset, rows, TEST in splits, wanted, named, tables)


def _asked_splits(split: str | None) -> tuple[str, ...]:
    splits = tuple(sorted({split_name(name) for name in split.split("+")})) if split else ()
    if TEST in splits and len(splits) > 1:
        raise UsageError(
            f"--split {split}: the test set is judged by itself, since a version has one look at it; judge on test, and on the "
            "others apart from it"
        )
    return splits


def _looked_before(run: Run, asked: Question) -> Document | None:
    """Return what was found when this version looked at this test set, None when it has not."""
    look = read_look(run.store, asked.dataset, asked.rows, asked.judged) if asked.is_test else None
    if look is None:
        return None
    document = find_document(run.store, f"{look['evaluation']}.json")
    if document is None:  # somebody removed it: nobody learns anything new from finding it again
        return None
    say(f"{asked.judged} has had its one look at this test set, on {look['at']}: this is what was found then")
    sliced = {row["column"] for row in document["slices"]}
    if absent := [name for name in asked.task.slices if name not in sliced]:
        say(f"warning: that look was without evaluate.slices {', '.join(absent)}; the next version's will have them")
    return document


def _judged(run: Run, plan: Plan, asked: Question) -> Document:
    """Judge the rows, and keep figures and rows in the store before the look is on record."""
    store, task = run.store, asked.task
    bundle = read_bundle_document(store, task.model, task.version)
    check_kind(bundle, task.input, asked.judged)
    sums = _add_up(run, asked.shards, task, LabelSums() if "thresholds" in bundle else Sums())
    if not sums.num_images:
        raise InputError(_nothing_judged(run, asked, sums))
    names = [item["name"] for item in bundle["classes"]]
    figures = (
        summarize_labels(sums, names, bundle["thresholds"]) if isinstance(sums, LabelSums) else summarize(sums, names)
    )
    rows = joined_rows(sums.rows)
    document = {
        "split": "+".join(task.splits), "dataset": asked.dataset, "plan": plan.n, "model": task.model, "version": task.version,
        "run_id": run.id, "evaluated_at": utc_now(), "classes": names, **figures, "slices": sliced(rows, task.slices),
        "rows": f"{asked.path}.parquet",
    }  # fmt: skip
    document["misclassified"] = document["misclassified"][:MISTAKES_KEPT]
    write_table(store, f"{asked.path}.parquet", rows)
    store.write(f"{asked.path}.json", encode(document))
    if asked.is_test:
        look = {"at": document["evaluated_at"], "run_id": run.id, "evaluation": asked.path}
        record_look(store, asked.dataset, asked.rows, asked.judged, look)
    return document


def check_kind(bundle: Document, source: InputSettings, judged: str) -> None:
    """Raise InputError when the model answers with one label and the input has several, or the other way round."""
    multi_label = "thresholds" in bundle
    if multi_label != source.multi_label:
        kind, key = ("any number of labels", "labels_column") if multi_label else ("one label", "label_column")
        raise InputError(
            f"{judged} answers with {kind} for an image, and the input does not say what they are; set input.{key} "
            f"(which is {getattr(source, key)}, and no other), or judge another model"
        )


def _add_up(run: Run, shards: Sequence[Shard], task: EvaluateTask, sums: Sums | LabelSums) -> Sums | LabelSums:
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


def named_splits(shards: Sequence[Shard], source: InputSettings, storage: StorageSettings) -> list[set[str | None]]:
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


def _nothing_judged(run: Run, asked: Question, sums: Sums | LabelSums) -> str:
    source, splits = run.config.input, "+".join(asked.task.splits)
    if sums.unknown_labels:
        known = ", ".join(list(sums.unknown_labels)[:3])
        column = source.labels_column or source.label_column or "the folders' names"
        return f"none of the labels in {column} ({known}, ...) is a class of the model; check model.classes"
    if not source.label_column and not source.labels_column and asked.tables:
        return "evaluation needs labels: set input.label_column, or labels_column for several of each image"
    found = _listed(asked.named)
    return f"no labelled image belongs to the split {splits}" + (f"; there are: {found}" if found else "")
