"""Records of trials: a JSON of our own for each, in the store. A rerun reads what is there, and trains only what is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import layout
from pipeline.documents import Document, digest, encode, find_document, read_document
from pipeline.errors import ModelError, NotFoundError, UsageError
from pipeline.patience import sealed_epoch
from pipeline.storage import Storage

METRICS = {"loss": ("val_loss", False), "top1": ("val_top1", True), "map": ("val_map", True)}  # key, higher is better
WORST = {"val_loss": 1e30, "val_top1": -1.0, "val_map": -1.0}  # of a trial that diverged: no number at all


@dataclass(frozen=True)
class Trial:
    """A trial of the tuning called `tuning`, with values of `train.KEY`."""

    tuning: str
    values: dict[str, Any]

    @property
    def id(self) -> str:
        """The same for the same values."""
        return digest(self.values, 8)

    @property
    def path(self) -> str:
        """Where its record lies."""
        return layout.trial(self.tuning, self.id)


def read_trial(store: Storage, trial: Trial) -> Document | None:
    """Return the record, None when the trial has not begun."""
    return find_document(store, trial.path)


def read_trials(store: Storage, tuning: str) -> list[Document]:
    """Return the records of all trials of a tuning."""
    return [read_document(store, entry.path) for entry in store.list(f"{layout.training(tuning)}/trials")]


def write_trial(store: Storage, trial: Trial, history: Sequence[Document], state: str, error: str = "") -> None:
    """Record how far a trial is: `state` is running, finished or diverged."""
    document = {"trial": trial.id, "values": trial.values, "history": list(history), "state": state}
    store.write(trial.path, encode(document | ({"error": error} if error else {})))


def metrics_of(record: Document) -> dict[str, float]:
    """Return what the scheduler is told of an epoch: a number for each metric that was measured."""
    return {key: record[key] for key, _ in METRICS.values() if record.get(key) is not None}


def summary(trial: Document, metric: str, patience: int | None) -> Document:
    """Return a trial as tables show it: its values, how far it came, and the figures of the epoch that would be sealed."""
    history = trial["history"]
    shown: Document = {
        "trial": trial["trial"],
        "values": trial["values"],
        "state": trial["state"],
        "epochs": len(history),
    }
    if not history or trial["state"] == "diverged":
        return shown | {"score": None}
    epoch = history[sealed_epoch(history, patience) - 1]
    return shown | metrics_of(epoch) | {"train_top1": epoch["train_top1"], "score": epoch.get(METRICS[metric][0])}


def ranked(trials: Sequence[Document], metric: str) -> list[Document]:
    """Return summaries, the best finished one first; of equal scores the lower validation loss, and then the first."""
    sign = -1 if METRICS[metric][1] else 1

    def order(trial: Document) -> tuple[bool, bool, float, float]:
        if trial["score"] is None:
            return True, True, 0.0, 0.0
        return False, trial["state"] != "finished", sign * trial["score"], trial["val_loss"]

    return sorted(trials, key=order)


def read_tuning(store: Storage, key: str) -> Document:
    """Return what a tuning found; UsageError when there is none."""
    try:
        return read_document(store, layout.tuning(key))
    except NotFoundError as error:
        raise UsageError(
            "this config was not tuned yet, or something else than values of tune.space changed since, such as which keys it has: run "
            "`nightshift tune CONFIG`"
        ) from error


def values_of(store: Storage, key: str, name: str) -> dict[str, Any]:
    """Return the values of a trial by its id, or of the `best`; UsageError when there is no such trial."""
    found = read_tuning(store, key)["trials"]
    chosen = found[:1] if name == "best" else [trial for trial in found if trial["trial"] == name]
    if not chosen:
        known = ", ".join(trial["trial"] for trial in found[:5])
        raise UsageError(f"there is no trial {name!r}; the best ones are {known}")
    if chosen[0]["state"] != "finished":
        raise ModelError(
            f"trial {chosen[0]['trial']} did not come to its end ({chosen[0]['state']}), so nothing is known of its values"
        )
    values: dict[str, Any] = chosen[0]["values"]
    return values
