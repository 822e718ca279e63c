"""The networks that can be had by name, as their publishers describe them: size, cost, accuracy on ImageNet."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import zoo
from pipeline.cost import Cost, cost
from pipeline.networks import OWN
from pipeline.pretrained import blueprint
from pipeline.settings import ModelSettings
from pipeline.storage import Storage
from pipeline.transforms import Transforms
from pipeline.zoo import Arguments

NUM_CLASSES = 1000


@dataclass(frozen=True)
class Entry:
    """A builder with one set of published weights, or without any. `top1` is a percentage of ImageNet's validation images."""

    builder: str
    weights: str | None
    input_px: int
    parameters: int
    multiply_adds: int
    top1: float | None

    @property
    def gradient_bytes(self) -> int:
        """What each worker contributes to the averaging of a step."""
        return Cost(self.parameters, self.multiply_adds).gradient_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the gradient's bytes."""
        return {**asdict(self), "gradient_bytes": self.gradient_bytes}


def published() -> Iterator[Entry]:
    """Yield every builder, ours first, with each of its published weights.

    Parameters, multiply-adds and accuracy are torchvision's own figures; what `cost` counts is equal, as a test checks.
    """
    for builder in zoo.builders():
        if builder in OWN:
            own = ModelSettings(builder=builder)
            yield _counted(own, *zoo.blueprint(own))
            continue
        for weights in zoo.torchvision_models().get_model_weights(builder):
            accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            if math.isnan(accuracy):  # layers for other tasks, no classifier
                continue
            yield Entry(
                builder, weights.name, weights.transforms().crop_size[0], weights.meta["num_params"],
                round(weights.meta["_ops"] * 1e9), accuracy,
            )  # fmt: skip


def configured(store: Storage, model: ModelSettings, size_px: int | None) -> Entry:
    """Return the network of a config, with its arguments and its input size, for 1,000 classes like the others."""
    return _counted(model, *blueprint(store, model, size_px))


def _counted(model: ModelSettings, arguments: Arguments, transforms: Transforms) -> Entry:
    counted = cost(model.builder, arguments, transforms, NUM_CLASSES)
    return Entry(model.builder, model.weights, transforms.crop_px, counted.parameters, counted.multiply_adds, None)
