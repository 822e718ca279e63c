"""The training loop of one worker. It knows its part of each global batch and a `reduce`; not who the others are.

Loss = local sum x world / global count: gradients averaged over workers are those of the mean over the global batch,
however the batch is cut.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.checkpoints import Checkpoints
from pipeline.documents import Document
from pipeline.errors import ModelError
from pipeline.heads import split_outputs
from pipeline.lanes import EpochOrder, Indices, epoch_order, num_steps
from pipeline.loading import Inputs
from pipeline.optimizers import make_optimizer
from pipeline.prefetch import ahead
from pipeline.pulse import Pulse
from pipeline.sanity import IMAGES, by_heart_warning, first_loss_warning
from pipeline.seat import Seat
from pipeline.stops import Stops
from pipeline.trainsettings import TrainSettings
from pipeline.trainstate import SUMS, Position, agreed, capture, restore

# A loss that is so many times the first one's, or that of guessing, does not come back.
EXPLODED = 100.0


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
    num_classes: int
    settings: TrainSettings
    seed: int
    fresh_head: bool = True  # its first loss is that of guessing

    @property
    def num_train(self) -> int:
        """Examples of an epoch."""
        return sum(len(part) for part in self.train)

    def order(self, epoch: int) -> EpochOrder:
        """Return the batches of an epoch."""
        s = self.settings
        return epoch_order(self.train, s.batch_size, s.lanes, s.shuffle_window, self.seed, epoch)


def train(
    trainee: Trainee, course: Course, seat: Seat, checkpoints: Checkpoints | None, pulse: Pulse
) -> list[Document]:
    """Train from the newest checkpoint, if any, to the last epoch.

    Parameters
    ----------
    pulse : Pulse
        Shows how far this worker is, as it goes; rank 0 begins with the examples that a checkpoint has behind it.

    Returns
    -------
    list[Document]
        One record per epoch: epoch, train_loss, train_top1, val_loss, val_top1, seconds. Losses are means per example.

    Raises
    ------
    ModelError
        On every worker alike, when a loss or a weight is no finite number, or the loss explodes.
    """
    return _Training(trainee, course, seat, checkpoints, pulse).run()


class _Training:
    def __init__(
        self, trainee: Trainee, course: Course, seat: Seat, checkpoints: Checkpoints | None, pulse: Pulse
    ) -> None:
        self._trainee, self._course, self._seat = trainee, course, seat
        self._checkpoints, self._pulse = checkpoints, pulse
        self._optimizer = make_optimizer(trainee.module, course.settings)
        checkpoint = agreed(checkpoints, seat) if checkpoints else None
        self._at = restore(checkpoint, trainee.module, self._optimizer) if checkpoint else Position()
        self._saved = checkpoint.step if checkpoint else 0
        self._steps = num_steps(course.num_train, course.settings.batch_size)  # of every epoch
        self._stops = Stops(course.settings, seat.from_first, self._done)
        self._sums = self._at.sums_of(seat)
        self._compared = self._at.sums.sum(0)
        if seat.rank == 0:
            pulse.examples += self._at.examples

    @property
    def _done(self) -> int:
        """Steps since the start of the training."""
        return self._at.epoch * self._steps + self._at.step

    def run(self) -> list[Document]:
        if not self._done and self._course.settings.sanity and self._seat.rank == 0:
            self._try_by_heart()
        try:
            while self._at.epoch < self._course.settings.epochs:
                self._train_epoch()
            self._save()  # sealing it, again if need be, trains nothing
        finally:  # a training that fails keeps what it had begun to save
            if self._checkpoints:
                self._checkpoints.settle()
        return self._at.history

    def _train_epoch(self) -> None:
        started, before = perf_counter(), self._at.seconds
        order, module = self._course.order(self._at.epoch), self._trainee.module
        self._trainee.set_mode(True)
        clock = perf_counter()
        for inputs, targets in ahead(
            lambda step: self._gather(order.batch(step, self._seat.rank, self._seat.world)),
            range(self._at.step, order.num_steps),
        ):
            self._step(inputs, targets, order.global_size(self._at.step), clock)
            self._at.step += 1
            self._at.examples += order.global_size(self._at.step - 1)
            self._at.seconds = before + perf_counter() - started
            if self._at.step < order.num_steps and self._stops.due(self._done):
                self._look()
                self._stop()
            clock = perf_counter()
        _share_buffers(module, self._seat)
        self._close(self._look(), before - started)
        if self._stops.due(self._done):
            self._stop()

    def _gather(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self._course.inputs.gather(indices)
        return inputs.to(self._seat.device), targets.to(self._seat.device)

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor, global_size: int, since: float) -> None:
        torch.manual_seed(_step_seed(self._course.seed, self._done, self._seat.rank))  # dropout
        logits, auxiliary = split_outputs(self._trainee.forward(inputs))
        loss_sum = functional.cross_entropy(logits, targets, reduction="sum")
        whole = loss_sum + sum(w * functional.cross_entropy(a, targets, reduction="sum") for w, a in auxiliary)
        self._pulse.ready(perf_counter() - since)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(whole * self._seat.world / global_size)
        self._optimizer.step()
        self._sums += _sums(loss_sum, logits, targets)
        self._pulse.advanced(len(targets))

    def _look(self) -> torch.Tensor:
        """Return the sums [3] of all workers over the epoch, once what came since the last look is seen to be sane."""
        self._at.sums = self._seat.gathered(self._sums).cpu()
        total = self._at.sums.sum(0)
        loss, _, count = (total - self._compared).tolist()
        self._compared = total
        mean, settings = loss / max(1.0, count), self._course.settings
        if self._at.first_loss is None:
            self._at.first_loss = mean
            warning = first_loss_warning(mean, int(count), self._course.num_classes)
            if warning and settings.sanity and self._course.fresh_head and self._seat.rank == 0:
                self._pulse.warn(warning)
        usual = max(self._at.first_loss, math.log(self._course.num_classes))
        if not math.isfinite(mean) or mean > EXPLODED * usual:
            raise self._diverged(f"the loss is {mean:g}")
        return total

    def _stop(self) -> None:
        """Agree with the others on the next stop, and save when it is time."""
        if self._stops.agree(self._done):
            self._save()

    def _save(self) -> None:
        if not all(tensor.isfinite().all() for tensor in self._trainee.module.parameters()):
            raise self._diverged("a weight is no finite number")
        if self._checkpoints and self._seat.rank == 0 and self._saved != self._done:
            self._saved = self._done
            self._checkpoints.save(self._done, *capture(self._at, self._trainee.module, self._optimizer))

    def _close(self, total: torch.Tensor, seconds: float) -> None:
        """Validate and put the epoch on record."""
        record = {"epoch": self._at.epoch + 1, **_means("train", total), "val_loss": None, "val_top1": None}
        if len(self._course.val):
            record |= _means("val", self._seat.reduce(self._validate()))
            if not math.isfinite(record["val_loss"]):
                raise self._diverged(f"the validation loss is {record['val_loss']:g}")
        record["seconds"] = round(seconds + perf_counter(), 3)
        self._at = Position([*self._at.history, record], examples=self._at.examples, first_loss=self._at.first_loss)
        self._sums.zero_()
        self._at.sums = torch.zeros(self._seat.world, SUMS, dtype=torch.float64)
        self._compared = self._at.sums.sum(0)

    def _validate(self) -> torch.Tensor:
        """Return this worker's sums over its share of the validation examples."""
        self._trainee.set_mode(False)
        size, mine = self._course.settings.batch_size, self._course.val[self._seat.rank :: self._seat.world]
        sums = torch.zeros(SUMS, dtype=torch.float64, device=self._seat.device)
        with torch.inference_mode():
            for inputs, targets in ahead(self._gather, (mine[n : n + size] for n in range(0, len(mine), size))):
                logits = self._trainee.module(inputs)
                sums += _sums(functional.cross_entropy(logits, targets, reduction="sum"), logits, targets)
                self._pulse.beat()
        return sums

    def _try_by_heart(self) -> None:
        """Warn when the first images cannot be learnt by heart. Rank 0 does it while the others wait for its first step."""
        order = self._course.order(0)
        batches = (order.batch(step, 0, self._seat.world) for step in range(order.num_steps))
        inputs, targets = self._gather(_first(batches, IMAGES))
        self._trainee.set_mode(True)
        if warning := by_heart_warning(self._trainee.module, self._course.settings, inputs, targets):
            self._pulse.warn(warning)

    def _diverged(self, what: str) -> ModelError:
        return ModelError(
            f"training diverged: {what} in epoch {self._at.epoch + 1}, after step {self._at.step} of {self._steps} "
            f"(the first loss was {self._at.first_loss:.3g}); lower train.learning_rate (now "
            f"{self._course.settings.learning_rate:g}) and train again"
        )


def _first(batches: Iterable[Indices], count: int) -> Indices:
    found = np.empty(0, np.int64)
    for batch in batches:
        found = np.concatenate([found, batch])[:count]
        if len(found) == count:
            break
    return found


def _share_buffers(module: nn.Module, seat: Seat) -> None:
    """Give all workers the buffers of rank 0, which are sealed: each has run BatchNorm's statistics over its own images."""
    with torch.no_grad():
        for buffer in module.buffers() if seat.world > 1 else ():
            buffer.copy_(seat.from_first(buffer))


def _sums(loss_sum: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    right = (logits.argmax(1) == targets).sum()
    count = torch.tensor(len(targets), device=logits.device)
    return torch.stack([loss_sum.detach().double(), right.double(), count.double()])


def _means(name: str, sums: torch.Tensor) -> Document:
    loss, right, count = sums.tolist()
    return {f"{name}_loss": loss / max(1.0, count), f"{name}_top1": right / max(1.0, count)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed that no other (seed, step, rank) is likely to share."""
    return hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF
