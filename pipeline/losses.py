"""The loss of a batch, summed, against targets that may be softened, mixed and weighted.

Of images with one label each it is the cross entropy. Of multi-label ones, the binary cross entropy of each class that
is known of the image, and of those the mean.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from pipeline.truths import PRESENT, UNKNOWN


@dataclass(frozen=True)
class Targets:
    """What a batch of B should be answered with.

    `classes` is int64 [B], or of multi-label images int8 [B, K] (`truths`). Of mixed pictures, `others` is that of the
    second picture, and `shares` the first one's part, float32 [B], at least a half.
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
        With smoothing s the target is (1 - s) of the class and s spread over all K; of multi-label images, over yes and no.
    weights : torch.Tensor, optional
        float32 [K]: how much an example of each class counts.

    Notes
    -----
    The mean over what is known: T. Durand et al., "Learning a Deep ConvNet for Multi-label Classification with Partial
    Labels", CVPR 2019, with each image counting as much as any other.
    """

    def each(classes: torch.Tensor) -> torch.Tensor:
        if is_multi_label(classes):
            return _masked_loss(logits.float(), classes, label_smoothing)
        loss = functional.cross_entropy(logits.float(), classes, reduction="none", label_smoothing=label_smoothing)
        return loss if weights is None else loss * weights[classes]

    loss = each(targets.classes)
    if targets.others is not None and targets.shares is not None:
        loss = targets.shares * loss + (1 - targets.shares) * each(targets.others)
    return loss.sum()


def is_multi_label(classes: torch.Tensor) -> bool:
    """Say whether targets are rows of classes, not indices of one."""
    return classes.dim() == 2


def right_answers(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return bool [B]: whether the best class is the image's, or one of its classes.

    Of a multi-label image the best of those that are known; one without any label is right where nothing seems likely.
    """
    if not is_multi_label(classes):
        return logits.argmax(1) == classes
    known = logits.masked_fill(classes == UNKNOWN, -torch.inf)
    best, index = known.max(1)
    has_any = (classes == PRESENT).any(1)
    return torch.where(has_any, classes.gather(1, index[:, None]).squeeze(1) == PRESENT, best < 0)


def guessing_loss(num_classes: int, multi_label: bool) -> float:
    """Return the loss of a network that knows nothing: ln K, or ln 2 for each class by itself."""
    return math.log(2 if multi_label else num_classes)


def _masked_loss(logits: torch.Tensor, classes: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return [B], the mean over the known classes; 0 for an image of which nothing is known."""
    known = classes != UNKNOWN
    wanted = classes.clamp(min=0).float() * (1 - label_smoothing) + label_smoothing / 2
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * known
    return loss.sum(1) / known.sum(1).clamp(min=1)
