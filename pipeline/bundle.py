"""Sealed bundles: weights and everything that decides what they mean, under a version that is the digest of both.

`weights.safetensors` + `bundle.json`, nothing else is ever loaded: no pickle, no code from the store.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipeline import layout, zoo
from pipeline.classes import Classes
from pipeline.documents import Document, digest, encode
from pipeline.errors import ModelError, NotFoundError
from pipeline.registry import BUNDLE_FORMAT, read_bundle_document
from pipeline.settings import StorageSettings
from pipeline.storage import Storage, open_storage
from pipeline.transforms import Transforms, transforms_from_json

VERSION_LENGTH = 12

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """What must be known to build the network again. `head` is `native`, or `linear` for one that replaced it."""

    builder: str
    arguments: dict[str, Any]
    head: str
    classes: Classes
    transforms: Transforms

    def build(self) -> nn.Module:
        """Build the network, randomly initialised from torch's present seed."""
        net = zoo.build(self.builder, self.arguments, len(self.classes))
        if self.head == "linear":
            zoo.replace_head(net, len(self.classes))
        return net

    def to_json(self) -> Document:
        """Return the fields as a JSON object."""
        return {
            "builder": self.builder,
            "arguments": self.arguments,
            "head": self.head,
            "classes": self.classes.to_json(),
            "transforms": self.transforms.to_json(),
        }


@dataclass(frozen=True)
class Bundle:
    """A model that is ready to answer: the network in eval mode, and the temperature that its logits are divided by."""

    name: str
    version: str
    architecture: Architecture
    temperature: float
    net: nn.Module

    @property
    def id(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"


def seal(storage: Storage, name: str, architecture: Architecture, weights: StateDict, temperature: float = 1.0) -> str:
    """Write a bundle and return its version. Equal content gives an equal version: sealing twice changes nothing."""
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
    document = {
        "format": BUNDLE_FORMAT,
        **architecture.to_json(),
        "temperature": temperature,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    version = digest(document, VERSION_LENGTH)
    folder = layout.bundle(name, version)
    storage.write(f"{folder}/weights.safetensors", data)
    storage.write(f"{folder}/bundle.json", encode(document))
    return version


def load_bundle(storage: Storage, name: str, version: str) -> Bundle:
    """Read a bundle and build its network, in eval mode on the CPU.

    Raises
    ------
    ModelError
        When there is none, its format is another one, or its files are not the sealed ones.
    """
    document = read_bundle_document(storage, name, version)
    if digest(document, VERSION_LENGTH) != version:
        raise ModelError(f"bundle {name}@{version}: bundle.json is not the sealed file; restore it or train again")
    try:
        data = storage.read(f"{layout.bundle(name, version)}/weights.safetensors")
    except NotFoundError as error:
        raise ModelError(
            f"bundle {name}@{version}: weights.safetensors is missing; restore it or train again"
        ) from error
    if hashlib.sha256(data).hexdigest() != document["weights_sha256"]:
        raise ModelError(
            f"bundle {name}@{version}: weights.safetensors is not the sealed file; restore it or train again"
        )
    pairs = [(item["name"], item["id"]) for item in document["classes"]]
    names, ids = zip(*pairs, strict=True)
    transforms = transforms_from_json(document["transforms"])
    architecture = Architecture(
        document["builder"], document["arguments"], document["head"], Classes(names, ids), transforms
    )
    net = architecture.build()
    fit_weights(net, parse_weights(data, f"bundle {name}@{version}"), f"bundle {name}@{version}")
    return Bundle(name, version, architecture, document["temperature"], net.eval())


def read_weights(url: str, settings: StorageSettings) -> StateDict:
    """Read a state dict from a path or URL. Only safetensors: other formats can carry code."""
    if not url.endswith(".safetensors"):
        raise ModelError(
            f"model.weights: {url} is not a .safetensors file, the only format that is loaded (others can carry code); convert "
            "a checkpoint with safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
    folder, _, name = url.rpartition("/")
    try:
        data = open_storage(folder or ".", settings).read(name)
    except NotFoundError as error:
        raise ModelError(
            f"model.weights: {url} does not exist; give the path or URL of a safetensors state dict"
        ) from error
    return parse_weights(data, url)


def parse_weights(data: bytes, location: str) -> StateDict:
    """Parse safetensors bytes; ModelError when they are damaged."""
    try:
        weights: StateDict = load(data)
    except SafetensorError as error:
        raise ModelError(f"{location}: not a readable safetensors file ({error}); fetch it again") from error
    return weights


def fit_weights(net: nn.Module, weights: StateDict, location: str) -> None:
    """Load a state dict, every key and shape; ModelError that names the first misfits."""
    own = net.state_dict()
    absent = sorted(set(own) - set(weights))
    foreign = sorted(set(weights) - set(own))
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = [f"lacks {absent[0]} (and {len(absent) - 1} more)"] if absent else []
    problems += [f"has {foreign[0]} (and {len(foreign) - 1} more), which it does not know"] if foreign else []
    if problems or shapes:
        raise ModelError(
            f"{location} does not fit {type(net).__name__}: {'; '.join([*problems, *shapes[:2]])}. "
            "Check model.builder, model.arguments and the number of classes"
        )
    net.load_state_dict(weights)
