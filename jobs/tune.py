"""`nightshift tune`: try other values of `train`, and say which did best on validation images."""

from collections import Counter

from jobs.console import counted, say, stage
from jobs.preparation import prepare
from jobs.runs import Run
from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import InputError, ModelError, UsageError
from pipeline.tasks import TrainTask
from pipeline.trials import METRICS, Trial, ranked, read_trial, summary
from pipeline.tunesettings import Range, on_the_border

SAID = 5


def work(run: Run) -> None:
    """Run the trials that have no record yet, and record what all of them found."""
    config = run.config
    settings = config.tune
    if not settings.space:
        raise UsageError(
            "tune.space is empty; say what to try, such as tune: {space: {train.learning_rate: {min: 1.0e-4, max: 0.1, log: true}}}"
        )
    if config.train.mode == "none":
        raise UsageError("train.mode is none: there is no training to tune")
    if settings.metric == "map" and not config.input.multi_label:
        raise UsageError("tune.metric: map is for multi-label models (input.labels_column); use loss or top1")
    prepared = prepare(run)
    if not len(prepared.examples.of("val")):
        raise InputError(
            "tuning chooses by validation images, and there are none; give some (split.val, or a split column)"
        )
    trials = _try(run, prepared.task)
    key, patience = prepared.task.run_key, config.train.early_stopping
    records = list({trial.id: _record(run, trial) for trial in trials}.values())  # equal values are one trial
    found = ranked([summary(record, settings.metric, patience) for record in records], settings.metric)
    if found[0]["state"] != "finished":
        error = next((record["error"] for record in records if "error" in record), "no worker came to its end")
        raise ModelError(f"no trial came to its end; the first said: {error}")
    document = {
        "metric": METRICS[settings.metric][0], "space": settings.model_dump(mode="json")["space"], "trials": found,
        "epochs": config.train.epochs, "border": on_the_border(settings.space, found[0]["values"]),
    }  # fmt: skip
    run.store.write(layout.tuning(key), encode(document))
    run.note(tuning=document)
    _announce(document, run)


def _try(run: Run, task: TrainTask) -> list[Trial]:
    from cluster.tuner import tune_over

    settings, ended = run.config.tune, 0
    run.start_cluster()
    with stage("tune", settings.trials * task.train.epochs, "epochs") as progress:

        def told(trial: Trial, over: bool) -> None:
            nonlocal ended
            ended += over
            progress.advance(not over)
            progress.remark = f"{ended} of {settings.trials} trials over"

        trials = tune_over(task, settings, told)
    run.stage("tune", progress.seconds, 0)
    return trials


def _record(run: Run, trial: Trial) -> Document:
    """Return a trial's record; one whose workers never came to an epoch has none."""
    return read_trial(run.store, trial) or {"trial": trial.id, "values": trial.values, "history": [], "state": "failed"}


def _announce(document: Document, run: Run) -> None:
    best, space = document["trials"][0], run.config.tune.space
    states = Counter(trial["state"] for trial in document["trials"])
    say(
        f"{counted(len(document['trials']), 'trial')}, of which {states['running']} were stopped early and {states['diverged']} "
        f"diverged; by {document['metric']}:"
    )
    for trial in document["trials"][:SAID]:
        if trial["score"] is not None:
            values = ", ".join(f"{key} {_short(value)}" for key, value in trial["values"].items())
            say(f"  {trial['trial']}: {trial['score']:.4g} after {counted(trial['epochs'], 'epoch')}: {values}")
    for key, end in document["border"].items():
        say(
            f"warning: {key} {_short(best['values'][key])} lies at the {end} end of what was tried ({_tried(space[key])}): there may be "
            "better ones beyond it"
        )
    say("next: nightshift train CONFIG --trial best trains with the best values, and seals it")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _tried(domain: object) -> str:
    if isinstance(domain, tuple):
        return ", ".join(map(str, domain))
    return f"{domain.min:g} to {domain.max:g}" if isinstance(domain, Range) else ""
