"""The training loop of one worker. It knows its part of each global batch and a `reduce`; not who the others are.

Loss = local sum x world / global count: gradients averaged over workers are those of the mean over the global batch,
however the batch is cut.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional

from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.documents import Document
from pipeline.errors import ModelError, TransientError
from pipeline.lanes import EpochOrder, Indices, epoch_order
from pipeline.loading import Inputs
from pipeline.settings import TrainSettings

LOOKS = 20

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Seat:
    """One worker of `world`: its rank, its device, and the sum over all of them."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    reduce: Reduce = lambda sums: sums


@dataclass(frozen=True)
class Trainee:
    """What is trained.

    `module` owns the weights; `forward` is the same module, perhaps wrapped for averaging gradients; `set_mode` puts
    its trainable part into training mode (frozen parts stay in eval mode, BatchNorm statistics with them).
    """

    module: nn.Module
    forward: nn.Module
    set_mode: Callable[[bool], None]


@dataclass(frozen=True)
class Course:
    """What to train on: training and validation examples, and how."""

    inputs: Inputs
    train: list[Indices]  # by shard
    val: Indices
    settings: TrainSettings
    seed: int


def train(
    trainee: Trainee, course: Course, seat: Seat, checkpoints: Checkpoints | None, advanced: Callable[[int], None]
) -> list[Document]:
    """Train from the newest checkpoint, if any, to the last epoch.

    Parameters
    ----------
    advanced : Callable[[int], None]
        Told how many examples this worker has trained on, as it goes; rank 0 is first told those of resumed epochs.

    Returns
    -------
    list[Document]
        One record per epoch: epoch, train_loss, train_top1, val_loss, val_top1, seconds. Losses are means per example.

    Raises
    ------
    ModelError
        On every worker alike, when a loss is no finite number.
    """
    optimizer = make_optimizer(trainee.module, course.settings)
    history: list[Document] = []
    checkpoint = _agreed(checkpoints, seat) if checkpoints else None
    if checkpoint:
        trainee.module.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
        history = list(checkpoint.history)
        if seat.rank == 0:
            advanced(len(history) * sum(len(part) for part in course.train))
    s = course.settings
    for epoch in range(len(history), s.epochs):
        started = perf_counter()
        order = epoch_order(course.train, s.batch_size, s.lanes, s.shuffle_window, course.seed, epoch)
        sums = _train_epoch(trainee, course, seat, optimizer, order, epoch, advanced)
        _share_buffers(trainee.module, seat)
        record = {"epoch": epoch + 1, **_means("train", seat.reduce(sums))}
        record |= _means("val", seat.reduce(_validate(trainee, course, seat))) if len(course.val) else {}
        _check_finite(record, s.learning_rate)
        history.append({"val_loss": None, "val_top1": None, **record, "seconds": round(perf_counter() - started, 3)})
        if checkpoints and seat.rank == 0:
            checkpoints.save(trainee.module, optimizer, history)
    return history


def _share_buffers(module: nn.Module, seat: Seat) -> None:
    """Give all workers the buffers of rank 0, which are sealed: each has run BatchNorm's statistics over its own images."""
    with torch.no_grad():
        for buffer in module.buffers() if seat.world > 1 else ():
            buffer.copy_(seat.reduce(buffer.clone() if seat.rank == 0 else torch.zeros_like(buffer)))


def _agreed(checkpoints: Checkpoints, seat: Seat) -> Checkpoint | None:
    """Return the newest checkpoint, the same on every worker.

    Workers of a killed run may live on for seconds and write newer ones between one worker's look and the next one's.
    All values are equal if, and only if, n times the sum of their squares is the square of their sum.
    """
    for _ in range(LOOKS):
        checkpoint = checkpoints.newest()
        token = 1.0 + int(checkpoint.sha256[:6], 16) if checkpoint else 0.0  # 24 bits: squares are exact in float64
        sums = torch.tensor([token, token**2], dtype=torch.float64, device=seat.device)
        total, squares = seat.reduce(sums).tolist()
        if seat.world * squares == total**2:
            return checkpoint
    raise TransientError(
        f"the workers read other checkpoints {LOOKS} times: another run of this training writes them; wait for its end"
    )


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that train."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
    return torch.optim.Adam(parameters, settings.learning_rate, weight_decay=settings.weight_decay)


def _train_epoch(
    trainee: Trainee, course: Course, seat: Seat, optimizer: torch.optim.Optimizer, order: EpochOrder, epoch: int,
    advanced: Callable[[int], None],
) -> torch.Tensor:  # fmt: skip
    """Return this worker's sums [loss, right, examples]."""
    trainee.set_mode(True)
    sums = torch.zeros(3, dtype=torch.float64, device=seat.device)
    for step in range(order.num_steps):
        indices = order.batch(step, seat.rank, seat.world)
        torch.manual_seed(_step_seed(course.seed, epoch * order.num_steps + step, seat.rank))  # dropout
        inputs, targets = (tensor.to(seat.device) for tensor in course.inputs.gather(indices))
        logits = trainee.forward(inputs)
        loss_sum = functional.cross_entropy(logits, targets, reduction="sum")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_sum * seat.world / order.global_size(step))
        optimizer.step()
        sums += _sums(loss_sum, logits, targets)
        advanced(len(indices))
    return sums


def _validate(trainee: Trainee, course: Course, seat: Seat) -> torch.Tensor:
    """Return this worker's sums over its share of the validation examples."""
    trainee.set_mode(False)
    mine = course.val[seat.rank :: seat.world]
    sums = torch.zeros(3, dtype=torch.float64, device=seat.device)
    with torch.inference_mode():
        for first in range(0, len(mine), course.settings.batch_size):
            batch = course.inputs.gather(mine[first : first + course.settings.batch_size])
            inputs, targets = (tensor.to(seat.device) for tensor in batch)
            logits = trainee.module(inputs)
            sums += _sums(functional.cross_entropy(logits, targets, reduction="sum"), logits, targets)
    return sums


def _sums(loss_sum: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    right = (logits.argmax(1) == targets).sum()
    count = torch.tensor(len(targets), device=logits.device)
    return torch.stack([loss_sum.detach().double(), right.double(), count.double()])


def _means(name: str, sums: torch.Tensor) -> Document:
    loss, right, count = sums.tolist()
    return {f"{name}_loss": loss / max(1.0, count), f"{name}_top1": right / max(1.0, count)}


def _check_finite(record: Document, learning_rate: float) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(record.get(name, 0.0)):
            raise ModelError(
                f"training diverged: {name} is {record[name]} after epoch {record['epoch']}, expected a finite number; "
                f"lower train.learning_rate (now {learning_rate:g}) and train again"
            )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed that no other (seed, step, rank) is likely to share."""
    return hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF
