"""Labelling one shard: read, decode, predict, write, commit. A plain function; who calls it where is not its business.

The order is the protocol: predictions and quarantine under the names that are the run's own, then the ledger entry,
which names them. A retry, a zombie or a second run repeats work and corrupts nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batches import Batch, Decoder, Result, decoded_batches, decoder
from pipeline.budget import Budget
from pipeline.calibration import NUM_PHOTOS, photos_of
from pipeline.classes import Classes
from pipeline.counts import Counts
from pipeline.engines import EXACT, Choice, open_engine
from pipeline.errors import ImageError, ModelError
from pipeline.ledger import LedgerEntry, commit
from pipeline.logits import Engine, Logits
from pipeline.manifest import Manifest, read_manifest
from pipeline.results import Answers, Results, best, said_of
from pipeline.rows import Row, ShardReader
from pipeline.shards import Shard
from pipeline.storage import Storage, open_storage
from pipeline.tables import write_table
from pipeline.tasks import LabelTask
from pipeline.transforms import Pixels, Transforms
from pipeline.workshop import this_node


class Predictor:
    """A bundle with an engine: answers for pixels. Without an engine it is the reference, and the bundle has its network."""

    def __init__(
        self,
        bundle: Manifest,
        top_k: int,
        engine: Engine | None = None,
        choice: Choice = EXACT,
        embeddings: bool = False,
    ) -> None:
        self.bundle, self.transforms, self.choice = bundle, bundle.architecture.transforms, choice
        self.engine = engine or _reference(bundle)
        self.meaning, self._embeddings = bundle.meaning, embeddings
        self._num_classes = self.meaning.num_classes
        self._top_k = min(top_k, self._num_classes)

    def used(self) -> dict[str, Any]:
        """Return the engine, how it was chosen and how well it agrees, for the ledger."""
        return self.engine.describe() | self.choice.describe()

    @cached_property
    def embedding_size(self) -> int:
        """What the engine answers besides logits, 0 without embeddings; it is asked for a black image."""
        side, channels = self.transforms.crop_px, self.transforms.num_channels
        black = np.zeros((1, side, side, channels), np.uint8)
        return self.engine(black).shape[1] - self._num_classes if self._embeddings else 0

    def logits(self, batch: Batch) -> Logits:
        """Return float32 [B, K]; ModelError when the network answers with anything but finite numbers."""
        return self._output(batch)[:, : self._num_classes]

    def _output(self, batch: Batch) -> Logits:
        if not batch.good:
            return np.empty((0, self._num_classes + self.embedding_size), np.float32)
        output = self.engine(batch.pixels)
        finite = np.isfinite(output).all(axis=1)
        if not finite.all():
            raise ModelError(
                f"bundle {self.bundle.id} answers {batch.good[int(finite.argmin())].uri} with NaN or infinite numbers, "
                "expected finite ones: its training diverged or its weights are damaged. Train again (perhaps with a "
                "lower train.learning_rate), or name another version in model.version"
            )
        return output

    def answers(self, batch: Batch) -> Answers:
        """Return the best classes of each image, and its embedding where that is asked for."""
        output = self._output(batch)
        probabilities = self.meaning.probabilities(output).astype(np.float32)
        answers = best(probabilities, self._top_k)
        if self.meaning.thresholds is not None:
            answers = replace(answers, said=said_of(probabilities, self.meaning.said(probabilities)))
        return replace(answers, embeddings=output[:, self._num_classes :]) if self._embeddings else answers

    def results(self) -> Results:
        """Return where the answers of a shard are gathered."""
        names, multi_label = self.bundle.architecture.classes.names, self.meaning.thresholds is not None
        return Results(self.bundle.id, names, self.embedding_size, multi_label)


class Labeller:
    """Labels shards with one model, which is opened once; several threads may call it at a time."""

    def __init__(self, task: LabelTask) -> None:
        self._task = task
        self._store = open_storage(task.store, task.storage)
        self._manifest = read_manifest(self._store, task.generation.model, task.version, task.builder)
        source, label = task.input.without_truth(), task.label
        self._reader = ShardReader(source, task.storage, label.columns, label.buffer_mb << 20)
        self._budget = Budget(label.buffer_mb << 20)
        self._opening = Lock()
        self._predictor: Predictor | None = None

    def __call__(self, shard: Shard, halvings: int = 0) -> LedgerEntry:
        """Label and commit one shard, in batches halved so often: memory ran out with larger ones."""
        task = replace(self._task, label=self._task.label.halved(halvings))
        return label_shard(shard, task, self._store, self._reader, self.predictor(shard), self._budget)

    @property
    def classes(self) -> Classes:
        """What the model can say."""
        return self._manifest.architecture.classes

    def predictor(self, shard: Shard) -> Predictor:
        """Return what answers; a model that has no photos to compare engines with takes the shard's first."""
        with self._opening:
            if self._predictor is not None:
                return self._predictor
            transforms, label = self._manifest.architecture.transforms, self._task.label
            photos = partial(_photos, self._reader, shard, decoder(transforms, self._task.input.max_pixels))
            decode = partial(decode_photos, transforms, self._task.input.max_pixels)
            node = this_node(self._task.threads)
            engine, choice = open_engine(self._store, self._manifest, label, node, decode, photos)
            predictor = Predictor(self._manifest, label.top_k, engine, choice, label.embeddings)
            if choice.agreement or label.exact:  # else the next shard may have photos to compare with
                self._predictor = predictor
            return predictor


