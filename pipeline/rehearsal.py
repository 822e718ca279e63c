"""A training that seals nothing: how well a recipe does is all that is asked, by tuning and by cross-validation."""

from dataclasses import replace

import torch

from pipeline.allocator import keep_freed_memory
from pipeline.documents import Document
from pipeline.fitting import prepare
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.storage import open_storage
from pipeline.tasks import TrainTask
from pipeline.training import Told, train


def rehearse(task: TrainTask, seat: Seat, pulse: Pulse, told: Told | None = None) -> list[Document]:
    """Train alone, and return the records of the epochs; see `training.train`. Nothing is written to the store.

    Without the checks before the first step: the training that is sealed has them.
    """
    torch.set_num_threads(task.train.cpus_per_worker)
    if seat.device == "cpu":
        keep_freed_memory()
    task = replace(task, train=task.train.model_copy(update={"sanity": False}))
    lesson = prepare(task, open_storage(task.store, task.storage), seat, lambda module: module, pulse)
    return train(lesson.trainee, lesson.course, seat, None, pulse, told)
