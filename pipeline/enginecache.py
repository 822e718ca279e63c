"""What was found out about engines, kept in the store's cache/: it saves time and decides nothing.

So it may be deleted at any time; what is damaged counts as absent; and a store that refuses or fails costs the time again.
"""

import json

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.documents import Document, encode
from pipeline.errors import NightshiftError
from pipeline.logits import Logits
from pipeline.storage import Storage


class EngineCache:
    """The folder cache/ of a store."""

    def __init__(self, store: Storage) -> None:
        self._store = store

    def document(self, path: str) -> Document | None:
        """Return a JSON object, None when there is no readable one."""
        data = self._read(path)
        try:
            document = json.loads(data or b"null")
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    def keep_document(self, path: str, document: Document) -> None:
        """Keep a JSON object."""
        self._write(path, encode(document))

    def logits(self, path: str) -> Logits | None:
        """Return logits [N, K], None when there are no readable ones."""
        data = self._read(path)
        try:
            return load(data)["logits"].astype(np.float32) if data else None
        except (SafetensorError, KeyError, ValueError):
            return None

    def keep_logits(self, path: str, logits: Logits) -> None:
        """Keep logits [N, K]."""
        self._write(path, save({"logits": np.ascontiguousarray(logits)}))

    def model(self, path: str) -> bytes | None:
        """Return a converted model, None when there is none."""
        return self._read(path)

    def keep_model(self, path: str, data: bytes) -> None:
        """Keep a converted model."""
        self._write(path, data)

    def _read(self, path: str) -> bytes | None:
        try:
            return self._store.read(f"cache/{path}")
        except NightshiftError:
            return None

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._store.write(f"cache/{path}", data)
        except NightshiftError:  # a store that is full or read-only fails the labels' own writes, and says so there
            return
