"""Which shards and which rows a run works on: `input.filter`, parted into files and rows.

Predicates on Hive partitions choose shards of a plan that always covers the whole input: a backfill. Predicates on the
columns of tables choose rows, so they belong to what was asked and stand in the generation's fingerprint.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipeline.partitions import partition_folders, partition_names, partitions_of
from pipeline.predicates import matching
from pipeline.settings import InputSettings, Predicate
from pipeline.shards import Shard


def selected(shards: Sequence[Shard], settings: InputSettings) -> list[Shard]:
    """Return the shards with a live segment in the partitions that `input.filter` takes; all without such predicates."""
    names = partition_names(live_paths(shards))
    predicates = [predicate for predicate in settings.filter if predicate[0] in names]
    if not predicates:
        return list(shards)
    verdicts: dict[tuple[str, ...], bool] = {}
    chosen = []
    for shard in shards:
        places = {partition_folders(segment.path): segment.path for segment in shard.live}
        for folders, path in places.items():
            if folders not in verdicts:
                verdicts[folders] = _holds(path, predicates)
        if any(verdicts[folders] for folders in places):
            chosen.append(shard)
    return chosen


def row_settings(settings: InputSettings, paths: Iterable[str]) -> InputSettings:
    """Return the input with the predicates on rows alone: what a generation is named after, and what readers apply.

    Parameters
    ----------
    paths : Iterable[str]
        Of the whole input: a name that is a partition of any file is one for all of them.
    """
    if not settings.filter:
        return settings
    names = partition_names(paths)
    return settings.model_copy(update={"filter": tuple(p for p in settings.filter if p[0] not in names)})


def live_paths(shards: Iterable[Shard]) -> set[str]:
    """Return the files that live segments lie in."""
    return {segment.path for shard in shards for segment in shard.live}


def _holds(path: str, predicates: Iterable[Predicate]) -> bool:
    values = partitions_of(path)
    return all(matching(pa.array([values.get(p[0])], pa.string()), p)[0].as_py() for p in predicates)
