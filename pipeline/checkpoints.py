"""Checkpoints of a training: safetensors + JSON, named after the step. The JSON is written last and makes the checkpoint exist."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import NotFoundError
from pipeline.storage import Storage

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after `step` steps."""

    step: int
    document: Document
    tensors: Tensors
    sha256: str


class Checkpoints:
    """The checkpoints of one training key, of which the newest `keep` stay. Written by one process at a time."""

    def __init__(self, store: Storage, run_key: str, keep: int = 2) -> None:
        self._store, self._folder, self._keep = store, layout.training(run_key), keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, document: Document, tensors: Tensors) -> None:
        """Copy the tensors, then write in the background; what the write before this one ended with is raised here."""
        copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        self.settle()
        self._writing = self._thread.submit(self._write, step, document, copies)

    def settle(self) -> None:
        """Wait until the last save stands in the store, or raise what stopped it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, document: Document, tensors: Tensors) -> None:
        data = save(tensors)
        self._store.write(f"{self._name(step)}.safetensors", data)
        self._store.write(f"{self._name(step)}.json", encode({**document, "sha256": hashlib.sha256(data).hexdigest()}))
        for old in self._steps()[: -self._keep]:
            self._store.delete(f"{self._name(old)}.json")
            self._store.delete(f"{self._name(old)}.safetensors")

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, None when there is none."""
        return next(self._whole(), None)

    def progress(self) -> Document | None:
        """Return what the newest checkpoint's JSON says, without its tensors; None when there is none."""
        documents = (self._document(step) for step in reversed(self._steps()))
        return next((document for document in documents if document), None)

    def _whole(self) -> Iterator[Checkpoint]:
        for step in reversed(self._steps()):
            if (document := self._document(step)) is None:
                continue
            try:
                data = self._store.read(f"{self._name(step)}.safetensors")
            except NotFoundError:
                continue
            if document.get("sha256") == hashlib.sha256(data).hexdigest():
                yield Checkpoint(step, document, load(data), document["sha256"])

    def _document(self, step: int) -> Document | None:
        """Return a JSON, None when it is damaged. What only one worker may see, such as no permission, is raised."""
        try:
            document = json.loads(self._store.read(f"{self._name(step)}.json"))
        except (ValueError, NotFoundError):
            return None
        return document if isinstance(document, dict) else None

    def finish(self, result: Document) -> None:
        """Record that the training is over."""
        self.settle()
        self._store.write(f"{self._folder}/result.json", encode(result))

    def clear(self) -> None:
        """Forget the training, so that it starts over. JSON goes first: what is left of a killed clearing counts as nothing."""
        for entry in sorted(self._store.list(self._folder), key=lambda e: e.path.endswith(".safetensors")):
            self._store.delete(entry.path)

    def _name(self, step: int) -> str:
        return f"{self._folder}/step-{step:09d}"

    def _steps(self) -> list[int]:
        stems = (entry.path.rsplit("/", 1)[-1] for entry in self._store.list(self._folder))
        return sorted(int(s[5:-5]) for s in stems if s.startswith("step-") and s.endswith(".json"))
