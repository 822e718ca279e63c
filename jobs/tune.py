"""`nightshift tune`: try other values of `train`, and say which did best on validation images."""

from collections import Counter
from typing import TYPE_CHECKING

from jobs.console import counted, say, stage
from jobs.preparation import prepare
from jobs.runs import Run
from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import HeldError, InputError, ModelError, UsageError
from pipeline.tasks import TrainTask
from pipeline.trials import METRICS, Trial, ranked, read_trials, summary
from pipeline.tunesettings import Range, on_the_border

if TYPE_CHECKING:
    from cluster.tuner import Trials

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
    key = prepared.tuning_key(run)
    tried = _try(run, prepared.task, key)
    records: dict[str, Document] = {
        trial.id: {"trial": trial.id, "values": trial.values, "history": [], "state": "failed"} for trial in tried.drawn
    }
    records |= {record["trial"]: record for record in read_trials(run.store, key)}  # of earlier runs too
    for name, error in tried.given_up.items():
        records[name] |= {"state": "failed", "error": error}
    found = ranked(
        [summary(record, settings.metric, config.train.early_stopping) for record in records.values()], settings.metric
    )
    if found[0]["state"] != "finished":
        error = next((record["error"] for record in records.values() if "error" in record), "nothing")
        raise ModelError(f"no trial came to its end; the first said: {error}")
    document = {
        "metric": METRICS[settings.metric][0], "space": settings.model_dump(mode="json")["space"], "trials": found,
        "epochs": config.train.epochs, "border": on_the_border(settings.space, found[0]["values"]),
    }  # fmt: skip
    run.store.write(layout.tuning(key), encode(document))
    run.note(tuning=document)
    _announce(document, run)
    if tried.given_up:
        name, error = next(iter(tried.given_up.items()))
        raise HeldError(
            f"{counted(len(tried.given_up), 'trial')} could not be run to the end; the same command tries again. {name}: {error}"
        )


def _try(run: Run, task: TrainTask, key: str) -> "Trials":
    from cluster.tuner import tune_over

    settings, ended = run.config.tune, 0
    run.start_cluster()
    with stage("tune", settings.trials * task.train.epochs, "epochs") as progress:

        def told(trial: Trial, over: bool) -> None:
            nonlocal ended
            ended += over
            progress.advance(not over)
            progress.remark = f"{ended} of {settings.trials} trials over"

        found = tune_over(task, key, settings, told)
    run.stage("tune", progress.seconds, 0)
    return found


def _announce(document: Document, run: Run) -> None:
    best, space = document["trials"][0], run.config.tune.space
    states = Counter(trial["state"] for trial in document["trials"])
    say(
        f"{counted(len(document['trials']), 'trial')}, of which {states['running']} were stopped early, {states['diverged']} "
        f"diverged and {states['failed']} failed; by {document['metric']}:"
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
