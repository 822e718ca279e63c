import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceChangedError, StorageError
from pipeline.rowgroups import Group, GroupReader
from pipeline.shards import Segment

MB = 1 << 20


class Watched(io.BytesIO):
    """A file that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int = -1) -> bytes:
        at = self.tell()
        data = super().read(size)
        self.reads.append((at, len(data)))
        return data


def written(columns: dict, **options) -> Watched:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return Watched(sink.getvalue())


def segment(num_rows: int, first: int = 0, file_rows: int | None = None) -> Segment:
    return Segment("a.parquet", 1, "v", first, num_rows, file_rows or num_rows)


def images(count: int, size: int = 1000) -> list[bytes]:
    return [bytes([i % 256]) + os.urandom(size - 1) for i in range(count)]


@pytest.mark.parametrize("buffer_bytes", [20_000, 60_000, 300_000, 100 * MB])
@pytest.mark.parametrize("dictionary", [True, False])
def test_all_rows_come_in_order_whatever_fits(buffer_bytes, dictionary):
    data = images(500)
    file = written(
        {"i": data, "n": range(500)},
        row_group_size=70,
        write_batch_size=5,
        use_dictionary=dictionary,
        data_page_size=1500,
    )
    reader = GroupReader(file, "a.parquet", buffer_bytes)
    batches = list(reader.batches(reader.groups(segment(500)), ["i", "n"], 64))
    assert all(0 < batch.num_rows <= 64 for batch in batches)
    table = pa.Table.from_batches(batches)
    assert table["i"].to_pylist() == data
    assert table["n"].to_pylist() == list(range(500))


def test_groups_are_those_of_the_segment():
    reader = GroupReader(written({"n": range(50)}, row_group_size=10), "a.parquet", MB)
    assert reader.groups(segment(20, 20, 50)) == [Group(2, 20, 10), Group(3, 30, 10)]
    with pytest.raises(SourceChangedError, match="has 50 rows, planned were 60; plan again"):
        reader.groups(segment(20, 20, 60))


def test_statistics_leave_groups_out():
    reader = GroupReader(written({"n": range(50), "m": [None] * 50}, row_group_size=10), "a.parquet", MB)
    chosen = reader.groups(segment(50), [("n", ">=", 20), ("n", "<", 25)])
    assert [group.index for group in chosen] == [2]
    assert len(reader.groups(segment(50), [("n", "!=", 3)])) == 5


def test_the_groups_of_a_segment_take_few_requests_and_nothing_beside_them():
    """On an object store each read is a request; the first are the footer's."""
    file = written({"i": images(400, 5000), "n": range(400), "unused": images(400, 2000)}, row_group_size=10)
    reader = GroupReader(file, "a.parquet", 100 * MB)
    file.reads.clear()
    rows = sum(batch.num_rows for batch in reader.batches(reader.groups(segment(200, 100, 400)), ["i", "n"], 64))
    assert rows == 200
    assert len(file.reads) <= 2 * 20
    assert sum(size for _, size in file.reads) < 200 * (5000 + 2000) * 1.1


def test_of_a_group_that_does_not_fit_only_parts_are_in_memory():
    file = written({"i": images(4000, 5000)}, use_dictionary=False, data_page_size=50_000, write_batch_size=10)
    reader = GroupReader(file, "a.parquet", 4 * MB)
    before, most = pa.total_allocated_bytes(), 0
    for batch in reader.batches(reader.groups(segment(4000)), ["i"], 64):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert most < 8 * MB < 4000 * 5000
    assert max(size for _, size in file.reads) < 5 * MB


def test_what_repeats_is_decoded_in_small_steps():
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array([os.urandom(MB)]))
    reader = GroupReader(written({"i": values}), "a.parquet", 32 * MB)
    sizes = [batch.num_rows for batch in reader.batches(reader.groups(segment(2000)), ["i"], 64)]
    assert sum(sizes) == 2000
    assert max(sizes) == 4, (
        "a quarter of the buffer holds eight values of a little over 1 MB, so four in steps of halves"
    )


def test_a_small_value_a_million_times_is_nothing_special():
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array([b"small"]))
    reader = GroupReader(written({"i": values}), "a.parquet", 32 * MB)
    sizes = [batch.num_rows for batch in reader.batches(reader.groups(segment(1_000_000)), ["i"], 4096)]
    assert sum(sizes) == 1_000_000
    assert max(sizes) == 4096


