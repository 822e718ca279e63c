"""Asking a model about spoilt pictures: the labelling path on some images of each shard, counted instead of written."""

import heapq
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.batches import Batch, decoded_batches, decoder
from pipeline.corruptions import Corruption, by_name
from pipeline.labelling import Labeller, Predictor
from pipeline.robustsums import CLEAN, RobustSums
from pipeline.rows import Row, ShardReader
from pipeline.shards import Shard
from pipeline.tasks import ProbeTask
from pipeline.truths import PRESENT, UNKNOWN, LabelMatrix, LabelSet

Said = npt.NDArray[np.bool_]  # [B, K]


class Prober:
    """Probes shards with one model and the engine that labels with it, which are opened once."""

    def __init__(self, task: ProbeTask) -> None:
        self._task = task
        self._labeller = Labeller(task.label)
        self._reader = ShardReader(task.input, task.label.storage)
        self._corruptions = [by_name()[name] for name in task.corruptions]

    def __call__(self, shard: Shard, halvings: int = 0) -> RobustSums:
        """Return the sums over some of the shard's images, in batches halved so often."""
        label, sums = self._task.label.label.halved(halvings), RobustSums()
        predictor = self._labeller.predictor(shard)
        transforms = predictor.transforms
        decode_row = decoder(transforms, self._task.input.max_pixels, predictor.choice.exact_decoding)
        rows = self._chosen(shard, label.batch_size)
        lists = iter([rows[n : n + label.batch_size] for n in range(0, len(rows), label.batch_size)])
        for batch in decoded_batches(lists, decode_row, transforms, self._task.label.threads):
            sums.quarantined += len(batch.bad)
            if batch.good:
                self._add(sums, batch, predictor)
        return sums

    def _add(self, sums: RobustSums, batch: Batch, predictor: Predictor) -> None:
        names, meaning = self._labeller.classes.names, predictor.meaning

        def said(asked: Batch) -> Said:
            return meaning.said(meaning.probabilities(predictor.logits(asked)))

        clean, known = said(batch), self._known(batch.good)
        labelled = (known == PRESENT).any(axis=1) if meaning.thresholds is None else (known != UNKNOWN).any(axis=1)
        sums.num_images += len(batch.good)
        sums.num_labelled += int(labelled.sum())

        def count(key: tuple[str, int], answers: Said) -> None:
            sums.wrong[key] += int((_wrong(answers, known) & labelled).sum())
            sums.flips[key] += int((answers != clean).any(axis=1).sum())

        count(CLEAN, clean)
        shown = {"clean": [_words(clean[0], names)]}
        for corruption in self._corruptions:
            shown[corruption.name] = []
            for severity in self._task.severities:
                answers = said(_spoilt(batch, corruption, severity))
                count((corruption.name, severity), answers)
                shown[corruption.name].append(_words(answers[0], names))
        if sums.example is None:
            first = batch.good[0]
            truth = _words(known[0] == PRESENT, names) if labelled[0] else None
            sums.example = {
                "image_id": str(first.image_id), "uri": first.uri, "segment": first.segment, "position": first.position,
                "label": truth, "said": shown, "key": _key(first),
            }  # fmt: skip

    def _known(self, rows: list[Row]) -> npt.NDArray[np.int8]:
        """Return what is known of the rows, int8 [B, K]; of an image with one label the others are absent."""
        many = self._task.input.multi_label
        sets = [
            LabelSet(row.labels, row.absent)
            if row.labels is not None
            else LabelSet((row.label,))
            if row.label is not None and not many
            else LabelSet((), ())
            for row in rows
        ]
        return LabelMatrix(sets, self._labeller.classes)[np.arange(len(rows))]

    def _chosen(self, shard: Shard, batch_size: int) -> list[Row]:
        """Return the images of the split with the lowest hashes, at most so many: the same at every run, of all parts of it."""
        return heapq.nsmallest(self._task.images_per_shard, self._candidates(shard, batch_size), key=_key)

    def _candidates(self, shard: Shard, batch_size: int) -> Iterator[Row]:
        for rows in self._reader.read(shard, batch_size):
            yield from (row for row in rows if row.data is not None and row.side(self._task.split) in self._task.splits)


def _spoilt(batch: Batch, corruption: Corruption, severity: int) -> Batch:
    pixels = [corruption(p, severity, _key(row)) for p, row in zip(batch.pixels, batch.good, strict=True)]
    return replace(batch, pixels=np.stack(pixels))


def _key(row: Row) -> str:
    return row.content_hash or ""


def _wrong(answers: Said, known: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Return which images have a mistake among what is known of them, [B]."""
    return np.asarray(((answers != (known == PRESENT)) & (known != UNKNOWN)).any(axis=1))


def _words(answers: npt.NDArray[np.bool_], names: tuple[str, ...]) -> str:
    return ", ".join(names[k] for k in np.flatnonzero(answers)) or "no label"
