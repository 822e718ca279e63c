"""The forward pass: uint8 pixels in, logits out. This is the reference engine: torch, fp32, one way to compute."""

from importlib.metadata import version
from threading import Lock
from typing import Any

import torch
from torch import nn

from pipeline.logits import Logits, memory_errors
from pipeline.processors import cpu_info, cpu_name
from pipeline.transforms import Pixels, Transforms


class TorchEngine:
    """A network on one device, fp32."""

    def __init__(self, net: nn.Module, transforms: Transforms) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net, self._transforms = net.eval().to(self.device), transforms
        self._turn = Lock()
        torch.backends.cudnn.allow_tf32 = False  # on by default, and not fp32

    def __call__(self, pixels: Pixels) -> Logits:
        """Return the network's output, float32 [B, K], of uint8 [B, H, W, C]."""
        with self._turn, memory_errors(), torch.inference_mode():
            images = normalize(torch.from_numpy(pixels).to(self.device), self._transforms)
            output: Logits = self._net(images).float().cpu().numpy()
        return output

    def describe(self) -> dict[str, Any]:
        """Return what was used, for the ledger."""
        return {
            "engine": "torch",
            "precision": "fp32",
            "device": device_name(self.device),
            "versions": {"torch": torch.__version__, "torchvision": version("torchvision")},
        }


def normalize(
    pixels: torch.Tensor, transforms: Transforms, layout: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Turn uint8 [B, H, W, C] into float32 [B, C, H, W], (x / 255 - mean) / std, in this order of memory.

    In place and along whole rows: along a last dimension of 3 torch takes four times as long.
    """
    mean = torch.tensor(transforms.mean, device=pixels.device) * 255
    std = torch.tensor(transforms.std, device=pixels.device) * 255
    if layout is torch.channels_last:
        rows, width = pixels.to(torch.float32, copy=True).flatten(2), pixels.shape[2]
        return rows.sub_(mean.repeat(width)).div_(std.repeat(width)).view(pixels.shape).permute(0, 3, 1, 2)
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout, copy=True)
    return images.sub_(mean[:, None, None]).div_(std[:, None, None])


def device_name(device: torch.device) -> str:
    """Return what the processor or GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(cpu_info())
