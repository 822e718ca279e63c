"""Evaluating one shard: the labelling path on the rows of some splits, counted instead of written.

It judges the model, so it always takes the reference: Pillow, torch, fp32. How far a fast path is from it, the agreement
gate measures.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batches import Batch, decoded_batches, decoder
from pipeline.bundle import load_bundle
from pipeline.judged import judged_rows
from pipeline.labelling import Predictor
from pipeline.labelsums import LabelSums
from pipeline.logits import log_softmax
from pipeline.metrics import Sums
from pipeline.rows import Row, ShardReader
from pipeline.schema import judged_schema
from pipeline.shards import Shard
from pipeline.slices import slice_type
from pipeline.storage import open_storage
from pipeline.tasks import EvaluateTask
from pipeline.truths import PRESENT, UNKNOWN, LabelMatrix, LabelSet

Labels = str | list[str]  # of a multi-label image
Judged = tuple[list[Row], list[dict[str, Any]]]  # images, and what was found of each


class Judge:
    """Evaluates shards with one model, which is loaded once."""

    def __init__(self, task: EvaluateTask) -> None:
        self._task = task
        store = open_storage(task.store, task.storage)
        self._predictor = Predictor(load_bundle(store, task.model, task.version, task.builder), 5)
        self._reader = ShardReader(task.input, task.storage, task.slices, named_by="evaluate.slices")

    def __call__(self, shard: Shard, halvings: int = 0) -> Sums | LabelSums:
        """Return the sums over the shard's rows of the task's splits, in batches halved so often."""
        sums = Sums() if self._predictor.meaning.thresholds is None else LabelSums()
        transforms = self._predictor.transforms
        decode_row = decoder(transforms, self._task.input.max_pixels)
        schema = None  # known once the reader has checked the columns
        for batch in decoded_batches(self._judged(shard, halvings), decode_row, transforms, self._task.threads):
            sums.quarantined += len(batch.bad)
            if not batch.good:
                continue
            if isinstance(sums, LabelSums):
                rows = self._add_sets(sums, batch)
            else:
                rows = self._add(sums, batch)
            schema = schema or judged_schema(self._slice_fields(shard), isinstance(sums, LabelSums))
            sums.rows.append(judged_rows(*rows, schema))
        return sums

    def _slice_fields(self, shard: Shard) -> list[pa.Field]:
        return [pa.field(f.name, slice_type(f.name, f.type)) for f in self._reader.extra_fields(shard)]

    def _add(self, sums: Sums, batch: Batch) -> Judged:
        classes = self._predictor.bundle.architecture.classes
        log_probabilities = log_softmax(self._predictor.logits(batch), self._predictor.meaning.temperature)
        targets = [classes.index_of(row.label) for row in batch.good]
        known = [i for i, target in enumerate(targets) if target is not None]
        sums.unknown_labels.update(
            str(row.label) for row, target in zip(batch.good, targets, strict=True) if target is None
        )
        rows, chosen = [batch.good[i] for i in known], [target for target in targets if target is not None]
        found: list[dict[str, Any]] = [
            {
                "label": classes.names[truth], "class_index": truth, "predicted": classes.names[verdict.predicted],
                "predicted_index": verdict.predicted, "confidence": verdict.confidence,
                "probability": verdict.probability, "rank": verdict.rank, "errors": int(verdict.predicted != truth),
            }
            for truth, verdict in zip(chosen, sums.add(log_probabilities[known], chosen), strict=True)
        ]  # fmt: skip
        wrong = ((row, judged) for row, judged in zip(rows, found, strict=True) if judged["errors"])
        sums.misclassified += [_mistake(row, j["label"], j["predicted"], j["confidence"]) for row, j in wrong]
        return rows, found

    def _add_sets(self, sums: LabelSums, batch: Batch) -> Judged:
        """Count multi-label images; a label that is no class of the model is none of their truth."""
        classes, meaning = self._predictor.bundle.architecture.classes, self._predictor.meaning
        # As the label files have them, so that judging those gives the same figures.
        probabilities = meaning.probabilities(self._predictor.logits(batch)).astype(np.float32)
        labels = [LabelSet(row.labels or (), row.absent) for row in batch.good]
        strange = [sum(classes.index_of(name) is None for name in label.there) for label in labels]
        known = LabelMatrix(labels, classes)[np.arange(len(labels))]
        sums.probabilities.append(probabilities)
        sums.known.append(known)
        sums.unknown_labels.update(name for label in labels for name in label.there if classes.index_of(name) is None)
        answered = meaning.said(probabilities)
        wrong = (answered != (known == PRESENT)) & (known != UNKNOWN)
        found = [
            {
                "labels": [classes.names[k] for k in np.flatnonzero(known[i] == PRESENT)],
                "absent": _absent(label),
                "predicted": [classes.names[k] for k in np.flatnonzero(answered[i])],
                "confidence": float(probabilities[i].max()), "probabilities": probabilities[i], "errors": int(wrong[i].sum()),
                "unknown": strange[i],
            }
            for i, label in enumerate(labels)
        ]  # fmt: skip
        for i in np.flatnonzero(wrong.any(axis=1)):
            error = np.abs(probabilities[i] - (known[i] == PRESENT))[wrong[i]].max()
            sums.misclassified.append(_mistake(batch.good[i], found[i]["labels"], found[i]["predicted"], float(error)))
        return batch.good, found

    def _judged(self, shard: Shard, halvings: int) -> Iterator[list[Row]]:
        """Yield the labelled rows of the wanted splits; rows that cannot be read are counted by the decoder."""
        for rows in self._reader.read(shard, self._task.label.halved(halvings).batch_size):
            wanted = [row for row in rows if self._has_truth(row) and row.side(self._task.split) in self._task.splits]
            if wanted:
                yield wanted

    def _has_truth(self, row: Row) -> bool:
        return (row.labels if self._task.input.multi_label else row.label) is not None


def _absent(label: LabelSet) -> list[str] | None:
    """Return the labels known not to be there; one that is said to be there as well is neither."""
    return None if label.absent is None else [name for name in label.absent if name not in label.there]


def _mistake(row: Row, truth: Labels, guess: Labels, confidence: float) -> dict[str, object]:
    return {"image_id": row.image_id, "uri": row.uri, "label": truth, "predicted": guess, "confidence": confidence}
