"""One step of one worker: forward and backward over its share of a batch, in pieces if need be, then the optimizer.

Loss = local sum x world / global count: gradients averaged over workers are those of the mean over the global batch,
however the batch is cut.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.heads import split_outputs
from pipeline.losses import Targets, right_answers, summed_loss
from pipeline.optimizers import make_optimizer, set_rate
from pipeline.schedules import rate_factor
from pipeline.seat import Seat
from pipeline.trainsettings import TrainSettings


@dataclass(frozen=True)
class Trainee:
    """What is trained.

    `module` owns the weights; `forward` is the same module, perhaps wrapped for averaging gradients; `set_mode` puts
    its trainable part into training mode (frozen parts stay in eval mode, BatchNorm statistics with them). `head` are the
    parameters that `body_learning_rate` is not for.
    """

    module: nn.Module
    forward: nn.Module
    set_mode: Callable[[bool], None]
    head: tuple[nn.Parameter, ...] = ()


class Stepper:
    """Takes steps of `num_steps`, of which an epoch has `steps_per_epoch`.

    Parameters
    ----------
    weights : torch.Tensor, optional
        float32 [K]: how much an example of each class counts.
    """

    def __init__(
        self, trainee: Trainee, settings: TrainSettings, seat: Seat, num_steps: int, steps_per_epoch: int,
        weights: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._trainee, self._settings, self._seat = trainee, settings, seat
        self._num_steps, self._steps_per_epoch = num_steps, steps_per_epoch
        self._weights = weights.to(seat.device) if weights is not None else None
        self._plain = self._weights is None and not settings.label_smoothing
        self.optimizer = make_optimizer(trainee.module, settings, trainee.head)

    def step(
        self, inputs: torch.Tensor, targets: Targets, global_size: int, step: int, ready: Callable[[], None]
    ) -> torch.Tensor:
        """Take a step and return this worker's sums over its share: loss, right answers, examples.

        The loss is the plain cross entropy, to compare with that of validation: neither softened nor weighted.

        Parameters
        ----------
        global_size : int
            Examples of all workers' shares.
        step : int
            Number of the step since the start of the training, which decides the learning rate.
        ready : Callable[[], None]
            Called before the worker has to wait for the others.
        """
        set_rate(self.optimizer, rate_factor(self._settings, step, self._num_steps, self._steps_per_epoch))
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64, device=self._seat.device)
        for piece_inputs, piece_targets, last in self._pieces(inputs, targets):
            with nullcontext() if last else self._alone():
                with self.autocast():
                    logits, auxiliary = split_outputs(self._trainee.forward(piece_inputs))
                loss = self._loss(logits, piece_targets)
                whole = loss + sum(share * self._loss(other, piece_targets) for share, other in auxiliary)
                if last:
                    ready()
                torch.autograd.backward(whole * self._seat.world / global_size)
            shown = loss if self._plain else summed_loss(logits.detach(), piece_targets)
            sums += counted(shown, logits, piece_targets.classes)
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainee.module.parameters(), self._settings.clip_norm)
        self.optimizer.step()
        return sums

    @property
    def rate(self) -> float:
        """The learning rate of the last step, that of the head where the body has its own."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def _loss(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        return summed_loss(logits, targets, self._settings.label_smoothing, self._weights)

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in bfloat16 inside, where `train.precision` says so."""
        device = torch.device(self._seat.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self._settings.precision == "bf16")

    def _alone(self) -> AbstractContextManager[None]:
        """Keep gradients on this worker inside."""
        alone: Callable[[], AbstractContextManager[None]] = getattr(self._trainee.forward, "no_sync", nullcontext)
        return alone()

    def _pieces(self, inputs: torch.Tensor, targets: Targets) -> Iterator[tuple[torch.Tensor, Targets, bool]]:
        """Yield the pieces of a share, and whether it is the last, whose backward averages gradients over the workers."""
        number = max(1, min(self._settings.accumulate, len(targets)))
        for place, piece in enumerate(zip(inputs.tensor_split(number), targets.pieces(number), strict=True)):
            yield (*piece, place == number - 1)


def counted(loss_sum: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return [loss, right answers, examples], float64."""
    right = right_answers(logits, targets).sum()
    count = torch.tensor(len(targets), device=logits.device)
    return torch.stack([loss_sum.detach().double(), right.double(), count.double()])
