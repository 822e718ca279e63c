"""Tuning: Ray Tune draws the values and stops what falls behind; each trial is one worker that trains alone.

What lasts is our own record of each trial in the store. Ray's files, pickles among them, lie in a scratch folder that is
removed, and nothing is ever restored from them.
"""

import os
import random
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.documents import Document
from pipeline.errors import ModelError
from pipeline.storage import open_storage
from pipeline.tasks import TrainTask
from pipeline.trials import METRICS, WORST, Trial, metrics_of, read_trial, write_trial
from pipeline.tunesettings import Range, TuneSettings, with_values

# Read by Ray Tune when it is imported: no box on the terminal, no logs of its own, and Ctrl-C is ours.
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
LATER = "values"  # Ray Tune's name for what is drawn


def tune_over(task: TrainTask, settings: TuneSettings, told: Callable[[Trial, bool], None]) -> list[Trial]:
    """Run the trials on the session's workers; return them in the order in which they were drawn.

    Parameters
    ----------
    told : Callable[[Trial, bool], None]
        Told of each epoch of a trial, and (True) of its end.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    drawn: dict[str, Trial] = {}

    def trial_of(ours: Any) -> Trial:
        return drawn.setdefault(ours.trial_id, Trial(task.run_key, dict(ours.config[LATER])))

    class Telling(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            trial_of(trial)

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            told(trial_of(trial), False)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told(trial_of(trial), True)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told(trial_of(trial), True)

    metric, higher = METRICS[settings.metric]
    resources = {"cpu": 1, "gpu": task.train.gpus_per_worker}
    with TemporaryDirectory(prefix="nightshift-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_train, task=task), resources),
            param_space={LATER: {key: _domain(domain) for key, domain in settings.space.items()}},
            tune_config=tune.TuneConfig(
                metric=metric, mode="max" if higher else "min", num_samples=settings.trials, reuse_actors=True,
                search_alg=_search(settings, task.seed), scheduler=_scheduler(settings, task.train.epochs),
            ),
            run_config=tune.RunConfig(
                name="tuning", storage_path=scratch, verbose=0, callbacks=[Telling(), JsonLoggerCallback()],
                failure_config=tune.FailureConfig(max_failures=task.train.max_failures),
            ),
        ).fit()  # fmt: skip
    return list(drawn.values())


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


def _train(config: Mapping[str, Any], task: TrainTask) -> None:
    """Run one trial in a worker of Ray Tune's, and report each epoch; what stands on record already is only told again."""
    from dataclasses import replace

    import torch
    from ray import tune

    from pipeline.patience import is_over
    from pipeline.pulse import Pulse
    from pipeline.rehearsal import rehearse
    from pipeline.seat import Seat

    torch.set_num_threads(1)
    store, trial = open_storage(task.store, task.storage), Trial(task.run_key, dict(config[LATER]))
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
    except ModelError as error:  # it diverged, say: that is what was to be found out
        write_trial(store, trial, done, "diverged", str(error))
        tune.report(WORST)
