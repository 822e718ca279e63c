"""Mixup and cutmix: pictures of a batch laid over each other, or put into each other, and their labels with them.

Partners are of the same lane, which one worker owns, so a batch is mixed in the same way for any number of workers.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.augmentsettings import AugmentSettings
from pipeline.losses import Targets, is_multi_label

KEY = 0x6D6978  # apart from the chance of augmentation, which has the same seed and epoch


def mixed(
    inputs: torch.Tensor, classes: torch.Tensor, lanes: Sequence[tuple[int, int]], settings: AugmentSettings,
    seed: int, epoch: int, step: int,
) -> tuple[torch.Tensor, Targets]:  # fmt: skip
    """Mix uint8 [B, H, W, C] in place.

    Parameters
    ----------
    lanes : Sequence[tuple[int, int]]
        Number and length of each lane's part of the batch, in their order.

    Notes
    -----
    Mixup: H. Zhang et al., arXiv 1710.09412; cutmix: S. Yun et al., arXiv 1905.04899. Where both are asked for, a coin is
    tossed for each lane and step. Shares are drawn from Beta(alpha, alpha), one for each lane and step.
    """
    others, shares = classes.clone(), torch.ones(len(classes))
    first = 0
    for lane, length in lanes:
        part = slice(first, first + length)
        random = np.random.default_rng([seed, epoch, step, lane, KEY])
        partners = first + (np.arange(length) + random.integers(1, max(2, length))) % max(1, length)
        share = _mix(inputs, part, torch.from_numpy(partners), settings, random)
        others[part], shares[part] = classes[partners], share
        first += length
    swapped = shares < 0.5
    lesser = swapped[:, None] if is_multi_label(classes) else swapped
    first_ones, second_ones = torch.where(lesser, others, classes), torch.where(lesser, classes, others)
    return inputs, Targets(first_ones, second_ones, torch.where(swapped, 1 - shares, shares))


def _mix(
    inputs: torch.Tensor, part: slice, partners: torch.Tensor, settings: AugmentSettings, random: np.random.Generator
) -> float:
    """Mix one lane's part with its partners; return the share of each picture that stays."""
    cuts = settings.cutmix > 0 and (settings.mixup == 0 or random.integers(2) == 1)
    alpha = settings.cutmix if cuts else settings.mixup
    share, partner = float(random.beta(alpha, alpha)), inputs[partners]
    if not cuts:
        blended = share * inputs[part].float() + (1 - share) * partner.float()
        inputs[part] = blended.round().to(inputs.dtype)
        return share
    height, width = inputs.shape[1:3]
    down, across = (int(side * (1 - share) ** 0.5) for side in (height, width))
    top, left = int(random.integers(height - down + 1)), int(random.integers(width - across + 1))
    inputs[part, top : top + down, left : left + across] = partner[:, top : top + down, left : left + across]
    return 1 - down * across / (height * width)
