"""Networks by name: torchvision's classification builders, our own, and functions of the user's own packages."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.heads import classifier_name
from pipeline.networks import OWN, PUBLISHED_PX
from pipeline.registry import is_foreign
from pipeline.settings import ModelSettings
from pipeline.transforms import Transforms, override, resized_to
from pipeline.weightsource import Published, weight_source

Arguments = dict[str, Any]


def torchvision_models() -> Any:
    """Import torchvision's models when they are needed: seconds (it imports torch's compiler), which the smallest save."""
    from torchvision import models

    return models


def builders() -> list[str]:
    """Return every name that `model.builder` takes, ours first; functions of the user's own packages apart."""
    models = torchvision_models()
    return [*OWN, *models.list_models(module=models)]


def check_builder(name: str) -> None:
    """Raise ModelError for a name that is no classification builder."""
    _factory(name)


def published_transforms(settings: ModelSettings, size_px: int | None = None) -> Transforms:
    """Return the preprocessing of the published weights, at `size_px` where it is given, with the config's own values over it.

    The weights are those that `model.weights` names, else the builder's first ones.
    """
    published = resized_to(_published_transforms(settings), size_px)
    return override(published, settings.transforms)


def _published_transforms(settings: ModelSettings) -> Transforms:
    check_builder(settings.builder)
    if settings.builder in OWN:
        return Transforms(*PUBLISHED_PX[settings.builder], "RGB", (0.5,) * 3, (0.5,) * 3)
    if is_foreign(settings.builder):
        return Transforms()
    source = weight_source(settings.weights)
    weights = published_weights(settings.builder, source.name if isinstance(source, Published) else None)
    preset = weights.transforms()
    mean, std, interpolation = tuple(preset.mean), tuple(preset.std), preset.interpolation.value
    return Transforms(preset.resize_size[0], preset.crop_size[0], "RGB", mean, std, interpolation)


def published_weights(builder: str, name: str | None) -> Any:
    """Return torchvision's entry for a builder's weights, the first ones without a name; ModelError for an unknown one."""
    check_builder(builder)
    if builder in OWN or is_foreign(builder):
        raise ModelError(
            f"model.weights: torchvision publishes no weights of {builder} (it is {name!r}); give a safetensors file or a bundle"
        )
    known = torchvision_models().get_model_weights(builder)
    if name is None:
        return next(iter(known))
    short = name.removeprefix(f"{known.__name__}.")
    if short not in known.__members__:  # DEFAULT is an alias and among them
        names = ", ".join(known.__members__)
        raise ModelError(
            f"model.weights: torchvision has no weights {name!r} of {builder}; it has {names}. A file's name ends in .safetensors"
        )
    return known[short]


def blueprint(settings: ModelSettings, size_px: int | None = None) -> tuple[Arguments, Transforms]:
    """Return what a network is built with and fed with, at `size_px` where it is given."""
    transforms = published_transforms(settings, size_px)
    return builder_arguments(settings, transforms), transforms


def builder_arguments(settings: ModelSettings, transforms: Transforms) -> Arguments:
    """Return every argument that decides what the network computes, so that a reload builds the same one.

    Notes
    -----
    inception_v3 and googlenet set `transform_input=True` when torchvision loads their weights; it is no part of the
    state dict, so a bundle must carry it. `init_weights=False` skips an initialisation that the weights overwrite.
    googlenet's published auxiliary classifiers were never trained, so that torchvision leaves them off.
    """
    builder, pretrained = settings.builder, settings.weights is not None
    if not is_foreign(builder) and builder not in OWN and transforms.num_channels != 3:
        raise ModelError(f"model.transforms.color: {builder} takes RGB; only {', '.join(OWN)} take L")
    own: Arguments = {}
    if builder in OWN:
        own = {"size_px": transforms.crop_px, "in_channels": transforms.num_channels}
    elif builder.startswith("vit_"):
        own = {"image_size": transforms.crop_px}
    elif builder in ("inception_v3", "googlenet"):
        auxiliary = not (pretrained and builder == "googlenet")
        own = {"transform_input": pretrained, "aux_logits": auxiliary, "init_weights": not pretrained}
    return own | settings.arguments


def with_auxiliary(arguments: Arguments) -> Arguments:
    """Return the arguments of a network that takes the weights of its auxiliary classifiers, to be dropped or not."""
    return arguments | {"aux_logits": True} if "aux_logits" in arguments else arguments


def at_size(builder: str, arguments: Arguments, size_px: int) -> Arguments:
    """Return the arguments for another input size, for networks that are built for one."""
    return arguments | dict.fromkeys(size_arguments(builder), size_px)


def size_arguments(builder: str) -> tuple[str, ...]:
    """Return the arguments that say which input size a network is built for."""
    if builder in OWN:
        return ("size_px",)
    return ("image_size",) if builder.startswith("vit_") else ()


def build(builder: str, arguments: Arguments, num_classes: int) -> nn.Module:
    """Build a network with `num_classes` outputs, randomly initialised from torch's present seed."""
    factory = _factory(builder)
    if "weights" in arguments:  # torchvision would download a pickle
        raise ModelError(f"model.arguments: {builder}'s weights are given as model.weights")
    try:
        net = factory(num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        accepted = ", ".join(
            p for p in inspect.signature(factory).parameters if p not in ("kwargs", "weights", "progress")
        )
        raise ModelError(
            f"model.arguments: {builder} does not take {arguments} ({error}); it names {accepted}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"model.builder: {builder} must return a torch.nn.Module, and returned a {type(net).__name__}")
    return net


def skeleton(builder: str, arguments: Arguments, num_classes: int) -> nn.Module:
    """Build a network without its weights: shapes on the meta device, in no memory to speak of."""
    if is_foreign(builder):
        return build(builder, arguments, num_classes).to("meta")
    try:
        with torch.device("meta"):
            return build(builder, arguments, num_classes)
    except NotImplementedError:  # regnets compute their widths with tensors
        return build(builder, arguments, num_classes).to("meta")


def count_outputs(builder: str, arguments: Arguments, weights: dict[str, torch.Tensor]) -> int:
    """Return for how many classes a state dict was trained: the rows of its classifier."""
    key = f"{classifier_name(skeleton(builder, arguments, 1000))}.weight"
    return int(weights[key].shape[0]) if key in weights else 1000


def code_sha256(builder: str) -> str | None:
    """Return the digest of the file that a function of the user's own stands in, None for every other builder."""
    if not is_foreign(builder):
        return None
    file = inspect.getsourcefile(inspect.unwrap(_factory(builder)))
    if file is None:
        raise ModelError(f"model.builder: the source of {builder} is not to be found; give a function of a .py file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _factory(builder: str) -> Callable[..., Any]:
    if is_foreign(builder):
        return _imported(builder)
    if builder in OWN:
        return OWN[builder]
    known = builders()
    if builder not in known:
        near = get_close_matches(builder, known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(known[:6])}"
        raise ModelError(
            f"model.builder: no network is called {builder!r}; {hint} `nightshift models` lists them; "
            "package.module:function is one of your own"
        )
    factory: Callable[..., Any] = torchvision_models().get_model_builder(builder)
    return factory


def _imported(builder: str) -> Callable[..., Any]:
    """Import `package.module:function`, also from the working directory, where `python -m` would look too."""
    module_name, _, name = builder.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: nothing that lies there shadows a library
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"model.builder: {module_name} of {builder!r} cannot be imported ({error}); it must be installed on every node, or "
            f"lie in the working directory ({here})"
        ) from error
    factory: object = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"model.builder: {module_name} ({module.__file__}) has no function {name!r}")
    return factory
