"""The optimizers that `train.optimizer` names."""

import torch
from torch import nn

from pipeline.trainsettings import TrainSettings


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that train."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
    return torch.optim.Adam(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
