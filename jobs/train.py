"""`nightshift train`: adopt weights or train, seal a bundle, and make it production if there is none."""

import hashlib
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.metadata import version as library_version
from itertools import chain

from jobs.console import say, stage
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from pipeline import layout
from pipeline.classes import Classes, classes_from_labels
from pipeline.documents import Document, digest, read_document
from pipeline.errors import HeldError, InputError, ModelError, NightshiftError, NotFoundError
from pipeline.examples import Examples, fingerprint, load_examples
from pipeline.plans import Plan
from pipeline.registry import production, promote_first
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings, ModelSettings
from pipeline.shards import Shard
from pipeline.splits import missing
from pipeline.storage import open_storage
from pipeline.tasks import ExamplesTask, TrainTask
from pipeline.truths import contradicts_itself, names_in
from pipeline.weightsource import Published, Sealed, weight_source

# How a training is run and where its values come from, not what it computes: these do not change its key.
EXECUTION = {
    "preset", "workers", "gpus_per_worker", "max_failures", "cache_mb", "stall_s", "sanity",
    "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints",
}  # fmt: skip


def work(run: Run, again: bool = False) -> None:
    """Train or adopt."""
    train_model(run, again)


def train_model(run: Run, again: bool = False) -> str:
    """Train or adopt; return the version."""
    config = run.config
    if config.train.mode == "none":
        from pipeline.adoption import adopt

        version = adopt(run.store, config.model, config.storage, config.input.size_px)
        say(f"adopted {config.model.builder} as {config.model.name}@{version}")
    else:
        version = _fit(run, again)
    run.note(model=f"{config.model.name}@{version}")
    if promote_first(run.store, config.model.name, version, utc_now()):
        say(f"{config.model.name}@{version} is production: it labels from now on")
    elif (current := production(run.store, config.model.name)) != version:
        say(f"production stays {config.model.name}@{current}; the new one labels with --set model.version={version}")
    return version


def _fit(run: Run, again: bool) -> str:
    config = run.config
    if config.train.mode != "scratch" and not config.model.weights:
        raise ModelError(f"train.mode {config.train.mode} starts from weights: set model.weights, or use mode scratch")
    if config.train.mode == "scratch" and config.model.weights:
        raise ModelError(
            f"train.mode scratch starts from nothing, and model.weights is {config.model.weights}; leave it out "
            "(--set model.weights=null), or use mode finetune"
        )
    plan = present_plan(run)
    source = row_settings(config.input, live_paths(plan.shards))
    plan = replace(plan, shards=tuple(selected(plan.shards, config.input)))
    model = _pinned(run)
    weights = _weights_identity(run, model) if config.train.mode != "scratch" else None
    name = _make_examples(run, plan, source, model, weights)
    examples = load_examples(run.store, plan.dataset, name, plan.shards, config.split, source.multi_label)
    classes = _check(examples, source)
    num_train = len(examples.of("train"))
    if num_train < config.train.workers.max:
        raise InputError(
            f"{num_train} training images are fewer than train.workers ({config.train.workers.max}); use fewer workers"
        )
    key = _run_key(run, plan, source, weights)
    finished = _finished(run, key)
    if finished and not again:
        say(f"this training is finished already, as {config.model.name}@{finished}; --again repeats it")
        return finished
    task = TrainTask(
        config.store, config.storage, source, config.split, model, config.train, config.seed,
        plan.dataset, plan.shards, name, classes.names, key, utc_now(),
    )  # fmt: skip
    _train(run, task, num_train, again)
    version = _finished(run, key)
    if version is None:
        raise NightshiftError(
            "training ended without a result; run the command again, it continues from the last checkpoint"
        )
    _keep_photos(run, plan, examples, version)
    _say_how_it_went(run, key, num_train)
    return version


