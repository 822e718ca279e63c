"""Cross-validation, before the training that is sealed: how good the recipe is, and how much that depends on chance."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from jobs.console import counted, say, stage
from jobs.preparation import Prepared
from jobs.runs import Run
from pipeline import layout
from pipeline.documents import Document, encode, find_document
from pipeline.errors import HeldError
from pipeline.folds import fold_numbers
from pipeline.patience import sealed_epoch
from pipeline.tasks import TrainTask
from pipeline.trials import METRICS


def cross_validate(run: Run, prepared: Prepared) -> Document:
    """Train once per fold, several at a time; return each fold's figures, and their mean and spread."""
    from cluster.dispatch import Failure
    from cluster.rehearser import rehearse_all

    task, store = prepared.task, run.store
    assert task.train.folds is not None
    numbers = fold_numbers(prepared.examples, task.train.folds, task.seed)
    numbers[
        [isinstance(label, str) and label not in task.classes for label in prepared.examples.labels]
    ] = -1  # not judged
    tasks = [replace(task, fold=fold) for fold in range(task.train.folds)]
    folds = [found for one in tasks if (found := find_document(store, _path(one)))]
    todo = [one for one in tasks if one.fold not in {found["fold"] for found in folds}]
    failures = []
    if todo:
        run.start_cluster()
    with stage("folds", len(todo), "folds") as progress:
        for done, outcome in rehearse_all(todo) if todo else ():
            progress.advance(1)
            if isinstance(outcome, Failure):
                failures.append(f"fold {done.fold}: {outcome.error}")
                continue
            epoch = outcome[sealed_epoch(outcome, task.train.early_stopping) - 1]
            figures = {key: epoch[key] for key, _ in METRICS.values() if epoch.get(key) is not None}
            folds.append({"fold": done.fold, "num_val": int((numbers == done.fold).sum()), **figures})
            store.write(_path(done), encode(folds[-1]))
    run.stage("folds", progress.seconds, 0)
    if failures:
        raise HeldError(
            f"{counted(len(failures), 'fold')} cannot be trained; the same command tries again. {failures[0]}"
        )
    folds.sort(key=lambda fold: fold["fold"])
    document = {"folds": folds, **_spread(folds)}
    say(f"{len(folds)} folds of {int((numbers >= 0).sum()):,} images, each held out once: {_words(document)}")
    return document


def _path(task: TrainTask) -> str:
    return layout.fold(task.run_key, task.train.folds or 0, task.fold or 0)


def _spread(folds: Sequence[Document]) -> Document:
    """Return mean and standard deviation (of a sample) over the folds."""
    keys = [key for key, _ in METRICS.values() if all(key in fold for fold in folds)]
    values = {key: [fold[key] for fold in folds] for key in keys}
    return {
        "mean": {key: statistics.fmean(found) for key, found in values.items()},
        "deviation": {key: statistics.stdev(found) for key, found in values.items()},
    }


def _words(document: Document) -> str:
    mean, deviation = document["mean"], document["deviation"]
    said = [f"top-1 {mean['val_top1']:.1%} ± {100 * deviation['val_top1']:.1f} points"]
    if "val_map" in mean:
        said.append(f"mean average precision {mean['val_map']:.1%} ± {100 * deviation['val_map']:.1f} points")
    return ", ".join([*said, f"loss {mean['val_loss']:.3f} ± {deviation['val_loss']:.3f}"])
