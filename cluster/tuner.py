"""Tuning: Ray Tune draws the values and stops what falls behind; each trial is one worker that trains alone.

What lasts is our own record of each trial in the store. Ray's files, pickles among them, lie in a scratch folder that is
removed, and nothing is ever restored from them.
"""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from cluster.resources import check_fits, trainer_size
from cluster.retries import cause_of, words
from pipeline.documents import Document
from pipeline.errors import DivergedError, ModelError
from pipeline.storage import open_storage
from pipeline.tasks import TrainTask
from pipeline.trials import METRICS, WORST, Trial, metrics_of, read_trial, write_trial
from pipeline.tunesettings import Range, TuneSettings, with_values

# Read by Ray Tune when it is imported: no box on the terminal, no logs of its own, and Ctrl-C is ours.
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
LATER = "values"  # Ray Tune's name for what is drawn


Told = Callable[[Trial, bool], None]


@dataclass(frozen=True)
class Trials:
    """The trials in the order in which they were drawn, and by id what ended those that were given up, such as a lost worker."""

    drawn: list[Trial]
    given_up: dict[str, str]


def tune_over(task: TrainTask, key: str, settings: TuneSettings, told: Told) -> Trials:
    """Run the trials of the tuning called `key` on the session's workers.

    Parameters
    ----------
    told : Callable[[Trial, bool], None]
        Told of each epoch of a trial, and (True) of its end.
    """
    size = trainer_size(task.train)
    check_fits(1, size)
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    found = Trials([], {})
    metric, higher = METRICS[settings.metric]
    place = tune.PlacementGroupFactory([size.bundle], bundle_label_selector=[dict(size.node_labels)])
    with TemporaryDirectory(prefix="nightshift-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_train, task=task, key=key), place),
            param_space={LATER: {name: _domain(domain) for name, domain in settings.space.items()}},
            tune_config=tune.TuneConfig(
                metric=metric, mode="max" if higher else "min", num_samples=settings.trials, reuse_actors=True,
                search_alg=_search(settings, task.seed), scheduler=_scheduler(settings, task.train.epochs),
            ),
            run_config=tune.RunConfig(
                name="tuning", storage_path=scratch, verbose=0, callbacks=[_listener(key, found, told), JsonLoggerCallback()],
                failure_config=tune.FailureConfig(max_failures=task.train.max_failures),
            ),
        ).fit()  # fmt: skip
    return found


def _listener(key: str, found: Trials, told: Told) -> Any:
    """Return what Ray Tune tells of its trials: it puts them among those found, and passes on how far they are."""
    from ray import tune

    def ours(trial: Any) -> Trial:
        return Trial(key, dict(trial.config[LATER]))

    class Listener(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if ours(trial) not in found.drawn:  # else it starts again, or has the values of another
                found.drawn.append(ours(trial))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            told(ours(trial), False)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told(ours(trial), True)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            found.given_up[ours(trial).id] = words(cause_of(trial.get_error()))
            told(ours(trial), True)

    return Listener()


def _domain(domain: Any) -> Any:
    """Return what Ray Tune draws from."""
    from ray import tune

    if not isinstance(domain, Range):
        return tune.choice(list(domain))
    low, high = domain.ends
    if domain.whole:  # its upper end is not drawn
        return tune.lograndint(low, high + 1) if domain.log else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.log else tune.uniform(low, high)


def _search(settings: TuneSettings, seed: int) -> Any:
    if settings.search == "random":
        from ray.tune.search import BasicVariantGenerator

        return BasicVariantGenerator(random_state=random.Random(seed).randrange(2**31))
    try:
        import optuna
    except ImportError as error:
        raise ModelError("tune.search: optuna is not installed here; `pip install 'nightshift[tune]'`") from error
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=seed)


def _scheduler(settings: TuneSettings, epochs: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if settings.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(max_t=epochs, grace_period=min(settings.grace_epochs, epochs), reduction_factor=3)


def _train(config: Mapping[str, Any], task: TrainTask, key: str) -> None:
    """Run one trial in a worker of Ray Tune's, and report each epoch; what stands on record already is only told again."""
    from ray import tune

    from pipeline.patience import is_over
    from pipeline.pulse import Pulse
    from pipeline.rehearsal import rehearse
    from pipeline.seat import Seat

    store, trial = open_storage(task.store, task.storage), Trial(key, dict(config[LATER]))
    known = read_trial(store, trial)
    told = known["history"] if known else []
    for record in told:
        tune.report(metrics_of(record))
    if known and known["state"] != "running":
        if known["state"] == "diverged":
            tune.report(WORST)
        return

    done: list[Document] = []

    def report(history: list[Document]) -> None:
        done[:] = history
        over = len(history) == chosen.train.epochs or is_over(history, chosen.train.early_stopping)
        if len(history) > len(told) or over:
            write_trial(store, trial, history, "finished" if over else "running")
        if len(history) > len(told):
            tune.report(metrics_of(history[-1]))  # a trial that falls behind, or is at its last epoch, ends here

    chosen = replace(task, train=with_values(task.train, trial.values))
    device = "cuda:0" if task.train.gpus_per_worker else "cpu"
    try:
        rehearse(chosen, Seat(device=device), Pulse(), report)
    except DivergedError as error:  # that is what was to be found out
        write_trial(store, trial, done, "diverged", str(error))
        tune.report(WORST)
