"""The forward pass: uint8 pixels in, logits out. This is the reference engine: torch, fp32, one way to compute."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.transforms import Pixels, Transforms


class TorchEngine:
    """A network on one device, fp32."""

    def __init__(self, net: nn.Module, transforms: Transforms) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net, self._transforms = net.eval().to(self.device), transforms
        torch.backends.cudnn.allow_tf32 = False  # on by default, and not fp32

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return the network's output, float32 [B, K], of uint8 [B, H, W, C]."""
        with torch.inference_mode():
            images = normalize(torch.from_numpy(pixels).to(self.device), self._transforms)
            output: npt.NDArray[np.float32] = self._net(images.contiguous()).float().cpu().numpy()
        return output

    def describe(self) -> dict[str, Any]:
        """Return what was used, for the ledger."""
        return {
            "engine": "torch",
            "precision": "fp32",
            "device": torch.cuda.get_device_name()
            if self.device.type == "cuda"
            else platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "torchvision": version("torchvision")},
        }


def normalize(pixels: torch.Tensor, transforms: Transforms) -> torch.Tensor:
    """Turn uint8 [B, H, W, C] into float32 [B, C, H, W], (x / 255 - mean) / std."""
    mean = torch.tensor(transforms.mean, device=pixels.device) * 255
    std = torch.tensor(transforms.std, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def log_softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return log probabilities [B, K] in float64: logits / temperature, shifted by the row's maximum."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
