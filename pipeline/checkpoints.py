"""Checkpoints of a training: safetensors + JSON, one per epoch. The JSON is written last and makes the checkpoint exist."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline import layout
from pipeline.documents import Document, encode, read_document
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
        document = {"history": history, "groups": state["param_groups"], "scalars": scalars}
        self._store.write(f"{name}.safetensors", data)
        self._store.write(f"{name}.json", encode(document))
        for old in self._epochs()[:-KEEP]:
            self._store.delete(f"{self._folder}/epoch-{old:05d}.json")
            self._store.delete(f"{self._folder}/epoch-{old:05d}.safetensors")

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, None when there is none."""
        epochs = self._epochs()
        if not epochs:
            return None
        name = f"{self._folder}/epoch-{epochs[-1]:05d}"
        document, tensors = read_document(self._store, f"{name}.json"), load(self._store.read(f"{name}.safetensors"))
        model = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        state: dict[int, dict[str, Any]] = {}
        values = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
        for key, value in (values | document["scalars"]).items():
            number, _, field = key.partition(".")
            state.setdefault(int(number), {})[field] = value
        return Checkpoint(epochs[-1], document["history"], model, {"state": state, "param_groups": document["groups"]})

    def finish(self, result: Document) -> None:
        """Record that the training is over."""
        self._store.write(f"{self._folder}/result.json", encode(result))

    def result(self) -> Document | None:
        """Return what `finish` recorded, None before that."""
        try:
            return read_document(self._store, f"{self._folder}/result.json")
        except NotFoundError:
            return None

    def clear(self) -> None:
        """Forget the training, so that it starts over."""
        for entry in sorted(self._store.list(self._folder), key=lambda e: e.path.endswith(".safetensors")):
            self._store.delete(entry.path)

    def _epochs(self) -> list[int]:
        stems = (entry.path.rsplit("/", 1)[-1] for entry in self._store.list(self._folder))
        return sorted(int(s[6:-5]) for s in stems if s.startswith("epoch-") and s.endswith(".json"))