def label_shard(
    shard: Shard,
    task: LabelTask,
    store: Storage,
    reader: ShardReader,
    predictor: Predictor,
    budget: Budget | None = None,
) -> LedgerEntry:
    """Label every live row of a shard, write the results, and commit them.

    `budget` is of all shards that this process labels at the same time.

    Raises
    ------
    SourceChangedError, TransientError
        When a file is another version, or the storage did not answer: nothing is committed.
    IntegrityError
        When rows in differ from rows out.
    """
    seconds: dict[str, float] = defaultdict(float)
    results = predictor.results()
    decode_row = hashing(decoder(predictor.transforms, task.input.max_pixels, predictor.choice.exact_decoding, budget))
    chunks = reader.read(shard, task.label.batch_size)
    for batch in decoded_batches(chunks, decode_row, predictor.transforms, task.threads, budget):
        started = perf_counter()
        results.add(batch, predictor.answers(batch))
        seconds["storage"] += batch.storage_s
        seconds["decode"] += batch.decode_s
        seconds["engine"] += perf_counter() - started
    return _commit(shard, task, store, reader, results, seconds, predictor)


def hashing(decode_row: Decoder) -> Decoder:
    """Return a decoder that hashes a row's bytes as well: in the decoder's thread, where nobody waits for it."""

    def decode_and_hash(row: Row) -> Result:
        _ = row.content_hash  # which the row keeps
        return decode_row(row)

    return decode_and_hash


def answer(predictor: Predictor, path: str, data: bytes, max_pixels: int, exact: bool = True) -> dict[str, Any]:
    """Return the prediction row of one image outside any data set; ImageError when it is bad."""
    row = Row(path, path, "", 0, data)
    decode_row = decoder(predictor.transforms, max_pixels, exact)
    batch = next(decoded_batches(iter([[row]]), decode_row, predictor.transforms, 1))
    for _, error in batch.bad:
        raise error
    results = predictor.results()
    results.add(batch, predictor.answers(batch))
    prediction: dict[str, Any] = results.labels(pa.string()).to_pylist()[0]
    return prediction


def _reference(bundle: Manifest) -> Engine:
    from pipeline.bundle import Bundle
    from pipeline.engine import TorchEngine

    assert isinstance(bundle, Bundle)
    return TorchEngine(bundle.net, bundle.architecture.transforms)


def _photos(reader: ShardReader, shard: Shard, decode_row: Decoder) -> Iterator[bytes]:
    rows = reader.read(shard, NUM_PHOTOS)
    return photos_of(rows, lambda row: not isinstance(decode_row(row), ImageError))


def decode_photos(transforms: Transforms, max_pixels: int, photos: list[bytes], exact: bool) -> Pixels:
    """Decode photos, leaving out what does not decode: uint8 [B, H, W, C]."""
    decode_row = decoder(transforms, max_pixels, exact)
    rows = [Row("", "", "", position, photo) for position, photo in enumerate(photos)]
    return next(decoded_batches(iter([rows]), decode_row, transforms, 1)).pixels


def _commit(
    shard: Shard, task: LabelTask, store: Storage, reader: ShardReader, results: Results, seconds: dict[str, float],
    predictor: Predictor,
) -> LedgerEntry:  # fmt: skip
    started, id_type, extra = perf_counter(), reader.id_type(shard), reader.extra_fields(shard)
    segments = _count_segments(shard, reader.matched(shard), results)
    asked, run_id, quarantine = task.generation, task.run_id, None
    labels = write_table(store, asked.labels(shard.id, run_id), results.labels(id_type, extra))
    if results.rejected:
        quarantine = write_table(store, asked.quarantine(shard.id, run_id), results.quarantine(id_type, extra))
    seconds["write"] = perf_counter() - started
    entry = LedgerEntry(
        shard.id, task.run_id, segments, labels, quarantine,
        reasons=dict(Counter(row["reason"] for row in results.rejected)),
        classes=results.count_classes(),
        confidences=results.count_confidences(),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        used=predictor.used(),
    )  # fmt: skip
    return commit(store, task.generation, entry)


def _count_segments(shard: Shard, matched: dict[str, int], results: Results) -> dict[str, list[int]]:
    """Return [images in, labelled, quarantined] per live segment, after checking that they balance with the input.

    `matched` are the rows that the filter takes: without one those that were planned.
    """
    good, bad = results.count_segments()
    for segment in shard.live:
        counts = Counts(matched[segment.key], good[segment.key], bad[segment.key])
        counts.check(f"shard {shard.id}, segment {segment.key}")
    return {segment.key: [matched[segment.key], good[segment.key], bad[segment.key]] for segment in shard.live}
