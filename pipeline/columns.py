"""The types of input columns that are written out again: one that holds the values of all files of a shard."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.partitions import partitions_of
from pipeline.planned import open_planned
from pipeline.refusals import first_line
from pipeline.shards import Shard
from pipeline.sources import is_parquet, value_type
from pipeline.storage import Storage


def common_fields(folder: Storage, shard: Shard, names: Sequence[str]) -> list[pa.Field]:
    """Return the columns of these names as all live files of a shard can be written; StorageError when no type does."""
    files = dict.fromkeys((s.path, s.version) for s in shard.live) if names else {}  # a tombstoned one may be gone
    schemas = {path: _types(folder, path, version, names) for path, version in files}
    return [_one_type(shard, name, {path: types[name] for path, types in schemas.items()}) for name in names]


def _types(folder: Storage, path: str, version: str, names: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the types of columns in one file: Hive partitions and CSV columns are text."""
    partitions = partitions_of(path)
    if not is_parquet(path) or partitions.keys() >= set(names):
        return dict.fromkeys(names, pa.string())
    with open_planned(folder, path, version) as handle:
        schema = pq.read_schema(handle)
    return {n: pa.string() if n in partitions else value_type(schema.field(n).type) for n in names}


def _one_type(shard: Shard, name: str, kinds: Mapping[str, pa.DataType]) -> pa.Field:
    """Return the column with the type that holds the values of all files, by path."""
    schemas = [pa.schema([(name, kind)]) for kind in kinds.values()]
    try:
        return pa.unify_schemas(schemas or [pa.schema([(name, pa.string())])], promote_options="permissive").field(0)
    except pa.ArrowTypeError as error:
        raise StorageError(
            f"shard {shard.id}: column {name!r} has other types in other files ({first_line(error)}), "
            f"from {schemas[0].field(0).type} in {next(iter(kinds))} on; write the files with one type of it"
        ) from error
