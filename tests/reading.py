"""Reading an input as labellers do: list, plan, read every shard."""

from pipeline.rows import Row, ShardReader
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Shard, make_shards
from pipeline.sources import list_source, open_source, segments_of

PLAIN = StorageSettings()


def shards_of(settings: InputSettings, storage: StorageSettings = PLAIN) -> list[Shard]:
    listing, (folder, _) = list_source(settings, storage), open_source(settings, storage)
    segments = [s for file in listing.files for s in segments_of(file, listing.format, settings, folder)]
    return list(make_shards(segments, settings.shard_images))


def read(settings: InputSettings, storage: StorageSettings = PLAIN, batch_size: int = 64) -> list[Row]:
    """Return all rows of the input, after checking that they are exactly the planned ones."""
    reader, rows = ShardReader(settings, storage), []
    for shard in shards_of(settings, storage):
        batches = list(reader.read(shard, batch_size))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        found = [row for batch in batches for row in batch]
        assert len(found) == shard.num_images
        assert all((row.data is None) != (row.error is None) for row in found)
        rows += found
    assert len({(row.segment.rpartition("#")[0], row.position) for row in rows}) == len(rows)
    return rows


def values(rows: list[Row], name: str) -> list:
    return [getattr(row, name) for row in rows]


def reasons(rows: list[Row]) -> list[str | None]:
    return [row.error.reason if row.error else None for row in rows]


def columns(count: int, first: int = 0) -> dict:
    numbers = range(first, first + count)
    return {"id": list(numbers), "image": [b"%d" % i for i in numbers], "label": [f"l{i % 3}" for i in numbers]}
