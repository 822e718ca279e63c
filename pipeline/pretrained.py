"""The network that `model.weights` hold, with everything that belongs to them: preprocessing, arguments, a bundle's classes."""

from dataclasses import dataclass

from torch import nn

from pipeline import zoo
from pipeline.bundle import StateDict, fit_weights, read_weights, sealed_weights
from pipeline.heads import AUXILIARY, drop_auxiliary
from pipeline.manifest import Architecture, Manifest, read_sealed
from pipeline.published import published_state
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.storage import Storage
from pipeline.transforms import Transforms, override, resized_to
from pipeline.weightsource import Published, Sealed, weight_source
from pipeline.zoo import Arguments


@dataclass(frozen=True)
class Pretrained:
    """A network with weights in it, and what it was made with. `bundle` is the one that they come from, if they do."""

    net: nn.Module
    arguments: Arguments
    transforms: Transforms
    head: str = "native"
    bundle: Manifest | None = None


def load_pretrained(
    store: Storage, model: ModelSettings, storage: StorageSettings, size_px: int | None = None
) -> Pretrained:
    """Build the builder's network with `model.weights` in it, for as many classes as these have.

    Parameters
    ----------
    size_px : int or None
        Input size, where it is not to be the published one.

    Raises
    ------
    ModelError
        When the weights do not exist, cannot be read, or are another network's.
    """
    source = weight_source(model.weights)
    if isinstance(source, Sealed):
        return _of_bundle(store, read_sealed(store, source, model.builder), model, size_px)
    arguments, transforms = zoo.blueprint(model, size_px)
    if isinstance(source, Published):
        weights = published_state(store, storage, model.builder, source.name)
    else:
        weights = read_weights(str(model.weights), storage)
    where = f"model.weights: {model.weights}"
    return Pretrained(_filled(model.builder, arguments, weights, where), arguments, transforms)


def blueprint(store: Storage, model: ModelSettings, size_px: int | None = None) -> tuple[Arguments, Transforms]:
    """Return what the network will be built with and fed with, before any weights are read."""
    source = weight_source(model.weights)
    if isinstance(source, Sealed):
        return _sealed_blueprint(read_sealed(store, source, model.builder).architecture, model, size_px)
    return zoo.blueprint(model, size_px)


def _sealed_blueprint(sealed: Architecture, model: ModelSettings, size_px: int | None) -> tuple[Arguments, Transforms]:
    """Return a bundle's own arguments and preprocessing, with the config's values over them."""
    transforms = override(resized_to(sealed.transforms, size_px), model.transforms)
    return zoo.at_size(sealed.builder, sealed.arguments, transforms.crop_px) | model.arguments, transforms


def _of_bundle(store: Storage, manifest: Manifest, model: ModelSettings, size_px: int | None) -> Pretrained:
    sealed = manifest.architecture
    arguments, transforms = _sealed_blueprint(sealed, model, size_px)
    full = arguments | {key: value for key, value in sealed.arguments.items() if key == "aux_logits"}
    net = Architecture(sealed.builder, full, sealed.head, sealed.classes, transforms).build()
    fit_weights(net, sealed_weights(store, manifest), f"model.weights: bundle {manifest.id}")
    if full != arguments:
        drop_auxiliary(net)
    return Pretrained(net, arguments, transforms, sealed.head, manifest)


def _filled(builder: str, arguments: Arguments, weights: StateDict, where: str) -> nn.Module:
    """Return the network with the weights in it; those of auxiliary classifiers are dropped where it has none."""
    has_auxiliary = any(key.partition(".")[0] in AUXILIARY for key in weights)
    full = zoo.with_auxiliary(arguments) if has_auxiliary else arguments
    net = zoo.build(builder, full, zoo.count_outputs(builder, full, weights))
    fit_weights(net, weights, where)
    if full != arguments:
        drop_auxiliary(net)
    return net
