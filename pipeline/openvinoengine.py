"""OpenVINO on CPUs. The network is converted once, kept as data, and compiled where it runs, without torch.

Kept is the intermediate representation (a graph of named operations and its weights), not the compiled blob: compiling
takes 0.1-0.3 s, holds for any processor, and what comes from the store stays data: a blob could be more than that.
"""

import io
import tempfile
import warnings
import zipfile
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from pipeline.documents import digest
from pipeline.errors import ModelError
from pipeline.logits import Logits, memory_errors
from pipeline.processors import cpu_info, cpu_name
from pipeline.refusals import first_line
from pipeline.transforms import Pixels, Transforms

if TYPE_CHECKING:
    from torch import nn

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
# Images per inference and thread. Measured with mobilenet_v2, bf16, one thread: 8 at a time 261 images/s, 64 at a time
# 141, any number (a dynamic shape) 153. And an answer does not depend on how images were batched.
CHUNK = 8
# Raise when `convert` makes another graph: models of old code are then never read.
CONVERSION_VERSION = 1


class OpenVINOEngine:
    """A converted network, compiled for this processor."""

    def __init__(self, model: bytes, precision: str, threads: int) -> None:
        self._precision, self._chunk = precision, CHUNK * threads
        core = ov.Core()
        network = core.read_model(*unpack(model))
        network.reshape([self._chunk, *list(network.input().partial_shape)[1:]])
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Two processes with one thread each would pin it to the same core and halve each other (2026.4).
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        }
        self._request = core.compile_model(network, "CPU", options).create_infer_request()
        self._turn = Lock()

    def __call__(self, pixels: Pixels) -> Logits:
        """See Engine."""
        with self._turn, memory_errors():
            parts = [self._infer(pixels[start : start + self._chunk]) for start in range(0, len(pixels), self._chunk)]
        return np.concatenate(parts)

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return {
            "engine": "openvino",
            "precision": self._precision,
            "device": cpu_name(cpu_info()),
            "versions": {"openvino": ov.__version__},
        }

    def _infer(self, pixels: Pixels) -> Logits:
        """Return the logits of up to `chunk` images; the last ones of a batch are filled up with black."""
        missing = self._chunk - len(pixels)
        if missing:
            pixels = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        self._request.infer([np.ascontiguousarray(pixels)])
        answered: Logits = self._request.get_output_tensor(0).data[: self._chunk - missing].astype(np.float32)
        return answered


def convert(net: "nn.Module", transforms: Transforms) -> bytes:
    """Convert a network with its normalisation: uint8 [B, H, W, C] in, float32 [B, K] out. This imports torch.

    Raises
    ------
    ModelError
        When OpenVINO knows an operation not, or the network's code cannot be traced.
    """
    import torch

    side, channels = transforms.crop_px, transforms.num_channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OpenVINO 2026.4 traces with torch.jit, which torch 2.14 deprecates
            model = ov.convert_model(net.eval(), example_input=torch.zeros(1, channels, side, side))
        model.reshape([-1, channels, side, side])
        model = _with_normalisation(model, transforms)
    except Exception as error:  # the frontend raises its own kinds, and whatever the network's code raises when traced
        raise ModelError(
            f"OpenVINO cannot convert {type(net).__name__}: {type(error).__name__}: {first_line(error)}; "
            "label with label.engine: torch"
        ) from error
    return pack(model)


def _with_normalisation(model: ov.Model, transforms: Transforms) -> ov.Model:
    """Return the model with (x / 255 - mean) / std, and the change of layout, as its first operations."""
    prepared = PrePostProcessor(model)
    prepared.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    prepared.input().model().set_layout(ov.Layout("NCHW"))
    steps = prepared.input().preprocess().convert_element_type(ov.Type.f32)
    steps.mean([255 * value for value in transforms.mean]).scale([255 * value for value in transforms.std])
    prepared.output().tensor().set_element_type(ov.Type.f32)
    return prepared.build()


def convert_key(bundle_id: str, *asked: str) -> str:
    """Return the name of a bundle's converted model: another OpenVINO may convert and read it otherwise."""
    return digest([CONVERSION_VERSION, bundle_id, ov.__version__, *asked])


def pack(model: ov.Model) -> bytes:
    """Return the model's graph and weights as one object: two, written by two labellers at once, might not fit together."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="nightshift-") as folder:
        path = Path(folder) / "model.xml"
        ov.save_model(model, str(path), compress_to_fp16=False)
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name in ("model.xml", "model.bin"):
                archive.writestr(zipfile.ZipInfo(name), path.with_name(name).read_bytes())
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[bytes, bytes]:
    """Return graph and weights; ModelError when they are damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read("model.xml"), archive.read("model.bin")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"a converted model is damaged ({error}); delete the store's folder cache/") from error
