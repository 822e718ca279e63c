"""The classifier at the end of a network: found, taken off, replaced, and the auxiliary ones that only training uses.

Every network here is a backbone that ends in features [B, D], and a linear head.
"""

from collections.abc import Iterator

import torch
from torch import nn

from pipeline.errors import ModelError

# Where torchvision keeps auxiliary classifiers, and the layer of each that knows the number of classes.
AUXILIARY = {"AuxLogits": "fc", "aux1": "fc2", "aux2": "fc2"}
# What such networks return in training mode -> what a loss of an auxiliary classifier counts. Szegedy et al.: 0.3 in
# "Going deeper with convolutions" (arXiv 1409.4842), 0.4 in "Rethinking the Inception architecture" (arXiv 1512.00567).
AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}


def split_head(net: nn.Module) -> int:
    """Take the classifier off in place, so that the network returns features [B, D]; return D.

    SqueezeNet's head is a convolution before pooling; its features are the pooled maps, and the new head is linear.
    """
    if _is_squeezenet(net):
        net.classifier = nn.AdaptiveAvgPool2d(1)
        return 512
    parent, name, head = _find_head(net)
    setattr(parent, name, nn.Identity())
    return head.in_features


def replace_head(net: nn.Module, num_classes: int) -> nn.Linear:
    """Put a fresh linear head with `num_classes` outputs where the classifier is, and return it.

    Auxiliary classifiers get as many outputs.
    """
    if _is_squeezenet(net):
        head = nn.Linear(512, num_classes)
        net.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return head
    parent, name, old = _find_head(net)
    head = nn.Linear(old.in_features, num_classes)
    setattr(parent, name, head)
    for auxiliary, layer in _auxiliary(net):
        setattr(auxiliary, layer, nn.Linear(getattr(auxiliary, layer).in_features, num_classes))
    return head


def head_of(net: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits."""
    if _is_squeezenet(net):
        linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if linear:
            return linear[-1]
    return _find_head(net)[2]


def last_layers(net: nn.Module) -> list[nn.Module]:
    """Return the layers whose outputs are the classes, auxiliary ones too: what is new when the classes are."""
    return [net.get_submodule(classifier_name(net)), *(getattr(module, layer) for module, layer in _auxiliary(net))]


def has_linear_head(net: nn.Module) -> bool:
    """Say whether `head_of` finds one."""
    try:
        head_of(net)
    except ModelError:
        return False
    return True


def classifier_name(net: nn.Module) -> str:
    """Return the name of the layer, linear or not, whose outputs are the classes."""
    if not has_linear_head(net) and _is_squeezenet(net):
        return "classifier.1"
    head: nn.Module = head_of(net)
    names: list[str] = [name for name, module in net.named_modules() if module is head]
    return names[0]


def drop_auxiliary(net: nn.Module) -> None:
    """Take auxiliary classifiers off, as `aux_logits=False` would have built the network."""
    for attribute in AUXILIARY:
        if hasattr(net, attribute):
            setattr(net, attribute, None)
    if hasattr(net, "aux_logits"):
        net.aux_logits = False  # type: ignore[assignment]


def split_outputs(outputs: object) -> tuple[torch.Tensor, list[tuple[float, torch.Tensor]]]:
    """Return the logits [B, K] of what a network gave, and in training those of auxiliary classifiers with their weights."""
    if isinstance(outputs, torch.Tensor):
        return outputs, []
    kind = type(outputs).__name__
    if kind not in AUXILIARY_WEIGHTS or not isinstance(outputs, tuple):
        raise ModelError(f"a network must return logits [B, K] as one tensor, and model.builder's returns a {kind}")
    return outputs[0], [(AUXILIARY_WEIGHTS[kind], logits) for logits in outputs[1:] if logits is not None]


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
    if _is_squeezenet(net) and not has_linear_head(net):
        net.classifier = _WithPooledMaps(net.classifier)  # type: ignore[arg-type]
        return
    parent, name, head = _find_head(net)
    setattr(parent, name, _WithFeatures(head))


def _auxiliary(net: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the auxiliary classifiers that a network has, each with the name of its last layer."""
    for attribute, layer in AUXILIARY.items():
        if isinstance(module := getattr(net, attribute, None), nn.Module):
            yield module, layer


def _is_squeezenet(net: nn.Module) -> bool:
    return type(net).__name__ == "SqueezeNet"


def _find_head(net: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """Return the last linear layer below `fc`, `classifier`, `heads` or `head`, else of all, with its parent and name."""
    for attribute in ("fc", "classifier", "heads", "head"):
        found = getattr(net, attribute, None)
        if isinstance(found, nn.Linear):
            return net, attribute, found
        if isinstance(found, nn.Module):
            linears = [(name, module) for name, module in found.named_children() if isinstance(module, nn.Linear)]
            if linears:
                return found, *linears[-1]
    everywhere = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear) and name]
    if everywhere:
        name, head = everywhere[-1]
        parent, _, last = name.rpartition(".")
        return net.get_submodule(parent), last, head
    raise ModelError(
        f"{type(net).__name__} has no linear classifier that could be replaced; only train.mode scratch and none do without one"
    )
