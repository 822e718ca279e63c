"""What every engine takes and gives, and what its numbers mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.transforms import Pixels

Logits = npt.NDArray[np.float32]
OUT_OF_MEMORY = re.compile(r"bad.alloc|allocate memory", re.IGNORECASE)


class Engine(Protocol):
    """A network that is ready to answer. Several threads may call it at a time: it takes them in turn.

    Where embeddings are asked for it answers [B, K + D]: logits, and behind them the features that enter the classifier.
    """

    def __call__(self, pixels: Pixels) -> Logits:
        """Return float32 [B, K] of uint8 [B, H, W, C].

        Raises
        ------
        MemoryError
            When the batch is too large; on a GPU, torch's own OutOfMemoryError.
        """

    def describe(self) -> dict[str, Any]:
        """Return what is used, for the ledger: engine, precision, device and the libraries' versions."""


@dataclass(frozen=True)
class Meaning:
    """What the logits of K classes say: one of them, or of a multi-label model each that reaches its threshold."""

    num_classes: int
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def probabilities(self, logits: Logits) -> npt.NDArray[np.float64]:
        """Return [B, K] of logits [B, K] or [B, K + D]: softmax, or each class by itself; of logits / temperature."""
        logits = logits[:, : self.num_classes]
        if self.thresholds is None:
            return np.exp(log_softmax(logits, self.temperature))
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64) / self.temperature)))

    def said(self, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Return which classes are said, [B, K]: the best one, ties going to the lower index, or those at their threshold."""
        if self.thresholds is not None:
            return np.asarray(probabilities >= np.array(self.thresholds))
        said = np.zeros(probabilities.shape, np.bool_)
        said[np.arange(len(said)), probabilities.argmax(axis=1)] = True
        return said


def log_softmax(logits: Logits, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return log probabilities [B, K] in float64: logits / temperature, shifted by the row's maximum."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise what torch's and OpenVINO's CPU allocators call RuntimeError as MemoryError: a smaller batch may pass."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is RuntimeError and OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error)[:300]) from error
        raise
