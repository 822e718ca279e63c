"""What becomes of a shard's rows, gathered column by column: labels, quarantine, and the counts that the ledger keeps."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batches import Batch
from pipeline.errors import ImageError
from pipeline.rows import Row
from pipeline.schema import TOP_K, column_of, prediction_schema, quarantine_schema, table_of

CONFIDENCE_BINS = 20
FEW = 16  # classes: so many searches for the largest are quicker than sorting them all


@dataclass(frozen=True)
class Said:
    """The classes that a multi-label model says of B images, image by image, the surest first."""

    counts: npt.NDArray[np.int32]  # [B]
    indices: npt.NDArray[np.int32]  # [sum of counts]


@dataclass(frozen=True)
class Answers:
    """The best classes of B images, best first."""

    indices: npt.NDArray[np.int32]  # [B, k]
    probabilities: npt.NDArray[np.float32]  # [B, k]
    embeddings: npt.NDArray[np.float32] | None = None  # [B, D]
    said: Said | None = None  # of multi-label models


def said_of(probabilities: npt.NDArray[np.floating], said: npt.NDArray[np.bool_]) -> Said:
    """Return the classes that are said, of [B, K]; ties go to the lower index."""
    images, indices = np.nonzero(said)
    order = np.lexsort((indices, -probabilities[images, indices], images))
    return Said(said.sum(axis=1).astype(np.int32), indices[order].astype(np.int32))


def best(probabilities: npt.NDArray[np.float32], top_k: int) -> Answers:
    """Return the `top_k` largest of each row of [B, K], largest first; ties go to the lower index."""
    if top_k > FEW:
        indices = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    else:
        left, rows = probabilities.copy(), np.arange(len(probabilities))
        indices = np.empty((len(probabilities), top_k), np.int64)
        for place in range(top_k):
            indices[:, place] = left.argmax(axis=1)  # the first of equals
            left[rows, indices[:, place]] = -1
    return Answers(indices.astype(np.int32), np.take_along_axis(probabilities, indices, axis=1))


class Results:
    """The rows of one shard, in the order in which they came; their bytes are not kept."""

    def __init__(self, model: str, names: Sequence[str], embedding_size: int = 0, multi_label: bool = False) -> None:
        self._multi_label = multi_label
        self._model, self._names, self._embedding_size = model, pa.array(names, pa.string()), embedding_size
        self._columns: dict[str, list[Any]] = defaultdict(list)
        self._extra: list[Mapping[str, Any]] = []
        self._answers: list[Answers] = []
        self.rejected: list[dict[str, Any]] = []

    def add(self, batch: Batch, answers: Answers) -> None:
        """Add a batch, `answers` being those of its good rows."""
        self._answers.append(answers)
        for name in ("image_id", "uri", "content_hash", "segment"):
            self._columns[name] += [getattr(row, name) for row in batch.good]
        self._columns["width"] += [width for width, _ in batch.sizes]
        self._columns["height"] += [height for _, height in batch.sizes]
        self._extra += [row.extra for row in batch.good]
        self.rejected += [_rejection(row, error) for row, error in batch.bad]

    def labels(self, id_type: pa.DataType, extra: Sequence[pa.Field] = ()) -> pa.Table:
        """Return the label table; `extra` are the fields of the input's columns that are passed through."""
        schema, answers = prediction_schema(id_type, extra, self._embedding_size, self._multi_label), self._all()
        indices, probabilities = answers.indices, answers.probabilities
        count, top_k = indices.shape
        flat = pa.array(indices.reshape(-1))
        top = [self._names.take(flat), flat, pa.array(probabilities.reshape(-1))]
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * top_k)
        first = pa.array(indices[:, 0])
        made = {
            "label": self._names.take(first),
            "class_index": first,
            "confidence": pa.array(probabilities[:, 0]),
            "top_k": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(top, fields=list(TOP_K.value_type))),
            "model": pa.repeat(self._model, count),
            "embedding": self._embeddings(),
            **self._label_lists(),
            **{field.name: column_of((row[field.name] for row in self._extra), field.type) for field in extra},
        }
        columns = [
            made[field.name] if field.name in made else pa.array(self._columns[field.name], field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def quarantine(self, id_type: pa.DataType, extra: Sequence[pa.Field] = ()) -> pa.Table:
        """Return the quarantine table, with the same columns of the input."""
        return table_of(self.rejected, quarantine_schema(id_type, extra))

    def count_segments(self) -> tuple[Counter[str], Counter[str]]:
        """Return the labelled and the quarantined rows per segment."""
        return Counter(self._columns["segment"]), Counter(row["segment"] for row in self.rejected)

    def count_classes(self) -> dict[str, int]:
        """Return the labelled rows per class index; a multi-label row counts for each of its classes."""
        said = self._all_said().indices if self._multi_label else self._all().indices[:, 0]
        indices, counts = np.unique(said, return_counts=True)
        return {str(index): int(count) for index, count in zip(indices, counts, strict=True)}

    def count_confidences(self) -> list[int]:
        """Return the labelled rows per twentieth of confidence."""
        counts: list[int] = np.histogram(self._all().probabilities[:, 0], CONFIDENCE_BINS, (0, 1))[0].tolist()
        return counts

    def _embeddings(self) -> pa.Array:
        parts = [answers.embeddings.reshape(-1) for answers in self._answers if answers.embeddings is not None]
        flat = pa.array(np.concatenate([np.empty(0, np.float32), *parts]))
        return pa.FixedSizeListArray.from_arrays(flat, max(1, self._embedding_size))

    def _label_lists(self) -> dict[str, pa.Array]:
        """Return the columns of all classes that are said."""
        said = self._all_said()
        offsets = pa.array(np.concatenate([[0], np.cumsum(said.counts)]).astype(np.int32))
        flat = pa.array(said.indices)
        return {
            "labels": pa.ListArray.from_arrays(offsets, self._names.take(flat)),
            "class_indices": pa.ListArray.from_arrays(offsets, flat),
        }

    def _all_said(self) -> Said:
        parts = [answers.said for answers in self._answers if answers.said is not None]
        none = np.empty(0, np.int32)
        return Said(
            np.concatenate([none, *(part.counts for part in parts)]),
            np.concatenate([none, *(part.indices for part in parts)]),
        )

    def _all(self) -> Answers:
        none = Answers(np.empty((0, 1), np.int32), np.empty((0, 1), np.float32))
        answers = [answers for answers in self._answers if len(answers.indices)] or [none]
        return Answers(
            np.concatenate([answer.indices for answer in answers]),
            np.concatenate([answer.probabilities for answer in answers]),
        )


def _rejection(row: Row, error: ImageError) -> dict[str, Any]:
    cause = type(error.__cause__ or error).__name__
    return {
        "image_id": row.image_id, "uri": row.uri, "stage": error.stage, "reason": error.reason, "error_type": cause,
        "message": error.message, "content_hash": row.content_hash, "segment": row.segment, **row.extra,
    }  # fmt: skip