def bomb(size_bytes: int, **options) -> Watched:
    return written({"i": [bytes(size_bytes)], "n": [1]}, compression="zstd", write_statistics=False, **options)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_page_that_inflates_beyond_all_measure_is_refused_with_file_group_and_sizes(dictionary):
    file = bomb(80 * MB, use_dictionary=dictionary)
    assert len(file.getvalue()) < MB
    reader = GroupReader(file, "s3://b/a.parquet", 16 * MB)
    words = r"s3://b/a.parquet: row group 0, column 'i': a page of 0\.\d MB inflates to 80\.0 MB, and at most 64\.0 MB \(4 x "
    with pytest.raises(StorageError, match=words + r"label.buffer_mb\).*smaller row groups or pages, or raise"):
        next(reader.batches(reader.groups(segment(1)), ["i"], 64))
    assert next(reader.batches(reader.groups(segment(1)), ["n"], 64)).num_rows == 1, "the other columns can be read"
    roomy = GroupReader(file, "a.parquet", 32 * MB)
    assert next(roomy.batches(roomy.groups(segment(1)), ["i"], 64)).num_rows == 1


def lying(file: Watched, size_bytes: int) -> bytes:
    """Return the file with a footer that says a hundredth of the size that its page inflates to."""
    data = file.getvalue()
    meta = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).total_uncompressed_size
    footer = int.from_bytes(data[-8:-4], "little")
    old, new = varint(meta * 2), varint(meta // 100 * 2)
    body, tail = data[: -8 - footer], data[-8 - footer : -8]
    assert old in tail
    assert meta >= size_bytes
    tail = tail.replace(old, new.ljust(len(old), b"\x00") if len(new) == len(old) else pad(new, len(old)))
    return body + tail + data[-8:]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pad(number: bytes, length: int) -> bytes:
    """Return the same number in more bytes: a varint may have leading zeros."""
    return bytes([*(byte | 0x80 for byte in number), *[0x80] * (length - len(number) - 1), 0])


READ = """
import resource, sys
sys.path.insert(0, {root!r})
import pyarrow as pa
from pipeline.errors import StorageError
from pipeline.rows import ShardReader
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.storage import FileStorage

entry = FileStorage({folder!r}).stat("a.parquet")
settings = InputSettings(url={folder!r}, image_column="i")
reader = ShardReader(settings, StorageSettings(), buffer_bytes=64 << 20)
shard = Shard((Segment(*entry.identity, 0, {rows}, {rows}),))
num_rows, most = 0, 0
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for rows in reader.read(shard):
        num_rows += len(rows)
        most = max(most, sum(len(row.data) for row in rows))
except StorageError as error:
    print("refused:", error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) >> 10
print(num_rows, most >> 20, grown)
"""


def read_apart(folder: Path, rows: int) -> tuple[str, int, int, int]:
    """Read in a process of its own; return what it said, the rows, and the MB of its longest list and of its growth."""
    root = str(Path(__file__).resolve().parents[1])
    code = READ.format(root=root, folder=str(folder), rows=rows)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    *words, last = ran.stdout.splitlines()
    num_rows, longest, grown = map(int, last.split())
    return "\n".join(words), num_rows, longest, grown


def test_an_honest_bomb_and_a_lying_one_are_refused_in_little_memory(tmp_path):
    honest = bomb(1500 * MB, use_dictionary=False)
    for data in (honest.getvalue(), lying(honest, 1500 * MB)):
        (tmp_path / "a.parquet").write_bytes(data)
        said, rows, _, grown = read_apart(tmp_path, 1)
        assert "inflates to 1,500.0 MB, and at most 256.0 MB" in said
        assert rows == 0
        assert grown < 100
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0).total_uncompressed_size < 16 * MB


def test_a_large_value_a_thousand_times_is_read_in_little_memory(tmp_path):
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([os.urandom(6 * MB)]))
    pq.write_table(pa.table({"i": values}), tmp_path / "a.parquet")
    said, rows, longest, grown = read_apart(tmp_path, 1000)
    assert (said, rows) == ("", 1000)
    assert longest <= 8
    assert grown < 300 < 64 * 6


def test_many_pages_of_zeros_are_read_in_little_memory(tmp_path):
    columns = {"i": [bytes(30 * MB)] * 60}
    pq.write_table(
        pa.table(columns), tmp_path / "a.parquet", compression="zstd", use_dictionary=False, write_batch_size=1
    )
    said, rows, longest, grown = read_apart(tmp_path, 60)
    assert (said, rows) == ("", 60)
    assert longest <= 30
    assert grown < 300 < 60 * 30
