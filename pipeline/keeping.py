"""What of a training will be sealed: the weights of its last step, their running average, or those of its best epoch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from pipeline.averages import Average, Tensors
from pipeline.documents import Document
from pipeline.patience import best_epoch
from pipeline.trainsettings import TrainSettings


class Keeping:
    """Looks on while a module trains. `best` is kept where early stopping is asked for, else the last weights are sealed."""

    def __init__(self, module: nn.Module, settings: TrainSettings) -> None:
        self._module, self._settings = module, settings
        self._average = Average(module, settings.average) if settings.average is not None else None
        self._best: Tensors = {}

    def stepped(self, steps: int) -> None:
        """Take note of a step, the `steps`th of the training."""
        if self._average is not None:
            self._average.update(steps)

    def answering(self) -> AbstractContextManager[None]:
        """Let the module answer with the weights that would be sealed now."""
        return self._average.in_place() if self._average is not None else nullcontext()

    def closed(self, history: Sequence[Document]) -> None:
        """Take note of an epoch, the last of the history."""
        if self._settings.early_stopping is not None and best_epoch(history) == len(history) - 1:
            with self.answering():
                self._best = {key: tensor.detach().clone() for key, tensor in self._module.state_dict().items()}

    def put(self) -> None:
        """Bring the module to what is to be sealed; it trains no more."""
        if self._best:
            self._module.load_state_dict(self._best)
        elif self._average is not None:
            self._average.put()

    def capture(self) -> Tensors:
        """Return what a checkpoint must hold."""
        average = self._average.tensors if self._average is not None else {}
        named = {f"average.{key}": tensor for key, tensor in average.items()}
        return named | {f"best.{key}": tensor for key, tensor in self._best.items()}

    def restore(self, tensors: Tensors) -> None:
        """Go on from a checkpoint."""
        if self._average is not None:
            self._average.load(_below("average.", tensors))
        device = next(self._module.parameters()).device
        self._best = {key: tensor.to(device) for key, tensor in _below("best.", tensors).items()}


def _below(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
