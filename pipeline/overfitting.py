"""What the curves of a training say: how much better it does on what it has learnt from, and since when it only gets worse."""

from collections.abc import Sequence
from typing import Any

from pipeline.documents import Document


def overfitting(history: Sequence[Document], sealed_epoch: int) -> dict[str, Any] | None:
    """Return the gap between training and validation in the epoch whose weights are sealed, None without validation.

    `gap` is a difference of shares of right answers. Where the training pictures are augmented they are the harder ones, and
    it may be below 0. `worse_since` is the epoch of the lowest validation loss when that rose afterwards while the training
    loss went on falling, else None.
    """
    sealed = history[sealed_epoch - 1]
    if sealed["val_top1"] is None:
        return None
    lowest = min(history, key=lambda record: record["val_loss"])
    last = history[-1]
    worse = last["val_loss"] > lowest["val_loss"] and last["train_loss"] < lowest["train_loss"]
    return {
        "epoch": sealed["epoch"],
        "training": sealed["train_top1"],
        "validation": sealed["val_top1"],
        "gap": sealed["train_top1"] - sealed["val_top1"],
        "worse_since": lowest["epoch"] if worse else None,
    }