def _make_examples(run: Run, plan: Plan, source: InputSettings, model: ModelSettings, weights: str | None) -> str:
    """Make the example tables that are missing, as a cluster job; return what they are called."""
    config = run.config
    backbone = config.train.mode == "head" and config.train.cache_features
    name = fingerprint(
        source,
        model,
        weights if backbone else None,
        f"torchvision {library_version('torchvision')}",
    )
    folder = layout.features(plan.dataset, name, "").rpartition("/")[0]
    there = {entry.path.rsplit("/", 1)[-1].removesuffix(".parquet") for entry in run.store.list(folder)}
    todo = [shard for shard in plan.shards if shard.id not in there]
    if todo:
        _extract(
            run,
            todo,
            ExamplesTask(
                config.store,
                config.storage,
                source,
                plan.dataset,
                model,
                config.train,
                name,
                backbone,
                config.label.batch_size,
                math.ceil(config.label.cpus_per_worker),
            ),
        )
    kind = "features" if backbone else "examples"
    done = sum(shard.num_images for shard in todo)
    run.note(**{f"{kind}_computed": done})
    say(f"{kind} of {done:,} images computed, of {plan.num_images - done:,} found in the store")
    return name


def _extract(run: Run, shards: list[Shard], task: ExamplesTask) -> None:
    from cluster.dispatch import Failure
    from cluster.labeller import open_extractor, over_shards

    run.start_cluster()
    with stage("features" if task.backbone else "examples", sum(shard.num_images for shard in shards)) as progress:
        for shard, outcome in over_shards(shards, partial(open_extractor, task), run.config.label):
            progress.advance(shard.num_images)
            if isinstance(outcome, Failure):
                raise HeldError(
                    f"shard {shard.id} cannot be read for training after {outcome.attempts} attempt(s): {outcome.error}; the same "
                    "command continues with what is missing"
                )
    run.stage(progress.name, progress.seconds, progress.done)


def _pinned(run: Run) -> ModelSettings:
    """Return the model's section with a bundle's version in it: what is promoted meanwhile changes no worker's weights."""
    model = run.config.model
    source = weight_source(model.weights)
    if not isinstance(source, Sealed):
        return model
    from pipeline.manifest import read_sealed

    return model.model_copy(update={"weights": read_sealed(run.store, source, model.builder).id})


def _weights_identity(run: Run, model: ModelSettings) -> str:
    """Return what tells these weights from any others; published ones are fetched into the store, once."""
    source, storage = weight_source(model.weights), run.config.storage
    if isinstance(source, Sealed):
        return f"bundle {model.weights}"
    if isinstance(source, Published):
        from pipeline.published import fetch_published

        return fetch_published(run.store, storage, model.builder, source.name)
    folder, _, name = str(model.weights).rpartition("/")
    try:
        return hashlib.sha256(open_storage(folder or ".", storage).read(name)).hexdigest()
    except NotFoundError as error:
        raise ModelError(f"model.weights: {model.weights} does not exist; give a safetensors state dict") from error


def _check(examples: Examples, source: InputSettings) -> Classes:
    """Return the classes of the training rows, after saying everything about them that people should know."""
    labels = [names_in(label) for label in examples.labels]
    train = [labels[i] for i in examples.of("train")]
    if not train:
        raise InputError(
            f"no image has a label and belongs to the split train ({dict(Counter(examples.splits))} by split); check input.label_column "
            "(or labels_column) and input.split_column"
        )
    classes = classes_from_labels(chain.from_iterable(train), fewest=1 if source.multi_label else 2)
    unseen = [[name for name in names if classes.index_of(name) is None] for names in labels]
    for split, absent in missing(classes.names, labels, examples.splits).items():
        if split in ("val", "test"):
            say(
                f"warning: no {split} image of {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}: it cannot be judged there"
            )
    if contradictions := sum(map(contradicts_itself, examples.labels)):
        say(
            f"warning: {contradictions:,} images have a label that stands in {source.labels_column} and in {source.absent_column}: "
            "it is taken as unknown there"
        )
    if strange := sorted({*chain.from_iterable(unseen)}):
        say(
            f"warning: {sum(map(bool, unseen))} held-out images have labels that training never sees: {', '.join(strange[:5])}"
        )
    if examples.leaked:
        say(
            f"warning: {examples.leaked} training images stand byte for byte in another split too; they are left out of training"
        )
    if examples.without_label:
        say(f"{examples.without_label:,} images without a label are left out")
    if examples.unreadable and source.filter:
        say(f"{examples.unreadable:,} images are not taken by input.filter, or cannot be read, and are left out")
    elif examples.unreadable:
        say(f"{examples.unreadable:,} images cannot be read and are left out; labelling lists them")
    return classes


