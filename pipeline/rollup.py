"""Many small documents in one file, so that one request reads them all. A cache, and it cannot lie.

Each document stands with the size and the version of the object that it was copied from, and is used only while a listing
shows exactly these. What was written since, or by another run, is read from its own object; so is everything when the
roll-up is damaged or gone. Two runs may write it one after the other: the last one wins, and what it lacks is read singly.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError
from pipeline.refusals import first_line, printable
from pipeline.storage import Entry, Storage, join

AT_ONCE = 1000  # documents that are unpacked at a time: a few MB
SCHEMA = pa.schema(
    [("path", pa.string()), ("size_bytes", pa.int64()), ("version", pa.string()), ("document", pa.binary())],
    metadata={"nightshift.schema": "rollup/1"},
)


def write_rollup(storage: Storage, path: str, documents: Iterable[tuple[Entry, bytes]]) -> None:
    """Replace the roll-up at `path` by one of these objects and their content, drawn as they are packed."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        drawn = iter(documents)
        while some := list(islice(drawn, AT_ONCE)):
            rows = [(*entry.identity, document) for entry, document in some]
            columns = [
                pa.array(values, kind.type) for values, kind in zip(zip(*rows, strict=True), SCHEMA, strict=True)
            ]
            writer.write_table(pa.table(columns, SCHEMA))
    storage.write(path, buffer.getvalue())


def read_rollup(storage: Storage, path: str, listed: Mapping[str, Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Yield the listed objects whose present content the roll-up holds, by one read; nothing more where it is damaged.

    Parameters
    ----------
    listed : Mapping[str, Entry]
        The objects as a listing shows them now, by path.
    """
    try:
        data = storage.read(path)
    except NotFoundError:
        return
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        if file.schema_arrow != SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of a roll-up")
        for batch in file.iter_batches(AT_ONCE):
            for name, size_bytes, version, document in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                entry = listed.get(name)
                if entry and entry.identity == (name, size_bytes, version):
                    yield entry, document
    except (pa.ArrowException, OSError) as error:
        logging.getLogger("nightshift").warning(
            f"{printable(join(storage.url, path))}: a damaged roll-up of the ledger ({first_line(error)}); its entries are read one by "
            "one, and the next run that labels replaces it"
        )
