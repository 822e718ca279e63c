"""Which models the store has and which one labels tonight. Reads documents only, so it needs no torch."""

from pipeline import layout
from pipeline.documents import Document, advance, digest, find_document, newest, read_document
from pipeline.errors import AlreadyExistsError, ModelError, NotFoundError
from pipeline.layout import Generation
from pipeline.settings import InputSettings, LabelSettings, ModelSettings
from pipeline.storage import Storage

# Formats of bundle.json. One that knows no thresholds must not take a multi-label model for another.
ONE_LABEL, MULTI_LABEL = 1, 2
# Raise when the code starts to give other labels for the same question: old and new labels must not mix silently.
LABELLING_VERSION = 1


def production(storage: Storage, model: str) -> str | None:
    """Return the version that labels tonight, None when there is none yet."""
    found = newest(storage, layout.production(model))
    return found[1]["version"] if found else None


def promote_first(storage: Storage, model: str, version: str, at: str) -> bool:
    """Make a version production if the model has none; say whether it did."""
    if production(storage, model) is not None:
        return False
    try:
        advance(storage, layout.production(model), {"version": version, "at": at, "reason": "first bundle"}, 0)
    except AlreadyExistsError:
        return False
    return True


def resolve(storage: Storage, settings: ModelSettings) -> str:
    """Return the version asked for, else production.

    Raises
    ------
    ModelError
        When there is no such bundle, or it names code that the config does not: see `refuse_code`.
    """
    model = settings.name
    chosen = settings.version or production(storage, model)
    if chosen is None:
        raise ModelError(
            f"the store has no model {model!r} yet; run `nightshift train CONFIG` first (mode none adopts weights as they are)"
        )
    refuse_code(read_bundle_document(storage, model, chosen), f"bundle {model}@{chosen}", settings.builder)
    return chosen


def is_foreign(builder: str) -> bool:
    """Say whether a builder is a function of the user's own, `package.module:function`."""
    return ":" in builder


def refuse_code(document: Document, name: str, builder: str) -> None:
    """Raise ModelError when a bundle is built by code of the user's own and the config does not name that code.

    A store is data. Whoever can write there must not be able to say what is imported and called here.
    """
    wanted = document["builder"]
    if is_foreign(wanted) and wanted != builder:
        raise ModelError(
            f"{name} is built by {wanted}, code that is only run when the config names it, and the config says "
            f"model.builder: {builder}; if you trust that code, set model.builder: {wanted}"
        )


def versions(storage: Storage, model: str) -> list[str]:
    """Return the sealed versions of a model."""
    folder = f"models/{model}"
    paths = [entry.path.removeprefix(f"{folder}/") for entry in storage.list(folder)]
    return sorted(path.removesuffix("/bundle.json") for path in paths if path.endswith("/bundle.json"))


def newest_training(storage: Storage, model: str) -> str | None:
    """Return the version whose training began last, None when none was trained."""
    trained = [(version, read_beside(storage, model, version, "training.json")) for version in versions(storage, model)]
    starts = [(document["started_at"], version) for version, document in trained if document]
    return max(starts)[1] if starts else None


def read_bundle_document(storage: Storage, model: str, version: str) -> Document:
    """Return bundle.json; ModelError when there is none, or of a format that this version cannot read."""
    try:
        document = read_document(storage, f"{layout.bundle(model, version)}/bundle.json")
    except NotFoundError as error:
        known = ", ".join(versions(storage, model)) or "none"
        raise ModelError(f"the store has no version {version!r} of model {model!r}; it has: {known}") from error
    if document.get("format") not in (ONE_LABEL, MULTI_LABEL):
        raise ModelError(
            f"bundle {model}@{version} has format {document.get('format')!r}, this nightshift reads {ONE_LABEL} and {MULTI_LABEL}; "
            "label with the nightshift that wrote it, or train again"
        )
    return document


def read_beside(storage: Storage, model: str, version: str, name: str) -> Document | None:
    """Return a document that lies beside a bundle, such as `evaluation.json`, None when there is none."""
    return find_document(storage, f"{layout.bundle(model, version)}/{name}")


def generation(dataset: str, model: str, version: str, source: InputSettings, label: LabelSettings) -> Generation:
    """Return the generation that labels asked for in this way belong to: everything that decides a label is in its name.

    `source` has the predicates on rows only (`selection.row_settings`): a backfill of some Hive partitions adds to the
    generation that the other partitions are in.
    """
    asked: Document = {
        "bundle": version,
        "mode": "exact" if label.exact else "fast",
        "precision": label.precision,
        "max_pixels": source.max_pixels,
        "top_k": label.top_k,
        "images": [source.image_column, source.uri_column],
        "id_column": source.id_column,
        "labelling": LABELLING_VERSION,
    }
    # Only where they are asked for, so that all the generations without them keep their names.
    if source.filter:
        asked["filter"] = sorted(source.model_dump(mode="json")["filter"], key=repr)
    if label.columns:
        asked["columns"] = list(label.columns)
    if label.embeddings:
        asked["embeddings"] = True
    return Generation(dataset, model, digest(asked, 12))
