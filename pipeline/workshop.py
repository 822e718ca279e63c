"""Opening one engine for one bundle on one node. What costs seconds, torch and conversion, happens when it must, and once."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import layout
from pipeline.documents import digest
from pipeline.enginecache import EngineCache
from pipeline.errors import ModelError
from pipeline.logits import Engine, Logits
from pipeline.manifest import Manifest
from pipeline.processors import cpu_info, cpu_name, has_gpu, vector_flags
from pipeline.storage import Storage
from pipeline.transforms import Pixels

if TYPE_CHECKING:
    from torch import nn

REFERENCE_BATCH = 16
TINY_PX, TINY_BYTES = 64, 2**20


@dataclass(frozen=True)
class Node:
    """What decides which engine is fastest."""

    processor: str
    flags: tuple[str, ...]
    threads: int
    gpu: str | None = None


def this_node(threads: int) -> Node:
    """Describe the node of this process, and how many threads the process may use."""
    gpu = None
    if has_gpu():
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Node(cpu_name(cpu_info()), vector_flags(cpu_info()), threads, gpu)


@dataclass(frozen=True)
class Candidate:
    """A way to compute: `reference`, `torch` or `openvino`, its precision, and a variant of it."""

    engine: str
    precision: str
    variant: str = ""

    def __str__(self) -> str:
        name = "torch" if self.engine == "reference" else self.engine
        suffix = " reference" if self.engine == "reference" else f" {self.variant}" if self.variant else ""
        return f"{name} {self.precision}{suffix}"


class Workshop:
    """Opens engines for a bundle, each once."""

    def __init__(
        self, store: Storage, cache: EngineCache, manifest: Manifest, node: Node, batch_size: int,
        embeddings: bool = False,
    ) -> None:  # fmt: skip
        self.node, self._embeddings = node, embeddings
        self._store, self._cache, self._manifest, self._batch_size = store, cache, manifest, batch_size
        self._network: nn.Module | None = None
        self._opened: dict[Candidate, Engine] = {}
        self._sha256: str | None = None

    def open(self, candidate: Candidate) -> Engine:
        """Return the engine; ModelError or RuntimeError when it cannot do this network."""
        if candidate not in self._opened:
            makers = {"reference": self._reference, "torch": self._torch, "openvino": self._openvino}
            self._opened[candidate] = makers[candidate.engine](candidate)
        return self._opened[candidate]

    def open_cached(self, candidate: Candidate, model_sha256: str | None) -> Engine | None:
        """Return the engine that a cached choice means, None when it is no longer what was compared then."""
        try:
            engine = self.open(candidate)
        except (ModelError, RuntimeError, KeyError):
            return None
        return engine if self.model_sha256(candidate) == model_sha256 else None

    def model_sha256(self, candidate: Candidate) -> str | None:
        """Return the digest of the converted model that an opened engine computes, None for torch."""
        return self._sha256 if candidate.engine == "openvino" else None

    def is_tiny(self) -> bool:
        """Say whether the network is small in pixels and weights: then even the reference answers faster than decoding."""
        weights = f"{layout.bundle(self._manifest.name, self._manifest.version)}/weights.safetensors"
        small = self._manifest.architecture.transforms.crop_px <= TINY_PX
        return small and self._store.stat(weights).size_bytes <= TINY_BYTES

    def reference_answers(self, pixels: Pixels) -> Logits:
        """Return the reference's float32 [N, K], or [N, K + D] with embeddings, computed once per bundle and set of photos."""
        seen = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        path = f"reference/{digest([self._manifest.id, seen, *self._asked()])}.safetensors"
        logits = self._cache.logits(path)
        if logits is None or not self._is_answer(logits, len(pixels)):
            engine = self.open(Candidate("reference", "fp32"))
            starts = range(0, len(pixels), REFERENCE_BATCH)
            logits = np.concatenate([engine(pixels[start : start + REFERENCE_BATCH]) for start in starts])
            self._cache.keep_logits(path, logits)
        return logits

    def _asked(self) -> tuple[str, ...]:
        """Return what the names of cached things say besides the bundle."""
        return ("embeddings",) if self._embeddings else ()

    def _is_answer(self, logits: Logits, num_photos: int) -> bool:
        num_classes = len(self._manifest.architecture.classes)
        fits = logits.shape[1] > num_classes if self._embeddings else logits.shape[1] == num_classes
        return fits and len(logits) == num_photos

    def _reference(self, candidate: Candidate) -> Engine:
        from pipeline.engine import TorchEngine

        return TorchEngine(self._net(), self._manifest.architecture.transforms)

    def _torch(self, candidate: Candidate) -> Engine:
        import torch

        from pipeline.torchengine import FastTorchEngine

        device = torch.device("cuda" if self.node.gpu else "cpu")
        batch_size = self._batch_size if candidate.variant == "cuda graph" else 0
        transforms = self._manifest.architecture.transforms
        return FastTorchEngine(self._net(), transforms, candidate.precision, device, batch_size)

    def _openvino(self, candidate: Candidate) -> Engine:
        from pipeline.openvinoengine import OpenVINOEngine, convert, convert_key

        path = f"openvino/{convert_key(self._manifest.id, *self._asked())}.zip"
        model = self._cache.model(path)
        if model is not None:
            try:
                engine = OpenVINOEngine(model, candidate.precision, self.node.threads)
            except (ModelError, RuntimeError):  # damaged: make it again
                model = None
        if model is None:
            model = convert(self._net(), self._manifest.architecture.transforms)
            engine = OpenVINOEngine(model, candidate.precision, self.node.threads)
            self._cache.keep_model(path, model)
        self._sha256 = hashlib.sha256(model).hexdigest()
        return engine

    def _net(self) -> "nn.Module":
        if self._network is None:
            from pipeline.bundle import load_bundle

            sealed = self._manifest  # it has been read, so that its code may be run
            self._network = load_bundle(self._store, sealed.name, sealed.version, sealed.architecture.builder).net
            if self._embeddings:
                from pipeline.heads import append_features

                append_features(self._network)
        return self._network
