"""A training that seals nothing: how well a recipe does is all that is asked, by tuning and by cross-validation."""

from collections.abc import Callable

from pipeline.documents import Document
from pipeline.fitting import prepare
from pipeline.patience import sealed_epoch
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.storage import open_storage
from pipeline.tasks import TrainTask
from pipeline.training import train


def rehearse(
    task: TrainTask, seat: Seat, pulse: Pulse, told: Callable[[list[Document]], None] | None = None
) -> list[Document]:
    """Train alone, and return the records of the epochs; see `training.train`. Nothing is written to the store."""
    lesson = prepare(task, open_storage(task.store, task.storage), seat, lambda module: module, pulse)
    return train(lesson.trainee, lesson.course, seat, None, pulse, told)


def judged_epoch(history: list[Document], task: TrainTask) -> Document:
    """Return the record of the epoch whose weights would be sealed."""
    return history[sealed_epoch(history, task.train.early_stopping) - 1]
