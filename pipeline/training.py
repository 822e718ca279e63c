"""The training loop of one worker. It knows its part of each global batch and a `reduce`; not who the others are."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from pipeline.balance import balanced, class_weights
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Document
from pipeline.errors import DivergedError, ModelError
from pipeline.keeping import Keeping
from pipeline.lanes import EpochOrder, Indices, epoch_order, num_steps
from pipeline.loading import Begun, Inputs
from pipeline.losses import Targets, guessing_loss, summed_loss
from pipeline.mixing import mixed
from pipeline.patience import is_over
from pipeline.precisions import average_precisions, mean_average_precision
from pipeline.prefetch import ahead
from pipeline.pulse import Pulse
from pipeline.sanity import IMAGES, by_heart_warning, first_loss_warning
from pipeline.seat import Seat
from pipeline.stepping import Stepper, Trainee, counted
from pipeline.stops import Stops
from pipeline.trainsettings import TrainSettings
from pipeline.trainstate import SUMS, Position, agreed, capture, restore
from pipeline.truths import LabelMatrix
from pipeline.validation import MOST_NUMBERS, answered, joined

Told = Callable[[list[Document]], None]
# A loss that is so many times the first one's, or that of guessing, does not come back.
EXPLODED = 100.0


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
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return isinstance(self.inputs.targets, LabelMatrix)

    @property
    def _single_targets(self) -> npt.NDArray[np.int64]:
        """The class of every example."""
        assert isinstance(self.inputs.targets, np.ndarray)  # the config refuses balance for multi-label
        return self.inputs.targets

    @property
    def num_train(self) -> int:
        """Examples of an epoch."""
        return sum(len(part) for part in self.train)

    def order(self, epoch: int) -> EpochOrder:
        """Return the batches of an epoch."""
        s, shards = self.settings, self.train
        if s.balance == "sampling":
            shards = balanced(shards, self._single_targets, self.seed, epoch)
        return epoch_order(shards, s.batch_size, s.lanes, s.shuffle_window, self.seed, epoch)

    @property
    def steps(self) -> int:
        """Steps of every epoch."""
        size = self.num_train
        if self.settings.balance == "sampling":
            size = sum(map(len, balanced(self.train, self._single_targets, self.seed, 0)))
        return num_steps(size, self.settings.batch_size)

    @property
    def weights(self) -> torch.Tensor | None:
        """How much an example of each class counts in the loss, float32 [K]."""
        if self.settings.balance != "loss":
            return None
        return torch.from_numpy(class_weights(self._single_targets[np.concatenate(self.train)], self.num_classes))


def train(
    trainee: Trainee,
    course: Course,
    seat: Seat,
    checkpoints: Checkpoints | None,
    pulse: Pulse,
    told: Told | None = None,
) -> list[Document]:
    """Train from the newest checkpoint, if any, to the last epoch.

    Parameters
    ----------
    pulse : Pulse
        Shows how far this worker is, as it goes; rank 0 begins with the examples that a checkpoint has behind it.
    told : Callable[[list[Document]], None], optional
        Told the records of all epochs so far after each of them, on rank 0.

    Returns
    -------
    list[Document]
        One record per epoch: epoch, train_loss, train_top1, val_loss, val_top1, learning_rate (the last step's, of the head),
        seconds; of multi-label images also val_map, the mean average precision. Losses are means of the cross entropy per
        example; in training of the pictures as they are learnt, augmented and mixed, while the weights move. top1: see
        `losses.right_answers`.

    Raises
    ------
    ModelError
        On every worker alike, when a loss or a weight is no finite number, the loss explodes, or early stopping has nothing
        to look at.
    """
    if course.settings.early_stopping is not None and not len(course.val):
        raise ModelError(
            "train.early_stopping looks at validation images, and there are none; give some (split.val, or a split column), or "
            "leave it out"
        )
    return _Training(trainee, course, seat, checkpoints, pulse, told if seat.rank == 0 else None).run()


class _Training:
    def __init__(
        self,
        trainee: Trainee,
        course: Course,
        seat: Seat,
        checkpoints: Checkpoints | None,
        pulse: Pulse,
        told: Told | None,
    ) -> None:
        self._told = told
        self._trainee, self._course, self._seat = trainee, course, seat
        self._checkpoints, self._pulse = checkpoints, pulse
        self._steps, settings = course.steps, course.settings
        self._stepper = Stepper(trainee, settings, seat, self._steps * settings.epochs, self._steps, course.weights)
        self._keeping = Keeping(trainee.module, course.settings)
        checkpoint = agreed(checkpoints, seat) if checkpoints else None
        self._at = restore(checkpoint, trainee.module, self._stepper.optimizer) if checkpoint else Position()
        if checkpoint:
            self._keeping.restore(checkpoint.tensors)
        self._saved = checkpoint.step if checkpoint else 0
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
            while not self._is_over():
                self._train_epoch()
            self._save()  # sealing it, again if need be, trains nothing
            self._keeping.put()
        finally:  # a training that fails keeps what it had begun to save
            if self._checkpoints:
                self._checkpoints.settle()
        return self._at.history

    def _is_over(self) -> bool:
        settings, history = self._course.settings, self._at.history
        return len(history) >= settings.epochs or is_over(history, settings.early_stopping)

    def _train_epoch(self) -> None:
        started, before = perf_counter(), self._at.seconds
        order, module = self._course.order(self._at.epoch), self._trainee.module
        self._trainee.set_mode(True)
        clock = perf_counter()
        for inputs, targets in self._batches(order):
            self._step(inputs, targets, order.global_size(self._at.step), clock)
            self._at.step += 1
            self._at.examples += order.global_size(self._at.step - 1)
            self._at.seconds = before + perf_counter() - started
            if self._at.step < order.num_steps and self._stops.due(self._done):
                self._look()
                self._stop()
            clock = perf_counter()
        self._seat.share(module.buffers())  # each has run BatchNorm's statistics over its own images
        self._close(self._look(), before - started)
        if self._stops.due(self._done):
            self._stop()

    def _batches(self, order: EpochOrder) -> Iterator[tuple[torch.Tensor, Targets]]:
        """Yield this worker's parts of the steps that are left of this epoch.

        The pictures of one step are begun before those of the step before it are awaited: so no thread is ever idle.
        """
        epoch, seat, course = self._at.epoch, self._seat, self._course

        def begin(step: int) -> tuple[int, Begun]:
            positions = order.positions(step, seat.rank, seat.world)
            return step, course.inputs.begin(order.stream[positions], positions, epoch)

        def finish(begun: tuple[int, Begun]) -> tuple[torch.Tensor, Targets]:
            step, (inputs, classes) = begun[0], begun[1]()
            targets = Targets(classes)
            if course.settings.augment.mixes:
                lanes = order.lanes(step, seat.rank, seat.world)
                inputs, targets = mixed(inputs, classes, lanes, course.settings.augment, course.seed, epoch, step)
            return inputs.to(seat.device), targets.to(seat.device)

        return ahead(finish, ahead(begin, range(self._at.step, order.num_steps), depth=1))

    def _gather(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self._course.inputs.gather(indices)
        return inputs.to(self._seat.device), targets.to(self._seat.device)

    def _step(self, inputs: torch.Tensor, targets: Targets, global_size: int, since: float) -> None:
        torch.manual_seed(_step_seed(self._course.seed, self._done, self._seat.rank))  # dropout
        self._sums += self._stepper.step(
            inputs, targets, global_size, self._done, lambda: self._pulse.ready(perf_counter() - since)
        )
        self._keeping.stepped(self._done + 1)
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
            warning = first_loss_warning(mean, int(count), self._course.num_classes, self._course.multi_label)
            if warning and settings.sanity and self._course.fresh_head and self._seat.rank == 0:
                self._pulse.warn(warning)
        usual = max(self._at.first_loss, guessing_loss(self._course.num_classes, self._course.multi_label))
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
            document, tensors = capture(self._at, self._trainee.module, self._stepper.optimizer)
            self._checkpoints.save(self._done, document, tensors | self._keeping.capture())

    def _close(self, total: torch.Tensor, seconds: float) -> None:
        """Validate and put the epoch on record."""
        record = {"epoch": self._at.epoch + 1, **_means("train", total), "val_loss": None, "val_top1": None}
        if len(self._course.val):
            with self._keeping.answering():
                record |= self._validate()
            if not math.isfinite(record["val_loss"]):
                raise self._diverged(f"the validation loss is {record['val_loss']:g}")
        record["learning_rate"] = self._stepper.rate
        record["seconds"] = round(seconds + perf_counter(), 3)
        self._at = Position([*self._at.history, record], examples=self._at.examples, first_loss=self._at.first_loss)
        if self._seat.rank == 0:
            self._keeping.closed(self._at.history)
        if self._told:
            self._told(self._at.history)
        self._sums.zero_()
        self._at.sums = torch.zeros(self._seat.world, SUMS, dtype=torch.float64)
        self._compared = self._at.sums.sum(0)

    def _validate(self) -> Document:
        """Return the means over the validation examples of all workers."""
        course, seat = self._course, self._seat
        sums, kept = torch.zeros(SUMS, dtype=torch.float64, device=seat.device), []
        keeps = course.multi_label and len(course.val) * course.num_classes <= MOST_NUMBERS
        for logits, targets in answered(
            self._trainee,
            course.inputs,
            course.val,
            course.settings.batch_size,
            seat,
            self._pulse,
            self._stepper.autocast,
        ):
            sums += counted(summed_loss(logits, Targets(targets)), logits, targets)
            if keeps:
                kept.append(logits)
        means = _means("val", seat.reduce(sums))
        if keeps:
            scores = joined(kept, len(course.val), course.num_classes, seat).numpy()
            precisions = average_precisions(scores, course.inputs.targets[course.val].astype(np.int8))
            means["val_map"] = mean_average_precision(precisions)
        return means

    def _try_by_heart(self) -> None:
        """Warn when the first images cannot be learnt by heart. Rank 0 does it while the others wait for its first step."""
        order = self._course.order(0)
        batches = (order.batch(step, 0, self._seat.world) for step in range(order.num_steps))
        inputs, targets = self._gather(_first(batches, IMAGES))
        self._trainee.set_mode(True)
        if warning := by_heart_warning(self._trainee.module, self._course.settings, inputs, targets):
            self._pulse.warn(warning)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
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


def _means(name: str, sums: torch.Tensor) -> Document:
    loss, right, count = sums.tolist()
    return {f"{name}_loss": loss / max(1.0, count), f"{name}_top1": right / max(1.0, count)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed that no other (seed, step, rank) is likely to share."""
    return hash((seed, step, rank)) & 0x7FFF_FFFF_FFFF_FFFF
