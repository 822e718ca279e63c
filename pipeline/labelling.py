"""Labelling one shard: read, decode, predict, write, commit. A plain function; who calls it where is not its business.

The order is the protocol: predictions and quarantine under their fixed names, then the ledger entry. A retry, a zombie
or a second run repeats work and corrupts nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batches import Batch, Decoder, decoded_batches, decoder
from pipeline.calibration import NUM_PHOTOS, photos_of
from pipeline.counts import Counts
from pipeline.engines import EXACT, Choice, open_engine
from pipeline.errors import ImageError, ModelError
from pipeline.ledger import LedgerEntry, commit
from pipeline.logits import Engine, log_softmax
from pipeline.manifest import Manifest, read_manifest
from pipeline.rows import Row, ShardReader
from pipeline.schema import prediction_schema, quarantine_schema, table_of
from pipeline.shards import Shard
from pipeline.storage import Storage, open_storage
from pipeline.tables import write_table
from pipeline.tasks import LabelTask
from pipeline.transforms import Pixels, Transforms
from pipeline.workshop import this_node

CONFIDENCE_BINS = 20


class Predictor:
    """A bundle with an engine: answers for pixels. Without an engine it is the reference, and the bundle has its network."""

    def __init__(self, bundle: Manifest, top_k: int, engine: Engine | None = None, choice: Choice = EXACT) -> None:
        self.bundle, self.transforms, self.choice = bundle, bundle.architecture.transforms, choice
        self.engine = engine or _reference(bundle)
        self._top_k = min(top_k, len(bundle.architecture.classes))

    def used(self) -> dict[str, Any]:
        """Return the engine, how it was chosen and how well it agrees, for the ledger."""
        return self.engine.describe() | self.choice.describe()

    def log_probabilities(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Return float64 [B, K]; ModelError when the network answers with anything but finite numbers."""
        if not batch.good:
            return np.empty((0, len(self.bundle.architecture.classes)))
        logits = self.engine(batch.pixels)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise ModelError(
                f"bundle {self.bundle.id} answers {batch.good[int(finite.argmin())].uri} with NaN or infinite numbers, "
                "expected finite ones: its training diverged or its weights are damaged. Train again (perhaps with a "
                "lower train.learning_rate), or name another version in model.version"
            )
        return log_softmax(logits, self.bundle.temperature)

    def probabilities(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return float32 [B, K]; each row sums to 1."""
        return np.exp(self.log_probabilities(batch)).astype(np.float32)

    def top(self, probabilities: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return the best classes of one image [K], best first; ties go to the lower index."""
        order = np.argsort(-probabilities, kind="stable")[: self._top_k]
        names = self.bundle.architecture.classes.names
        return [{"label": names[i], "class_index": int(i), "probability": float(probabilities[i])} for i in order]


class Labeller:
    """Labels shards with one model, which is opened once; several threads may call it at a time."""

    def __init__(self, task: LabelTask) -> None:
        self._task = task
        self._store = open_storage(task.store, task.storage)
        self._manifest = read_manifest(self._store, task.generation.model, task.version)
        self._reader = ShardReader(task.input.without_truth(), task.storage)
        self._opening = Lock()
        self._predictor: Predictor | None = None

    def __call__(self, shard: Shard) -> LedgerEntry:
        """Label and commit one shard."""
        return label_shard(shard, self._task, self._store, self._reader, self.predictor(shard))

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
            predictor = Predictor(self._manifest, label.top_k, engine, choice)
            if choice.agreement or label.exact:  # else the next shard may have photos to compare with
                self._predictor = predictor
            return predictor


def label_shard(
    shard: Shard, task: LabelTask, store: Storage, reader: ShardReader, predictor: Predictor
) -> LedgerEntry:
    """Label every live row of a shard, write the results, and commit them.

    Raises
    ------
    SourceChangedError, TransientError
        When a file is another version, or the storage did not answer: nothing is committed.
    IntegrityError
        When rows in differ from rows out.
    """
    seconds: dict[str, float] = defaultdict(float)
    labelled: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    decode_row = decoder(predictor.transforms, task.input.max_pixels, predictor.choice.exact_decoding)
    chunks = reader.read(shard, task.label.batch_size)
    for batch in decoded_batches(chunks, decode_row, predictor.transforms, task.threads):
        started = perf_counter()
        probabilities = predictor.probabilities(batch)
        labelled += [
            _prediction(row, size, predictor.top(p), predictor.bundle.id)
            for row, size, p in zip(batch.good, batch.sizes, probabilities, strict=True)
        ]
        rejected += [_rejection(row, error) for row, error in batch.bad]
        seconds["input"] += batch.wait_s
        seconds["engine"] += perf_counter() - started
    return _commit(shard, task, store, reader, labelled, rejected, seconds, predictor)


def answer(predictor: Predictor, path: str, data: bytes, max_pixels: int) -> dict[str, Any]:
    """Return the prediction row of one image outside any data set; ImageError when it is bad."""
    row = Row(path, path, "", 0, data)
    decode_row = decoder(predictor.transforms, max_pixels)
    batch = next(decoded_batches(iter([[row]]), decode_row, predictor.transforms, 1))
    for _, error in batch.bad:
        raise error
    return _prediction(row, batch.sizes[0], predictor.top(predictor.probabilities(batch)[0]), predictor.bundle.id)


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
    shard: Shard, task: LabelTask, store: Storage, reader: ShardReader,
    labelled: list[dict[str, Any]], rejected: list[dict[str, Any]], seconds: dict[str, float], predictor: Predictor,
) -> LedgerEntry:  # fmt: skip
    started, id_type = perf_counter(), reader.id_type(shard)
    segments = _count_segments(shard, labelled, rejected)
    labels = write_table(store, task.generation.labels(shard.id), table_of(labelled, prediction_schema(id_type)))
    quarantine = (
        write_table(store, task.generation.quarantine(shard.id), table_of(rejected, quarantine_schema(id_type)))
        if rejected
        else None
    )
    seconds["write"] = perf_counter() - started
    bins = np.histogram([row["confidence"] for row in labelled], CONFIDENCE_BINS, (0, 1))[0]
    entry = LedgerEntry(
        shard.id, task.run_id, segments, labels, quarantine,
        reasons=dict(Counter(row["reason"] for row in rejected)),
        classes={str(index): n for index, n in Counter(row["class_index"] for row in labelled).items()},
        confidences=bins.tolist(),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        used=predictor.used(),
    )  # fmt: skip
    commit(store, task.generation, entry)
    return entry


