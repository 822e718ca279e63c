"""`nightshift train`: adopt weights or train, seal a bundle, and make it production if there is none."""

from jobs.console import say, stage
from jobs.crossing import cross_validate
from jobs.preparation import prepare
from jobs.runs import Run, utc_now
from pipeline import layout
from pipeline.documents import Document, encode, read_document
from pipeline.errors import NightshiftError, NotFoundError, UsageError
from pipeline.examples import Examples, Learned
from pipeline.plans import Plan
from pipeline.registry import production, promote_first
from pipeline.tasks import TrainTask
from pipeline.trials import values_of


def work(run: Run, again: bool = False, trial: str | None = None) -> None:
    """Train or adopt."""
    train_model(run, again, trial)


def train_model(run: Run, again: bool = False, trial: str | None = None) -> str:
    """Train or adopt; return the version. `trial` is one of `nightshift tune`, or `best`: its values are taken."""
    config = run.config
    if config.train.mode == "none":
        from pipeline.adoption import adopt

        if trial:
            raise UsageError("--trial: train.mode is none, so nothing is trained with its values; set train.mode")

        version = adopt(run.store, config.model, config.storage, config.input.size_px)
        say(f"adopted {config.model.builder} as {config.model.name}@{version}")
    else:
        version = _fit(run, again, trial)
    run.note(model=f"{config.model.name}@{version}")
    if promote_first(run.store, config.model.name, version, utc_now()):
        say(f"{config.model.name}@{version} is production: it labels from now on")
    elif (current := production(run.store, config.model.name)) != version:
        say(f"production stays {config.model.name}@{current}; nightshift promote CONFIG compares the two")
    return version


def _fit(run: Run, again: bool, trial: str | None) -> str:
    config, prepared = run.config, prepare(run)
    if trial:
        values = values_of(run.store, prepared.tuning_key(run), trial)
        say(f"with the values of trial {trial}: {', '.join(f'{key}={value}' for key, value in values.items())}")
        prepared = prepared.with_values(run, values)
    task = prepared.task
    if again:
        from pipeline.checkpoints import Checkpoints

        Checkpoints(run.store, task.run_key).clear()
    crossed = cross_validate(run, prepared) if config.train.folds else None
    finished = _finished(run, task.run_key)
    if finished:
        _keep_folds(run, finished, crossed)
        say(f"this training is finished already, as {config.model.name}@{finished}; --again repeats it")
        return finished
    _train(run, task, prepared.num_train)
    version = _finished(run, task.run_key)
    if version is None:
        raise NightshiftError(
            "training ended without a result; run the command again, it continues from the last checkpoint"
        )
    _keep_folds(run, version, crossed)
    _keep_photos(run, prepared.plan, prepared.examples, version)
    _say_how_it_went(run, task.run_key, prepared.num_train)
    return version


def _keep_folds(run: Run, version: str, crossed: Document | None) -> None:
    if crossed:
        run.store.write(f"{layout.bundle(run.config.model.name, version)}/folds.json", encode(crossed))
        run.note(folds=crossed)


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


def _train(run: Run, task: TrainTask, num_train: int) -> None:
    from cluster.trainer import Trainer
    from pipeline.checkpoints import Checkpoints

    settings, checkpoints = task.train, Checkpoints(run.store, task.run_key)
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
    split: Learned = "val" if len(examples.of("val")) else "train"
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
    if found := result["overfitting"]:
        since = found["worse_since"]
        worse = f"; the validation loss rises since epoch {since}, while that of training falls" if since else ""
        say(f"overfitting gap: {100 * found['gap']:.1f} points (training less validation){worse}")


def _validated(record: Document) -> str:
    if record["val_top1"] is None:
        return ""
    precision = record.get("val_map")
    return f", validation {record['val_top1']:.1%}" + (
        f", mean average precision {precision:.1%}" if precision is not None else ""
    )
