"""What comes before a training: the plan, the examples, the checks, and the training's key."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as library_version
from typing import Any

from jobs.console import say, stage
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from jobs.survey import check_examples
from pipeline import layout
from pipeline.documents import Document, digest
from pipeline.errors import HeldError, InputError, ModelError, NotFoundError
from pipeline.examples import Examples, fingerprint, load_examples
from pipeline.plans import Plan
from pipeline.selection import live_paths, row_settings, selected
from pipeline.settings import InputSettings, ModelSettings
from pipeline.shards import Shard
from pipeline.storage import open_storage
from pipeline.tasks import ExamplesTask, TrainTask
from pipeline.tunesettings import replaced, with_values
from pipeline.weightsource import Published, Sealed, weight_source

# How a training is run and where its values come from, not what it computes: these do not change its key.
EXECUTION = {
    "preset", "folds", "workers", "cpus_per_worker", "gpus_per_worker", "memory_mb_per_worker", "node_labels",
    "max_failures", "cache_mb", "stall_s", "sanity", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A training that can begin."""

    plan: Plan
    examples: Examples
    task: TrainTask
    weights: str | None

    def with_values(self, run: Run, values: Mapping[str, Any]) -> "Prepared":
        """Return the same training with other values of `train.KEY`, under its own key."""
        settings = with_values(self.task.train, dict(values))
        key = _run_key(run, self.plan, self.task.input, self.weights, settings.model_dump(exclude=EXECUTION))
        return replace(self, task=replace(self.task, train=settings, run_key=key))

    def tuning_key(self, run: Run) -> str:
        """Return the identity of all trainings that differ in the values of `tune.space` only."""
        tuned = dict.fromkeys(run.config.tune.space, "tuned")
        settings = replaced(self.task.train.model_dump(exclude=EXECUTION), tuned)
        return _run_key(run, self.plan, self.task.input, self.weights, settings)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.examples.of("train"))


def prepare(run: Run) -> Prepared:
    """Make what is missing, and check what can be checked before a training spends hours."""
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
    classes = check_examples(examples, source)
    num_train = len(examples.of("train"))
    if num_train < config.train.workers.max:
        raise InputError(
            f"{num_train} training images are fewer than train.workers ({config.train.workers.max}); use fewer workers"
        )
    key = _run_key(run, plan, source, weights, config.train.model_dump(exclude=EXECUTION))
    task = TrainTask(
        config.store, config.storage, source, config.split, model, config.train, config.seed,
        plan.dataset, plan.shards, name, classes.names, key, utc_now(),
    )  # fmt: skip
    return Prepared(plan, examples, task, weights)


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


def _run_key(run: Run, plan: Plan, source: InputSettings, weights: str | None, train: Document) -> str:
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
            "train": train,
            "seed": config.seed,
        }
    )