def _count_segments(
    shard: Shard, labelled: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> dict[str, list[int]]:
    """Return [images in, labelled, quarantined] per live segment, after checking that they balance with the plan."""
    good, bad = Counter(row["segment"] for row in labelled), Counter(row["segment"] for row in rejected)
    for segment in shard.live:
        Counts(segment.num_rows, good[segment.key], bad[segment.key]).check(f"shard {shard.id}, segment {segment.key}")
    return {segment.key: [segment.num_rows, good[segment.key], bad[segment.key]] for segment in shard.live}


def _prediction(row: Row, size: tuple[int, int], top: list[dict[str, Any]], model: str) -> dict[str, Any]:
    return {
        "image_id": row.image_id, "uri": row.uri, "label": top[0]["label"], "class_index": top[0]["class_index"],
        "confidence": top[0]["probability"], "top_k": top, "width": size[0], "height": size[1], "model": model,
        "content_hash": row.content_hash, "segment": row.segment,
    }  # fmt: skip


def _rejection(row: Row, error: ImageError) -> dict[str, Any]:
    cause = type(error.__cause__ or error).__name__
    return {
        "image_id": row.image_id, "uri": row.uri, "stage": error.stage, "reason": error.reason, "error_type": cause,
        "message": error.message, "content_hash": row.content_hash, "segment": row.segment,
    }  # fmt: skip
