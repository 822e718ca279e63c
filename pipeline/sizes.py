"""Whether a network takes its input, found out before any work starts: shapes alone run through it, in no memory to speak of."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import zoo
from pipeline.convolutions import output_px
from pipeline.errors import ModelError
from pipeline.heads import head_of, split_outputs
from pipeline.registry import is_foreign
from pipeline.transforms import Transforms
from pipeline.zoo import Arguments

LARGEST_PX = 1024
# What torch's layers, and PyTorch code in general, say of shapes that do not fit.
MISFITS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError)


class _Windows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Foretells what each convolution and pooling gives, and stops at the first that would give nothing."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operator, then let it run."""
        for side, window in enumerate(_windows(operator.overloadpacket, args)):
            input_px = args[0].shape[side - 2]
            if output_px(input_px, *window) < 1:
                kernel, stride = window[:2]
                raise RuntimeError(f"a window of {kernel} pixels, stride {stride}, is left with {input_px}")
        return operator(*args, **(kwargs or {}))


def _windows(operator: Any, args: Any) -> list[tuple[int, int, int, int, bool]]:
    """Return kernel, stride, padding, dilation and ceil_mode of both sides, nothing for what is no window over pictures."""
    aten = torch.ops.aten
    if operator is aten.convolution and args[0].ndim == 4 and not args[6]:  # of two sides, and not transposed
        kernel, (stride, padding, dilation) = args[1].shape[2:], args[3:6]
        ceil_mode = False
    elif operator is aten.max_pool2d_with_indices or operator is aten.avg_pool2d:
        kernel, stride, padding, dilation, ceil_mode = _pooling(operator is aten.avg_pool2d, *args[1:])
    else:
        return []
    sides = zip(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), strict=True)
    return [(*side, ceil_mode) for side in sides]


def _pooling(average: bool, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> tuple[Any, ...]:
    """Return a pooling's arguments with torch's defaults; only maximum pooling has a dilation."""
    dilation, *rest_ = (1, *rest) if average else rest or (1,)
    return kernel, stride or kernel, padding, dilation, bool(rest_[0]) if rest_ else False


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple | torch.Size) else [value]
    return values[0], values[-1]


def misfit(builder: str, arguments: Arguments, transforms: Transforms, size_px: int, batch: int = 0) -> str | None:
    """Return why the network cannot take images of `size_px`, None when it can.

    Parameters
    ----------
    batch : int
        Images that one worker trains on at a time; 0 asks about answering only.
    """
    try:
        with warnings.catch_warnings():  # a layer without inputs warns of it, and is refused anyway
            warnings.simplefilter("ignore")
            net = zoo.skeleton(builder, zoo.at_size(builder, arguments, size_px), 2).train(batch > 0)
            images = torch.zeros(max(1, batch), transforms.num_channels, size_px, size_px, device="meta")
            with torch.no_grad(), _Windows():  # type: ignore[no-untyped-call]
                split_outputs(net(images))
    except MISFITS as error:
        why = str(error).strip().split("\n")[0]
        return None if "meta " in why else why  # code of the user's own that looks at values: nobody can know
    return None


def smallest_px(
    builder: str, arguments: Arguments, transforms: Transforms, above_px: int, batch: int = 0
) -> int | None:
    """Return the smallest size that the network takes of those above one that it does not take; None up to 1,024 pixels.

    Windows fit into every larger picture too, so that halving finds it. Networks that are built for one size, in steps of
    their patches, are asked size by size.
    """

    def takes(size_px: int) -> bool:
        return misfit(builder, arguments, transforms, size_px, batch) is None

    if zoo.size_arguments(builder):
        return next((size_px for size_px in range(above_px + 1, above_px + 65) if takes(size_px)), None)
    refused, taken = above_px, above_px
    while not takes(taken):
        refused, taken = taken, 2 * taken
        if refused >= LARGEST_PX:
            return None
    while taken - refused > 1:
        middle = (refused + taken) // 2
        refused, taken = (refused, middle) if takes(middle) else (middle, taken)
    return taken


def check_size(builder: str, arguments: Arguments, transforms: Transforms, batch: int = 0) -> None:
    """Raise ModelError, with the smallest size that would do, when the network cannot take what the transforms give.

    Parameters
    ----------
    batch : int
        As in `misfit`: the fewest images that a worker will have in a step.
    """
    asked = builder, arguments, transforms, transforms.crop_px
    several = min(batch, 1) * 2  # what one image is too little for is no matter of size
    if why := misfit(*asked, several):
        raise ModelError(
            f"an input of {transforms.crop_px} pixels does not fit {builder}{' in training' if batch else ''}: {why}; "
            f"{_advice(*asked, several)}. Set input.size_px, or model.transforms.crop_px"
        )
    if batch == 1 and (why := misfit(*asked, batch)):
        raise ModelError(
            f"{builder} cannot train on one image at a time, as a worker would here: {why}. Raise train.batch_size, or take "
            "fewer workers, or a smaller train.accumulate"
        )


def _advice(builder: str, arguments: Arguments, transforms: Transforms, size_px: int, batch: int) -> str:
    """Say which size would do, and in training which one would without auxiliary classifiers."""
    smallest = smallest_px(builder, arguments, transforms, size_px, batch)
    does = f"the smallest above it that does is {smallest}" if smallest else "no larger size is known that does"
    if not (batch and arguments.get("aux_logits")):
        return does
    asked = builder, arguments | {"aux_logits": False}, transforms, size_px
    enough = smallest_px(*asked, batch) if misfit(*asked, batch) else size_px
    return f"{does} (without its auxiliary classifier, model.arguments: {{aux_logits: false}}, {enough})"


def check_head(builder: str, arguments: Arguments, transforms: Transforms) -> None:
    """Raise ModelError when the linear layer that would be replaced is not the one that gives the network's output.

    torchvision's networks are known; those of the user's own are tried.
    """
    if not is_foreign(builder):
        return
    net, given = zoo.build(builder, arguments, 2).eval(), []
    head: nn.Module = head_of(net)
    head.register_forward_hook(lambda module, inputs, output: given.append(output))
    with torch.no_grad():
        output = net(torch.zeros(1, transforms.num_channels, transforms.crop_px, transforms.crop_px))
    if not any(output is one for one in given):
        raise ModelError(
            f"model.builder: {builder} returns something else than its last linear layer gives, which therefore cannot be "
            "replaced; let the network end in that layer, or use train.mode scratch"
        )
