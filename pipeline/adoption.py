"""Adopting a pretrained classifier as it is: weights and class names become a bundle that labels, without training."""

from pipeline import zoo
from pipeline.bundle import fit_weights, read_weights, seal
from pipeline.classes import Classes, parse_classes
from pipeline.errors import ModelError, NotFoundError
from pipeline.manifest import Architecture
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.storage import Storage, open_storage


def adopt(store: Storage, settings: ModelSettings, storage: StorageSettings) -> str:
    """Seal `model.weights` with `model.classes` as a bundle and return its version.

    Raises
    ------
    ModelError
        When one of them is missing or they do not fit the builder.
    """
    for key in ("weights", "classes"):
        if getattr(settings, key) is None:
            raise ModelError(
                f"train.mode none adopts a model as it is and needs model.{key}; set it, or choose another train.mode"
            )
    transforms = zoo.published_transforms(settings)
    arguments = zoo.builder_arguments(settings, transforms)
    architecture = Architecture(settings.builder, arguments, "native", _read_classes(settings, storage), transforms)
    weights = read_weights(str(settings.weights), storage)
    net = architecture.build()
    fit_weights(net, weights, f"model.weights: {settings.weights}")
    return seal(store, settings.name, architecture, net.state_dict())


def _read_classes(settings: ModelSettings, storage: StorageSettings) -> Classes:
    location = str(settings.classes)
    folder, _, name = location.rpartition("/")
    try:
        return parse_classes(open_storage(folder or ".", storage).read(name), location)
    except NotFoundError as error:
        raise ModelError(
            f"model.classes: {location} does not exist; give a JSON list of class names in index order"
        ) from error
