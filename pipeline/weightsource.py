"""What `model.weights` means: published weights by name, a bundle of this store, or a safetensors file anywhere."""

import re
from dataclasses import dataclass

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_BUNDLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)@([0-9a-f]+|production)")


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes: `IMAGENET1K_V2`, `DEFAULT` or `ResNet50_Weights.IMAGENET1K_V2`."""

    name: str


@dataclass(frozen=True)
class Sealed:
    """A bundle of this store, `name@version` or `name@production`: the second stage of a training."""

    model: str
    version: str


@dataclass(frozen=True)
class Location:
    """The path or URL of a state dict."""

    url: str


def weight_source(text: str | None) -> Published | Sealed | Location | None:
    """Tell the three apart: a location has a slash or a checkpoint's suffix, a bundle an @; a name has neither."""
    if text is None:
        return None
    if "/" in text or text.endswith(SUFFIXES):
        return Location(text)
    if bundle := _BUNDLE.fullmatch(text):
        return Sealed(bundle[1], bundle[2])
    return Published(text)
