"""Trainings that seal nothing, several at a time: each is one worker that trains alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.dispatch import Failure, dispatch
from cluster.resources import trainer_size
from cluster.workers import ActorPool, Function
from pipeline.documents import Document
from pipeline.tasks import TrainTask

STALL_S = 3600.0  # a training shows nothing before its end


def rehearse_all(tasks: Sequence[TrainTask]) -> Iterator[tuple[TrainTask, list[Document] | Failure]]:
    """Train each task; yield it with the records of its epochs, or with why it was given up."""
    settings = tasks[0].train
    with ActorPool(open_rehearsal, 1, len(tasks), trainer_size(settings)) as pool:
        yield from dispatch(pool, tasks, 1 + settings.max_failures, stall_s=STALL_S)


def open_rehearsal() -> Function:
    """Return a worker's function that trains a task and returns the records of its epochs."""
    from pipeline.pulse import Pulse
    from pipeline.rehearsal import rehearse
    from pipeline.seat import Seat

    def work(task: TrainTask, halvings: int) -> Any:
        device = "cuda:0" if task.train.gpus_per_worker else "cpu"
        return rehearse(task, Seat(device=device), Pulse())

    return work
