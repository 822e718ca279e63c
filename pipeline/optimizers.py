"""The optimizers that `train.optimizer` names, over the parameters that learn: those of the head, and those of the body."""

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.schedules import peak_rate
from pipeline.trainsettings import TrainSettings


def make_optimizer(
    module: nn.Module, settings: TrainSettings, head: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer. Each of its groups knows its `peak_lr`, which `set_rate` multiplies.

    Parameters
    ----------
    head : Iterable[nn.Parameter]
        What learns at `learning_rate` where the rest, the body, has a rate of its own.

    Notes
    -----
    Weights decay, biases and the scales of normalisations do not (T. He et al., "Bag of tricks", arXiv 1812.01187).
    """
    fresh = {id(parameter) for parameter in head}
    rate = peak_rate(settings)
    body = rate if settings.body_learning_rate is None else settings.body_learning_rate * rate / settings.learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            peak = rate if id(parameter) in fresh or not fresh else body
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return _optimizer(
        [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()], settings
    )


def _optimizer(groups: list[dict[str, object]], settings: TrainSettings) -> torch.optim.Optimizer:
    rate = peak_rate(settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, rate, alpha=0.9, momentum=settings.momentum)
    adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, rate)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
