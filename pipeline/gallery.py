"""Gathers what the page of a run shows: counts from the ledger, rows from the label files, thumbnails from the input."""

import base64
import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.corruptions import by_name
from pipeline.documents import Document
from pipeline.errors import ModelError, NightshiftError
from pipeline.images import decode
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, read_ledger
from pipeline.page import PageData, Thumbnail
from pipeline.plans import read_plan
from pipeline.publication import live_rows
from pipeline.registry import read_beside, read_bundle_document
from pipeline.rows import ShardReader
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import read_schema, read_table
from pipeline.transforms import Pixels, transforms_from_json

PICTURES, QUARANTINE_ROWS, FILES_LOOKED_AT = 12, 50, 200
THUMBNAIL_PX, SPOILT_PX = 160, 112
CLASSES_SHOWN = 5  # of an image

Ledger = list[tuple[Shard, LedgerEntry]]


def gather(
    store: Storage, run: Document, source: InputSettings, storage: StorageSettings, nights: Sequence[Document] = ()
) -> PageData:
    """Return the page of a run, from its record, what the store holds for it, and the nights up to it."""
    model, _, version = (run.get("model") or "").partition("@")
    evaluation = read_beside(store, model, version, "evaluation.json") if version else None
    if evaluation and evaluation["dataset"] != run["dataset"]:
        evaluation = None
    training = read_beside(store, model, version, "training.json") if version else None
    ledger = _ledger(store, run, model)
    pictures = _Pictures(ShardReader(source, storage), source.max_pixels)
    least, most = _extremes(store, ledger)
    return PageData(
        run=run,
        nights=tuple(nights),
        label_counts=_label_counts(store, ledger, model, version),
        confidence_counts=tuple(sum(bins) for bins in zip(*(e.confidences for _, e in ledger), strict=True)),
        quarantine=tuple(islice(_rejected(store, ledger), QUARANTINE_ROWS)),
        quarantine_reasons=tuple(sum((Counter(entry.reasons) for _, entry in ledger), Counter()).most_common()),
        evaluation=evaluation,
        training=training,
        least_confident=tuple(pictures.of_prediction(row) for row in least),
        most_confident=tuple(pictures.of_prediction(row) for row in most),
        misclassified=tuple(pictures.of_mistake(row) for row in (evaluation or {}).get("misclassified", [])[:PICTURES]),
        spoilt=tuple(pictures.spoilt(run["robustness"], store, model, version)) if run.get("robustness") else (),
    )


def _ledger(store: Storage, run: Document, model: str) -> Ledger:
    """Return the run's own commits, or all of its generation for a run that found everything done; none without labelling."""
    plan = read_plan(store, run["dataset"]) if run.get("fingerprint") else None
    if plan is None:
        return []
    entries = read_ledger(store, Generation(run["dataset"], model, run["fingerprint"]), plan.shards)
    if run.get("images_in"):
        entries = {shard_id: entry for shard_id, entry in entries.items() if entry.run_id == run["run_id"]}
    return [(shard, _live(store, shard, entries[shard.id])) for shard in plan.shards if shard.id in entries]


def _live(store: Storage, shard: Shard, entry: LedgerEntry) -> LedgerEntry:
    """Return the entry as it is without segments that vanished: counted again from the files, which few shards need."""
    if not shard.tombstoned:
        return entry
    names = read_schema(store, entry.labels.path).names
    said = "class_indices" if "class_indices" in names else "class_index"
    labels = live_rows(read_table(store, entry.labels.path, (said, "confidence", "segment")), shard)
    reasons = Counter(row["reason"] for row in _rejected(store, [(shard, entry)]))
    indices = pc.list_flatten(labels[said]) if said == "class_indices" else labels[said]
    classes = Counter(str(index) for index in indices.to_pylist())
    bins = np.histogram(labels["confidence"].to_numpy(), len(entry.confidences), (0, 1))[0]
    return replace(entry, reasons=dict(reasons), classes=dict(classes), confidences=bins.tolist())


