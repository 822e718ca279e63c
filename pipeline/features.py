"""Making example tables: every image is decoded once, and a frozen backbone, if there is one, runs over it once."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import layout
from pipeline.allocator import keep_freed_memory
from pipeline.batches import Batch, decoded_batches, decoder
from pipeline.engine import TorchEngine
from pipeline.examples import examples_schema
from pipeline.heads import split_head
from pipeline.pretrained import blueprint, load_pretrained
from pipeline.rows import ShardReader
from pipeline.shards import Shard
from pipeline.sizes import check_head, check_size
from pipeline.storage import Storage, open_storage
from pipeline.tables import write_table
from pipeline.tasks import ExamplesTask
from pipeline.transforms import Transforms


class Extractor:
    """Writes the example tables of shards, with features when the task has a backbone."""

    def __init__(self, task: ExamplesTask) -> None:
        self._task = task
        self._store, self._reader = open_storage(task.store, task.storage), ShardReader(task.input, task.storage)
        check_task(task, self._store)
        self._engine, self._size, self._transforms = None, 0, Transforms(8, 8)
        if task.backbone:
            given = load_pretrained(self._store, task.model, task.storage, task.input.size_px)
            self._transforms, self._size = given.transforms, split_head(given.net)
            self._engine = TorchEngine(given.net, self._transforms)
            if self._engine.device.type == "cpu":
                keep_freed_memory()

    def __call__(self, shard: Shard, halvings: int = 0) -> int:
        """Write one shard's table and return its number of rows: its readable images. Batches are halved so often."""
        decode_row = decoder(self._transforms, self._task.input.max_pixels)
        chunks = self._reader.read(shard, max(1, self._task.batch_size >> halvings))
        batches = decoded_batches(chunks, decode_row, self._transforms, self._task.threads)
        schema = examples_schema(self._size, self._task.input.labels_column is not None)
        pieces = [self._table(batch, schema) for batch in batches if batch.good]
        table = pa.concat_tables(pieces) if pieces else schema.empty_table()
        write_table(self._store, layout.features(self._task.dataset, self._task.name, shard.id), table)
        return int(table.num_rows)

    def _table(self, batch: Batch, schema: pa.Schema) -> pa.Table:
        columns: dict[str, Any] = {
            name: pa.array([getattr(row, name) for row in batch.good], schema.field(name).type)
            for name in schema.names
            if name != "features"
        }
        if self._engine is not None:
            features = self._engine(batch.pixels).astype(np.float32)
            columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), self._size)
        return pa.table(columns, schema=schema)


def check_task(task: ExamplesTask, store: Storage) -> None:
    """Raise ModelError when the network that the examples are for does not take them."""
    train, builder = task.train, task.model.builder
    if train.mode == "none":
        return
    arguments, transforms = blueprint(store, task.model, task.input.size_px)
    check_size(builder, arguments, transforms, train.fewest_images(train.batch_size, train.workers.max))
    if train.mode != "scratch":
        check_head(builder, arguments, transforms)
