"""Adopting a pretrained classifier as it is: weights and class names become a bundle that labels, without training."""

from pipeline import zoo
from pipeline.bundle import fit_weights, seal
from pipeline.classes import Classes, parse_classes
from pipeline.errors import ModelError, NotFoundError
from pipeline.manifest import Architecture
from pipeline.pretrained import Pretrained, load_pretrained
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.sizes import check_size
from pipeline.storage import Storage, open_storage
from pipeline.weightsource import Published, weight_source


def adopt(store: Storage, settings: ModelSettings, storage: StorageSettings, size_px: int | None = None) -> str:
    """Seal `model.weights` with `model.classes` as a bundle and return its version.

    A bundle that is adopted again brings its own classes, torchvision's published weights bring theirs.

    Raises
    ------
    ModelError
        When something is missing or does not fit the builder, or the builder does not take the input's size.
    """
    if settings.weights is None:
        raise ModelError(
            "train.mode none adopts a model as it is and needs model.weights; set it, or choose another train.mode"
        )
    given = load_pretrained(store, settings, storage, size_px)
    check_size(settings.builder, given.arguments, given.transforms)
    architecture = Architecture(
        settings.builder, given.arguments, given.head, _classes(settings, given, storage), given.transforms
    )
    net = architecture.build()
    fit_weights(net, given.net.state_dict(), f"model.weights: {settings.weights}")
    temperature, thresholds = _meaning(settings, given, len(architecture.classes))
    return seal(store, settings.name, architecture, net.state_dict(), temperature, thresholds)


def _meaning(settings: ModelSettings, given: Pretrained, num_classes: int) -> tuple[float, tuple[float, ...] | None]:
    """Return temperature and thresholds: the bundle's own, or those of the config."""
    temperature = given.bundle.temperature if given.bundle else 1.0
    if settings.threshold is not None:
        return temperature, (settings.threshold,) * num_classes
    return temperature, given.bundle.thresholds if given.bundle else None


def _classes(settings: ModelSettings, given: Pretrained, storage: StorageSettings) -> Classes:
    if settings.classes is not None:
        return _read_classes(settings, storage)
    if given.bundle is not None:
        return given.bundle.architecture.classes
    source = weight_source(settings.weights)
    if isinstance(source, Published):
        names = tuple(zoo.published_weights(settings.builder, source.name).meta["categories"])
        return Classes(names, names)
    raise ModelError(
        "train.mode none adopts a model as it is and needs model.classes, a JSON list of class names in index order; set it, "
        "or choose another train.mode"
    )


def _read_classes(settings: ModelSettings, storage: StorageSettings) -> Classes:
    location = str(settings.classes)
    folder, _, name = location.rpartition("/")
    try:
        return parse_classes(open_storage(folder or ".", storage).read(name), location)
    except NotFoundError as error:
        raise ModelError(
            f"model.classes: {location} does not exist; give a JSON list of class names in index order"
        ) from error