def _rejected(store: Storage, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Yield the quarantined rows that still exist."""
    for shard, entry in ledger:
        if entry.quarantine:
            yield from live_rows(read_table(store, entry.quarantine.path), shard).to_pylist()


def _label_counts(store: Storage, ledger: Ledger, model: str, version: str) -> tuple[tuple[str, int], ...]:
    counts: Counter[str] = sum((Counter(entry.classes) for _, entry in ledger), Counter())
    if not counts:
        return ()
    try:
        names = [item["name"] for item in read_bundle_document(store, model, version)["classes"]]
    except ModelError:  # the labels may outlive their model
        return tuple((f"class {index}", n) for index, n in counts.most_common())
    return tuple((names[int(index)], n) for index, n in counts.most_common())


def quarantined(store: Storage, files: Iterable[str], limit: int) -> list[dict[str, Any]]:
    """Return the first rows of a view's quarantine files."""
    return list(islice((row for path in files for row in read_table(store, path).to_pylist()), limit))


def _extremes(store: Storage, ledger: Ledger) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the least and the most confident predictions of the first label files, each in order."""
    least: list[dict[str, Any]] = []
    most: list[dict[str, Any]] = []
    for shard, entry in ledger[:FILES_LOOKED_AT]:
        table = read_table(store, entry.labels.path, ("image_id", "uri", "confidence", "top_k", "segment"))
        table = live_rows(table, shard).sort_by("confidence")
        least = heapq.nsmallest(PICTURES, least + table.slice(0, PICTURES).to_pylist(), key=_confidence)
        tail = table.slice(max(0, table.num_rows - PICTURES)).to_pylist()
        most = heapq.nlargest(PICTURES, most + tail, key=_confidence)
    return least, most


def _confidence(row: dict[str, Any]) -> float:
    return float(row["confidence"])


# An image, or a model, that is gone or changed meanwhile; the last three: another table by now.
UNREADABLE = (NightshiftError, pa.ArrowException, LookupError, ValueError)


class _Pictures:
    """Makes thumbnails; an image that is gone or changed meanwhile has none."""

    def __init__(self, reader: ShardReader, max_pixels: int) -> None:
        self._reader, self._max_pixels = reader, max_pixels

    def of_prediction(self, row: dict[str, Any]) -> Thumbnail:
        top = tuple((best["label"], best["probability"]) for best in row["top_k"][:CLASSES_SHOWN])
        return Thumbnail(str(row["image_id"]), self._data_uri(row["uri"]), row["uri"], top, None)

    def of_mistake(self, row: dict[str, Any]) -> Thumbnail:
        image = str(row["image_id"]), self._data_uri(row["uri"]), row["uri"]
        if isinstance(row["label"], str):
            return Thumbnail(*image, ((row["predicted"], row["confidence"]),), row["label"])
        truth, said = (", ".join(row[key]) or "no label" for key in ("label", "predicted"))  # of a multi-label image
        return Thumbnail(*image, (), truth, said)

    def spoilt(
        self, robustness: Document, store: Storage, model: str, version: str
    ) -> Iterator[tuple[str, tuple[Thumbnail, ...]]]:
        """Yield the example with each corruption, as the model was given it."""
        example = robustness["example"]
        try:
            transforms = transforms_from_json(read_bundle_document(store, model, version)["transforms"])
            clean = transforms.pixels(
                decode(self._reader.read_one(example["uri"]), transforms.color, self._max_pixels).image
            )
        except UNREADABLE:
            return
        for row in robustness["corruptions"]:
            corruption, said = by_name()[row["name"]], example["said"][row["name"]]
            pictures = (_as_uri(corruption(clean, severity, example["key"])) for severity in robustness["severities"])
            yield (
                row["name"],
                tuple(
                    Thumbnail(row["name"], picture, "", (), example["label"], words)
                    for picture, words in zip(pictures, said, strict=True)
                ),
            )

    def _data_uri(self, uri: str) -> str:
        try:
            image = decode(self._reader.read_one(uri), "RGB", self._max_pixels).image
        except UNREADABLE:
            return ""
        return thumbnail(image)


def _as_uri(pixels: Pixels) -> str:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((SPOILT_PX, SPOILT_PX))
    return thumbnail(image)


def thumbnail(image: Image.Image) -> str:
    """Return a small copy as a data URI; tiny pictures are enlarged with hard edges, so that their pixels can be seen."""
    longest = max(image.size)
    if longest < THUMBNAIL_PX // 2:
        factor = THUMBNAIL_PX // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image = image.copy()
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    kind = "PNG" if longest < THUMBNAIL_PX // 2 else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sample_predictions(
    store: Storage, files: Iterable[str], count: int
) -> list[tuple[str, tuple[tuple[str, float], ...]]]:
    """Return some predictions to show, from the least confident up to the middle: (image id, ((label, probability), ...))."""
    path = next(iter(files), None)
    if path is None:
        return []
    table = read_table(store, path, ("image_id", "confidence", "top_k")).sort_by("confidence")
    step = max(1, table.num_rows // (2 * count))
    rows = table.take(list(range(0, table.num_rows, step))[:count]).to_pylist()
    return [
        (str(row["image_id"]), tuple((best["label"], best["probability"]) for best in row["top_k"])) for row in rows
    ]
