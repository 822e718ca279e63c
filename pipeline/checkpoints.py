"""Checkpoints of a training: safetensors + JSON, one per epoch. The JSON is written last and makes the checkpoint exist."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import NotFoundError
from pipeline.storage import Storage

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after some epochs: enough to go on as if nothing had happened."""

    epochs_done: int
    history: list[Document]
    model: dict[str, torch.Tensor]
    optimizer: Document
    sha256: str


class Checkpoints:
    """The checkpoints of one training key."""

    def __init__(self, store: Storage, run_key: str) -> None:
        self._store, self._folder = store, layout.training(run_key)

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, history: list[Document]) -> None:
        """Write the state after `len(history)` epochs, then drop all but the newest two."""
        tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
        state = optimizer.state_dict()
        scalars: Document = {}
        for number, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{number}.{key}"] = value
                else:
                    scalars[f"{number}.{key}"] = value
        data = save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()})
        name = f"{self._folder}/epoch-{len(history):05d}"
        sha256 = hashlib.sha256(data).hexdigest()
        document = {"history": history, "groups": state["param_groups"], "scalars": scalars, "sha256": sha256}
        self._store.write(f"{name}.safetensors", data)
        self._store.write(f"{name}.json", encode(document))
        for old in self._epochs()[:-KEEP]:
            self._store.delete(f"{self._folder}/epoch-{old:05d}.json")
            self._store.delete(f"{self._folder}/epoch-{old:05d}.safetensors")

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, None when there is none."""
        found = (self._read(epoch) for epoch in reversed(self._epochs()))
        return next((checkpoint for checkpoint in found if checkpoint), None)

    def epochs_done(self) -> int:
        """Return how many epochs the newest checkpoint has behind it, by its name alone."""
        return max(self._epochs(), default=0)

    def _read(self, epoch: int) -> Checkpoint | None:
        """Return a checkpoint, None when it is damaged. What only one worker may see, such as no permission, is raised."""
        name = f"{self._folder}/epoch-{epoch:05d}"
        try:
            document, data = json.loads(self._store.read(f"{name}.json")), self._store.read(f"{name}.safetensors")
        except (ValueError, NotFoundError):
            return None
        if not isinstance(document, dict) or document.get("sha256") != hashlib.sha256(data).hexdigest():
            return None
        tensors = load(data)
        model = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        state: dict[int, dict[str, Any]] = {}
        values = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
        for key, value in (values | document["scalars"]).items():
            number, _, field = key.partition(".")
            state.setdefault(int(number), {})[field] = value
        optimizer = {"state": state, "param_groups": document["groups"]}
        return Checkpoint(epoch, document["history"], model, optimizer, document["sha256"])

    def finish(self, result: Document) -> None:
        """Record that the training is over."""
        self._store.write(f"{self._folder}/result.json", encode(result))

    def clear(self) -> None:
        """Forget the training, so that it starts over. JSON goes first: what is left of a killed clearing counts as nothing."""
        for entry in sorted(self._store.list(self._folder), key=lambda e: e.path.endswith(".safetensors")):
            self._store.delete(entry.path)

    def _epochs(self) -> list[int]:
        stems = (entry.path.rsplit("/", 1)[-1] for entry in self._store.list(self._folder))
        return sorted(int(s[6:-5]) for s in stems if s.startswith("epoch-") and s.endswith(".json"))
