"""What every engine takes and gives, and what its numbers mean."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.transforms import Pixels

Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """A network that is ready to answer. Several threads may call it at a time: it takes them in turn."""

    def __call__(self, pixels: Pixels) -> Logits:
        """Return float32 [B, K] of uint8 [B, H, W, C].

        Raises
        ------
        MemoryError
            When the batch is too large; on a GPU, torch's own OutOfMemoryError.
        """

    def describe(self) -> dict[str, Any]:
        """Return what is used, for the ledger: engine, precision, device and the libraries' versions."""


def log_softmax(logits: Logits, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return log probabilities [B, K] in float64: logits / temperature, shifted by the row's maximum."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
