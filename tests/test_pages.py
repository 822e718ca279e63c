import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.pages import Page, pages_of


def chunk(column: pa.Array, **options) -> tuple[memoryview, int, int, object]:
    """Return a file of one column, and where its only chunk lies."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"c": column}), sink, **options)
    meta = pq.ParquetFile(sink).metadata.row_group(0).column(0)
    start = min(offset for offset in (meta.dictionary_page_offset, meta.data_page_offset) if offset)
    return memoryview(sink.getvalue()), start, meta.total_compressed_size, meta


def pages(column: pa.Array, **options) -> list[Page]:
    data, start, size, meta = chunk(column, **options)
    found = list(pages_of(lambda offset, n: data[offset : offset + n], start, size))
    assert sum(page.num_values for page in found if not page.is_dictionary) == meta.num_values
    assert 0 <= meta.total_uncompressed_size - sum(page.inflated_bytes for page in found) < 1000 * len(found), "headers"
    return found


TEXT = pa.array([f"text {i}" * 40 for i in range(5000)])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("statistics", [True, False])
def test_the_pages_add_up_to_the_chunk(version, compression, statistics):
    options = {"data_page_version": version, "compression": compression, "write_statistics": statistics}
    plain = pages(TEXT, use_dictionary=False, data_page_size=10_000, write_batch_size=10, **options)
    assert len(plain) > 50
    assert not any(page.is_dictionary or page.repeats for page in plain)
    assert all(page.decoded_bytes(10**6) == page.inflated_bytes < 20_000 for page in plain)


def test_a_value_of_a_dictionary_may_repeat_at_no_cost():
    large = bytes(range(256)) * 4000
    first, *data = pages(pa.DictionaryArray.from_arrays(pa.array(np.zeros(9000, np.int32)), pa.array([large])))
    assert first.is_dictionary
    assert first.num_values == 1
    assert all(page.repeats and page.value_bytes == first.inflated_bytes >= len(large) for page in data)
    assert data[0].decoded_bytes(64) >= 64 * len(large)
    assert data[0].inflated_bytes < 100_000


def test_so_may_a_shared_prefix():
    (page,) = pages(
        pa.array([b"x" * 50_000] * 200), use_dictionary=False, column_encoding={"c": "DELTA_BYTE_ARRAY"}, compression="none"
    )  # fmt: skip
    assert page.inflated_bytes < 60_000
    assert page.decoded_bytes(1000) >= 200 * 50_000


def test_a_page_says_what_it_inflates_to():
    page = pages(pa.array([bytes(10_000_000)]), use_dictionary=False, compression="zstd", write_statistics=False)[-1]
    assert page.compressed_bytes < 20_000
    assert page.inflated_bytes >= 10_000_000


@pytest.mark.parametrize("damage", [b"\x00", b"\xff" * 40, b"\x1c" * 100_000, b"\x19\xf5\xff\xff\xff\xff\x0f", b""])
def test_damage_ends_the_walk(damage):
    assert list(pages_of(lambda offset, n: memoryview(damage)[offset : offset + n], 0, 10**9)) == []


def test_every_cut_and_every_flipped_byte_ends_or_goes_on_but_never_fails():
    data, start, size, _ = chunk(TEXT, data_page_size=1000, write_batch_size=10)
    for at in range(start, start + 400):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        view = memoryview(broken)
        list(pages_of(lambda offset, n, view=view: view[offset : offset + n], start, size))
        list(pages_of(lambda offset, n, view=view, at=at: view[:at][offset : offset + n], start, size))
