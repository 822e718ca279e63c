"""What a training must be able to do at its start; where it cannot, something is wrong that no epoch will mend."""

import copy
import math
import time

import torch
from torch import nn

from pipeline.heads import split_outputs
from pipeline.losses import Targets, guessing_loss, right_answers, summed_loss
from pipeline.optimizers import make_optimizer
from pipeline.trainsettings import TrainSettings

IMAGES = 20
STEPS = 100
LIMIT_S = 15.0
TOLERANCE, ENOUGH = 0.1, 32


def first_loss_warning(loss: float, num_images: int, num_classes: int, multi_label: bool = False) -> str | None:
    """Return a warning when the first batch's loss is not that of guessing within a tenth. Few images say little."""
    guessing = guessing_loss(num_classes, multi_label)
    if num_images < ENOUGH or abs(loss - guessing) <= TOLERANCE * guessing:
        return None
    classes = f"each of {num_classes} classes" if multi_label else f"among {num_classes} classes"
    return (
        f"first-loss: the first batch's loss is {loss:.3g}, that of guessing {classes} is {guessing:.3g}: look at the scale of "
        "the inputs and at the head's first weights"
    )


def by_heart_warning(
    module: nn.Module, settings: TrainSettings, inputs: torch.Tensor, targets: torch.Tensor
) -> str | None:
    """Return a warning when a copy of the module, in its training mode, cannot learn these few images by heart.

    They are learnt when all of them are right. A copy that halves the loss in so many steps, or runs out of time, is on
    its way and not warned of.
    """
    probe = copy.deepcopy(module)  # not the module: DDP would average its gradients with workers that do something else
    optimizer = make_optimizer(probe, settings)
    torch.manual_seed(0)
    end, first, loss, right = time.monotonic() + LIMIT_S, math.nan, math.nan, 0
    for step in range(STEPS):
        logits, _ = split_outputs(probe(inputs))
        mean = summed_loss(logits, Targets(targets)) / len(targets)
        loss, right = mean.item(), int(right_answers(logits, targets).sum())
        first = loss if step == 0 else first
        if right == len(targets) or time.monotonic() > end:
            return None
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(mean)
        optimizer.step()
    if loss <= first / 2:
        return None
    return (
        f"by-heart: {len(targets)} images cannot be learnt by heart: after {STEPS} steps {right} are right and their loss "
        f"went from {first:.3g} to {loss:.3g}; look at the labels, and at train.learning_rate ({settings.learning_rate:g})"
    )
