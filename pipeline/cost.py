"""What a network costs: its parameters, the multiply-adds of one image, and what a training step sends for each worker."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline import zoo
from pipeline.registry import is_foreign
from pipeline.transforms import Transforms
from pipeline.zoo import Arguments

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """`multiply_adds` are of convolutions and matrix products, as published tables count them: one for both."""

    parameters: int
    multiply_adds: int

    @property
    def gradient_bytes(self) -> int:
        """What each worker contributes to the averaging of a step when every parameter learns: a float32 for each."""
        return FLOAT_BYTES * self.parameters


def cost(builder: str, arguments: Arguments, transforms: Transforms, num_classes: int) -> Cost:
    """Count a network's parameters and, for one image of its input size, its multiply-adds.

    Shapes alone run through it, in no memory to speak of; code of the user's own, which may look at values, runs for real.
    """
    real = is_foreign(builder)
    net = (zoo.build if real else zoo.skeleton)(builder, arguments, num_classes).eval()
    shape, device = (1, transforms.num_channels, transforms.crop_px, transforms.crop_px), "cpu" if real else "meta"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(shape, device=device))
    return Cost(sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() // 2)
