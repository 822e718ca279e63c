"""The loss of a batch: cross entropy, summed, against targets that may be softened, mixed and weighted."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Targets:
    """What a batch of B should be answered with.

    `classes` is int64 [B]. Of mixed pictures, `others` is the second class of each, int64 [B], and `shares` the first one's
    part, float32 [B], at least a half.
    """

    classes: torch.Tensor
    others: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: str) -> "Targets":
        """Return the same on a device."""
        others = self.others.to(device) if self.others is not None else None
        return Targets(self.classes.to(device), others, self.shares.to(device) if self.shares is not None else None)

    def pieces(self, number: int) -> Iterator["Targets"]:
        """Yield as many consecutive parts, as `Tensor.tensor_split` cuts them."""
        if self.others is None or self.shares is None:
            yield from (Targets(classes) for classes in self.classes.tensor_split(number))
            return
        parts = (tensor.tensor_split(number) for tensor in (self.classes, self.others, self.shares))
        yield from (Targets(*part) for part in zip(*parts, strict=True))


def summed_loss(
    logits: torch.Tensor, targets: Targets, label_smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum over a batch of logits [B, K], a scalar in float32.

    Parameters
    ----------
    label_smoothing : float
        With smoothing s the target is (1 - s) of the class and s spread over all K.
    weights : torch.Tensor, optional
        float32 [K]: how much an example of each class counts.
    """

    def each(classes: torch.Tensor) -> torch.Tensor:
        loss = functional.cross_entropy(logits.float(), classes, reduction="none", label_smoothing=label_smoothing)
        return loss if weights is None else loss * weights[classes]

    loss = each(targets.classes)
    if targets.others is not None and targets.shares is not None:
        loss = targets.shares * loss + (1 - targets.shares) * each(targets.others)
    return loss.sum()
