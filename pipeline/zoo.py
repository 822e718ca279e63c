"""Networks by name: torchvision's classification builders, a linear classifier and the lab's small CNN.

Every network here is a backbone that ends in features [B, D] and one linear head; `split_head` takes the head off.
"""

import inspect
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.settings import ModelSettings
from pipeline.transforms import Transforms, override

OWN = {"linear": (32, 32), "lab_cnn": (28, 28)}  # builder -> published resize and crop


class Linear(nn.Module):
    """`y = W x + b` on pixels."""

    def __init__(self, num_classes: int, size_px: int, in_channels: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(in_channels * size_px * size_px, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of images [B, C, H, W]."""
        logits: torch.Tensor = self.fc(self.flatten(images))
        return logits


class LabCNN(nn.Module):
    """The classic lab network: conv5x5-16, pool, conv5x5-32, pool, linear; same padding, any size from 4 pixels."""

    def __init__(self, num_classes: int, size_px: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(32 * (size_px // 4) ** 2, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of images [B, C, H, W]."""
        logits: torch.Tensor = self.fc(self.features(images))
        return logits


def _torchvision() -> Any:
    """Import torchvision's models when they are needed: 5 s (it imports torch's compiler), which our own networks save."""
    from torchvision import models

    return models


def check_builder(name: str) -> None:
    """Raise ModelError for a name that is no classification builder."""
    if name in OWN:
        return
    models = _torchvision()
    known = [*OWN, *models.list_models(module=models)]
    if name not in known:
        near = get_close_matches(name, known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(known[:6])}"
        raise ModelError(f"model.builder: no network is called {name!r}; {hint}")


def published_transforms(settings: ModelSettings) -> Transforms:
    """Return the preprocessing of the builder's first published weights, with the config's own values over it."""
    check_builder(settings.builder)
    if settings.builder in OWN:
        resize_px, crop_px = OWN[settings.builder]
        return override(Transforms(resize_px, crop_px, "RGB", (0.5,) * 3, (0.5,) * 3), settings.transforms)
    preset = next(iter(_torchvision().get_model_weights(settings.builder))).transforms()
    mean, std, interpolation = tuple(preset.mean), tuple(preset.std), preset.interpolation.value
    base = Transforms(preset.resize_size[0], preset.crop_size[0], "RGB", mean, std, interpolation)
    return override(base, settings.transforms)


def builder_arguments(settings: ModelSettings, transforms: Transforms) -> dict[str, Any]:
    """Return every argument that decides what the network computes, so that a reload builds the same one.

    Notes
    -----
    inception_v3 and googlenet set `transform_input=True` when torchvision loads their weights; it is no part of the
    state dict, so a bundle must carry it. `init_weights=False` skips an initialisation that the weights overwrite.
    """
    arguments: dict[str, Any] = dict(settings.arguments)
    if settings.builder in OWN:
        return {"size_px": transforms.crop_px, "in_channels": transforms.num_channels, **arguments}
    if transforms.num_channels != 3:
        raise ModelError(f"model.transforms.color: {settings.builder} takes RGB; only {' and '.join(OWN)} take L")
    if settings.builder in ("inception_v3", "googlenet"):
        inception = {"transform_input": settings.weights is not None, "aux_logits": True, "init_weights": False}
        return {**inception, **arguments}
    return arguments


def build(builder: str, arguments: dict[str, Any], num_classes: int) -> nn.Module:
    """Build a network with `num_classes` outputs, randomly initialised from torch's present seed."""
    check_builder(builder)
    if "weights" in arguments:  # torchvision would download a pickle
        raise ModelError(f"model.arguments: {builder}'s weights are given as model.weights, a safetensors file")
    own: dict[str, Any] = {"linear": Linear, "lab_cnn": LabCNN}
    factory = own.get(builder) or _torchvision().get_model_builder(builder)
    try:
        net: nn.Module = factory(num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        accepted = ", ".join(
            p for p in inspect.signature(factory).parameters if p not in ("kwargs", "weights", "progress")
        )
        raise ModelError(
            f"model.arguments: {builder} does not take {arguments} ({error}); it names {accepted}"
        ) from error
    return net


def split_head(net: nn.Module) -> int:
    """Take the classifier off in place, so that the network returns features [B, D]; return D.

    SqueezeNet's head is a convolution before pooling; its features are the pooled maps, and the new head is linear.
    """
    if type(net).__name__ == "SqueezeNet":
        net.classifier = nn.AdaptiveAvgPool2d(1)
        return 512
    parent, name, head = _find_head(net)
    setattr(parent, name, nn.Identity())
    return head.in_features


def replace_head(net: nn.Module, num_classes: int) -> nn.Linear:
    """Put a fresh linear head with `num_classes` outputs where the classifier is, and return it."""
    if type(net).__name__ == "SqueezeNet":
        head = nn.Linear(512, num_classes)
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return head
    parent, name, old = _find_head(net)
    head = nn.Linear(old.in_features, num_classes)
    setattr(parent, name, head)
    return head


def head_of(net: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits."""
    if type(net).__name__ == "SqueezeNet":
        linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if linear:
            return linear[-1]
    return _find_head(net)[2]


class _WithFeatures(nn.Module):
    """A head that answers with its logits and, behind them, what it was given: one output, [B, K + D]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [B, K + D] of features [B, D]."""
        return torch.cat([self.head(features), features], dim=1)


class _WithPooledMaps(_WithFeatures):
    """SqueezeNet's own head, which is given maps: its features are their means."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [B, K + D, 1, 1] of maps [B, D, H, W]."""
        return torch.cat([self.head(features), nn.functional.adaptive_avg_pool2d(features, 1)], dim=1)


def append_features(net: nn.Module) -> None:
    """Make the network return [B, K + D], in place: its logits, and behind them the features that they are made of.

    So every engine, which knows networks with one output only, gives both. The state dict has other names afterwards.
    """
    if type(net).__name__ == "SqueezeNet" and not any(isinstance(module, nn.Linear) for module in net.modules()):
        net.classifier = _WithPooledMaps(net.classifier)  # type: ignore[arg-type]
        return
    parent, name, head = _find_head(net)
    setattr(parent, name, _WithFeatures(head))


def _find_head(net: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """Return the last linear layer below `fc`, `classifier`, `heads` or `head`, with its parent and name."""
    for attribute in ("fc", "classifier", "heads", "head"):
        found = getattr(net, attribute, None)
        if isinstance(found, nn.Linear):
            return net, attribute, found
        if isinstance(found, nn.Module):
            linears = [(name, module) for name, module in found.named_children() if isinstance(module, nn.Linear)]
            if linears:
                return found, *linears[-1]
    raise ModelError(
        f"{type(net).__name__} has no linear classifier that could be replaced; use mode finetune or scratch"
    )


def count_outputs(builder: str, arguments: dict[str, Any], weights: dict[str, torch.Tensor]) -> int:
    """Return for how many classes a state dict was trained: the rows of its classifier, found on a 1,000-class network."""
    with torch.device("meta"):
        own = build(builder, arguments, 1000).state_dict()
    last = [key for key, tensor in own.items() if key.endswith("weight") and tensor.shape[0] == 1000][-1]
    return int(weights[last].shape[0]) if last in weights else 1000
