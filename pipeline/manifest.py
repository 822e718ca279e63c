"""What a bundle says of itself, readable without torch: how its network is built, fed and understood."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.classes import Classes
from pipeline.documents import Document, digest
from pipeline.errors import ModelError
from pipeline.logits import Meaning
from pipeline.registry import read_bundle_document, refuse_code, resolve
from pipeline.settings import ModelSettings
from pipeline.storage import Storage
from pipeline.transforms import Transforms, transforms_from_json
from pipeline.weightsource import Sealed

if TYPE_CHECKING:
    from torch import nn

VERSION_LENGTH = 12


@dataclass(frozen=True)
class Architecture:
    """What must be known to build the network again. `head` is `native`, or `linear` for one that replaced it."""

    builder: str
    arguments: dict[str, Any]
    head: str
    classes: Classes
    transforms: Transforms
    code_sha256: str | None = None  # of the file that a builder of the user's own stands in

    def build(self) -> "nn.Module":
        """Build the network, randomly initialised from torch's present seed."""
        from pipeline import zoo  # and with it torch: 2-6 s, which an engine with a cached network saves
        from pipeline.heads import replace_head

        net = zoo.build(self.builder, self.arguments, len(self.classes))
        if self.head == "linear":
            replace_head(net, len(self.classes))
        return net

    def to_json(self) -> Document:
        """Return the fields as a JSON object."""
        return {
            "builder": self.builder,
            "arguments": self.arguments,
            "head": self.head,
            "classes": self.classes.to_json(),
            "transforms": self.transforms.to_json(),
            **({"code_sha256": self.code_sha256} if self.code_sha256 else {}),
        }


@dataclass(frozen=True)
class Manifest:
    """A sealed model without its weights. Its logits are divided by `temperature`; a multi-label one has `thresholds`."""

    name: str
    version: str
    architecture: Architecture
    temperature: float
    weights_sha256: str
    thresholds: tuple[float, ...] | None = field(default=None, kw_only=True)  # of probabilities, [K]

    @property
    def meaning(self) -> Meaning:
        """What its logits say."""
        return Meaning(len(self.architecture.classes), self.temperature, self.thresholds)

    @property
    def id(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"


def read_manifest(storage: Storage, name: str, version: str, builder: str = "") -> Manifest:
    """Read bundle.json.

    Parameters
    ----------
    builder : str
        `model.builder` of the config: code of the user's own is run only when it is named there.

    Raises
    ------
    ModelError
        When there is none, its format is another one, it is not the sealed file, or it names other code.
    """
    document = read_bundle_document(storage, name, version)
    refuse_code(document, f"bundle {name}@{version}", builder)
    if digest(document, VERSION_LENGTH) != version:
        raise ModelError(f"bundle {name}@{version}: bundle.json is not the sealed file; restore it or train again")
    pairs = [(item["name"], item["id"]) for item in document["classes"]]
    names, ids = zip(*pairs, strict=True)
    transforms = transforms_from_json(document["transforms"])
    architecture = Architecture(
        document["builder"], document["arguments"], document["head"], Classes(names, ids), transforms,
        document.get("code_sha256"),
    )  # fmt: skip
    thresholds = tuple(document["thresholds"]) if "thresholds" in document else None
    return Manifest(
        name, version, architecture, document["temperature"], document["weights_sha256"], thresholds=thresholds
    )


def read_sealed(storage: Storage, source: Sealed, builder: str) -> Manifest:
    """Read the manifest of a bundle that is to be trained further; ModelError when it is another builder's."""
    version = None if source.version == "production" else source.version
    chosen = resolve(storage, ModelSettings(name=source.model, version=version, builder=builder))
    manifest = read_manifest(storage, source.model, chosen, builder)
    if manifest.architecture.builder != builder:
        raise ModelError(
            f"model.weights: bundle {manifest.id} is a {manifest.architecture.builder}, and model.builder says {builder}; set "
            f"model.builder: {manifest.architecture.builder}"
        )
    return manifest
