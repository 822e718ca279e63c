"""A running average of weights, which answers better than the weights that jump about it: it is validated and sealed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


class Average:
    """The exponential moving average of a module's learning parameters.

    Notes
    -----
    average = d x average + (1 - d) x weights after every step (B. Polyak and A. Juditsky, 1992; as in TensorFlow, d is at
    most (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten). BatchNorm's statistics, which are
    averages already, stay those of the module.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.tensors: Tensors = {name: p.detach().clone() for name, p in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._module.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take the module's weights in, after so many steps."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, parameter in self._parameters():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module answer with the average inside."""
        own = {name: p.detach().clone() for name, p in self._parameters()}
        self._load(self.tensors)
        try:
            yield
        finally:
            self._load(own)

    def _load(self, tensors: Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.copy_(tensors[name])

    def put(self) -> None:
        """Give the module the average for good."""
        self._load(self.tensors)

    def load(self, tensors: Tensors) -> None:
        """Go on from the average of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
