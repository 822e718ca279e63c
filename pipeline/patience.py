"""Early stopping: which epoch was the best on the validation images, and whether it is long enough ago."""

from collections.abc import Sequence

from pipeline.documents import Document


def best_epoch(history: Sequence[Document]) -> int:
    """Return the place in the history of the lowest validation loss, the first of several, -1 without any."""
    return min(range(len(history)), key=lambda i: history[i]["val_loss"], default=-1)


def is_over(history: Sequence[Document], patience: int | None) -> bool:
    """Return whether so many epochs have gone without a lower validation loss."""
    return patience is not None and len(history) - 1 - best_epoch(history) >= patience


def sealed_epoch(history: Sequence[Document], patience: int | None) -> int:
    """Return the number of the epoch whose weights are sealed: the last one, or with early stopping the best."""
    return best_epoch(history) + 1 if patience is not None else len(history)
