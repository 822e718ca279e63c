"""Torch made fast: fewer bits, channels last, batch norms folded into their convolutions; on a GPU, uploads beside work."""

import copy
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from pipeline.engine import device_name, normalize
from pipeline.logits import Logits, memory_errors
from pipeline.transforms import Pixels, Transforms

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FastTorchEngine:
    """A network in the given precision on one device, fed from pinned memory where that is a GPU.

    Notes
    -----
    `graph` replays one recorded CUDA graph for batches of `batch_size`, which saves launching each kernel: it wins for
    small networks. Other batches, a shard's last or halved ones, run without it.
    """

    def __init__(
        self, net: nn.Module, transforms: Transforms, precision: str, device: torch.device, batch_size: int = 0
    ) -> None:
        self._transforms, self._precision, self.device = transforms, precision, device
        self._dtype = DTYPES[precision]
        self._net = fused(net).to(device, self._dtype).to(memory_format=torch.channels_last)
        self._turn = Lock()
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph = self._record(batch_size) if batch_size else None

    def __call__(self, pixels: Pixels) -> Logits:
        """See Engine. Of two callers, one uploads while the other computes."""
        images, arrived = self._upload(torch.from_numpy(pixels))
        with self._turn, memory_errors(), torch.inference_mode():
            if arrived is not None:
                torch.cuda.current_stream(self.device).wait_event(arrived)
                images.record_stream(torch.cuda.current_stream(self.device))  # its memory is free when this is done
            output: Logits = self._answer(images).float().cpu().numpy()
        return output

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return {
            "engine": "torch",
            "precision": self._precision,
            "device": device_name(self.device),
            "versions": {"torch": torch.__version__},
            "cuda_graph": self._graph is not None,
        }

    def _upload(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Return the pixels on the device, and when they have arrived there; pinned memory makes the copy asynchronous."""
        if self._copies is None:
            return pixels, None
        with torch.cuda.stream(self._copies):
            images = pixels.pin_memory().to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._copies)
        return images, arrived

    def _answer(self, images: torch.Tensor) -> torch.Tensor:
        if self._graph is not None and images.shape == self._graph[1].shape:
            graph, taken, given = self._graph
            taken.copy_(images)
            graph.replay()
            return given
        return self._forward(images)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        prepared = normalize(images, self._transforms, torch.channels_last).to(self._dtype)
        output: torch.Tensor = self._net(prepared)
        return output

    def _record(self, batch_size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        """Record the forward pass of one batch after three without recording, as torch's manual asks for."""
        side = self._transforms.crop_px
        taken = torch.zeros(
            (batch_size, side, side, self._transforms.num_channels), dtype=torch.uint8, device=self.device
        )
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):
                self._forward(taken)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            given = self._forward(taken)
        return graph, taken, given


def fused(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode with batch norms folded into their convolutions, unfolded where the code can't be traced."""
    net = net.eval()
    try:
        folded: nn.Module = fuse(net)
    except Exception:  # tracing runs the network's own code on stand-ins, which may raise anything
        return copy.deepcopy(net)
    return folded.eval()
