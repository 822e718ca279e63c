"""Sealed bundles: weights and everything that decides what they mean, under a version that is the digest of both.

`weights.safetensors` + `bundle.json`, nothing else is ever loaded: no pickle, no code from the store.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipeline import layout
from pipeline.documents import digest, encode
from pipeline.errors import ModelError, NotFoundError
from pipeline.manifest import VERSION_LENGTH, Architecture, Manifest, read_manifest
from pipeline.registry import MULTI_LABEL, ONE_LABEL
from pipeline.settings import StorageSettings
from pipeline.storage import Storage, open_storage
from pipeline.zoo import code_sha256

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bundle(Manifest):
    """A model that is ready to answer: its network in eval mode, on the CPU."""

    net: nn.Module


def seal(
    storage: Storage, name: str, architecture: Architecture, weights: StateDict, temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> str:  # fmt: skip
    """Write a bundle and return its version. Equal content gives an equal version: sealing twice changes nothing.

    Parameters
    ----------
    thresholds : Sequence[float] or None
        Of a multi-label model: from which probability on each class is said.
    """
    architecture = replace(architecture, code_sha256=code_sha256(architecture.builder))
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
    document = {
        "format": ONE_LABEL if thresholds is None else MULTI_LABEL,
        **architecture.to_json(),
        "temperature": temperature,
        **({} if thresholds is None else {"thresholds": list(thresholds)}),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    version = digest(document, VERSION_LENGTH)
    folder = layout.bundle(name, version)
    storage.write(f"{folder}/weights.safetensors", data)
    storage.write(f"{folder}/bundle.json", encode(document))
    return version


def load_bundle(storage: Storage, name: str, version: str, builder: str = "") -> Bundle:
    """Read a bundle and build its network, in eval mode on the CPU.

    Parameters
    ----------
    builder : str
        As in `read_manifest`: which code of the user's own may be run.

    Raises
    ------
    ModelError
        When there is none, its format is another one, its files are not the sealed ones, or its code is another one.
    """
    manifest = read_manifest(storage, name, version, builder)
    weights, architecture = sealed_weights(storage, manifest), manifest.architecture
    if code_sha256(architecture.builder) != architecture.code_sha256:
        raise ModelError(
            f"bundle {manifest.id}: the code of {architecture.builder} is not the one that it was sealed with; restore that "
            f"code, train again, or, if it computes the same, adopt it again: train.mode none, model.weights {manifest.id}"
        )
    net = architecture.build()
    fit_weights(net, weights, f"bundle {manifest.id}")
    return Bundle(
        name, version, architecture, manifest.temperature, manifest.weights_sha256,
        thresholds=manifest.thresholds, net=net.eval(),
    )  # fmt: skip


def sealed_weights(storage: Storage, manifest: Manifest) -> StateDict:
    """Read a bundle's weights; ModelError when they are not the sealed ones."""
    try:
        data = storage.read(f"{layout.bundle(manifest.name, manifest.version)}/weights.safetensors")
    except NotFoundError as error:
        raise ModelError(f"bundle {manifest.id}: weights.safetensors is missing; restore it or train again") from error
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise ModelError(f"bundle {manifest.id}: weights.safetensors is not the sealed file; restore it or train again")
    return parse_weights(data, f"bundle {manifest.id}")


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