def _run_key(run: Run, plan: Plan, source: InputSettings, weights: str | None) -> str:
    """Return the training's identity: what is trained on and how, but not on how many workers."""
    config = run.config
    return digest(
        {
            "shards": [[shard.id, sorted(shard.tombstoned)] for shard in plan.shards],
            "input": fingerprint(source, config.model, None, ""),
            "split": config.split.model_dump(),
            "model": config.model.model_dump(exclude={"version", "weights", "threshold"}),
            "weights": weights,
            **({"size_px": source.size_px} if source.size_px else {}),
            "train": config.train.model_dump(exclude=EXECUTION),
            "seed": config.seed,
        }
    )


def _finished(run: Run, key: str) -> str | None:
    """Return the version that a finished training made, None when its bundle is no longer whole."""
    try:
        version: str = _read_result(run, key)["version"]
    except NotFoundError:
        return None
    folder = layout.bundle(run.config.model.name, version)
    there = {entry.path for entry in run.store.list(folder)}
    return version if {f"{folder}/bundle.json", f"{folder}/weights.safetensors"} <= there else None


def _read_result(run: Run, key: str) -> Document:
    return read_document(run.store, f"{layout.training(key)}/result.json")


def _train(run: Run, task: TrainTask, num_train: int, again: bool) -> None:
    from cluster.trainer import Trainer
    from pipeline.checkpoints import Checkpoints

    settings, checkpoints = task.train, Checkpoints(run.store, task.run_key)
    if again:
        checkpoints.clear()
    total, done = num_train * settings.epochs, (checkpoints.progress() or {"examples": 0})["examples"]
    if done:
        say(f"an earlier run was stopped and left a checkpoint at {done:,} of {total:,} images; this one continues")
    run.start_cluster()
    with stage("train", total - done) as progress, Trainer(say) as trainer:
        trainer.train(task, done, progress.advance)
    run.stage("train", progress.seconds, progress.done)


def _keep_photos(run: Run, plan: Plan, examples: Examples, version: str) -> None:
    """Keep validation photos, else training photos, beside the bundle: engines must agree on them before they label."""
    from pipeline.calibration import keep_photos
    from pipeline.rows import ShardReader

    config = run.config
    split = "val" if len(examples.of("val")) else "train"
    reader = ShardReader(config.input.without_truth(), config.storage)
    chosen = ((plan.shards[examples.shard_numbers[part[0]]], part) for part in examples.by_shard(examples.of(split)))
    wanted = ((shard, {examples.hashes[i] for i in part}) for shard, part in chosen)
    rows = (
        row for shard, hashes in wanted for part in reader.read(shard) for row in part if row.content_hash in hashes
    )
    try:
        keep_photos(run.store, config.model.name, version, (row.data for row in rows if row.data is not None))
    except NightshiftError as error:  # the model is sealed: labelling takes photos of its first shard instead
        say(f"warning: no photos are kept beside the model: {error}")


def _say_how_it_went(run: Run, key: str, num_train: int) -> None:
    result = _read_result(run, key)
    history = result["history"]
    sealed = history[result["sealed_epoch"] - 1]
    best = f"; the weights of epoch {sealed['epoch']}, the best, are sealed" if sealed is not history[-1] else ""
    say(
        f"{len(history)} epochs of {num_train:,} images on {result['workers']} worker(s): "
        f"training {sealed['train_top1']:.1%}{_validated(sealed)}{best}"
    )


def _validated(record: Document) -> str:
    if record["val_top1"] is None:
        return ""
    precision = record.get("val_map")
    return f", validation {record['val_top1']:.1%}" + (
        f", mean average precision {precision:.1%}" if precision is not None else ""
    )
