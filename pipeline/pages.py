"""Parquet page headers: what a column chunk inflates to, known before any of it is inflated.

The footer's sizes are a claim that nothing checks, and Arrow allocates whatever a page's header says. So the headers are
read first (Thrift's compact protocol; the names are those of parquet.thrift). A value never spans two pages.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DICTIONARY_PAGE = 2
# Encodings whose values may each be as large as a dictionary or a page: PLAIN_DICTIONARY, RLE_DICTIONARY, DELTA_BYTE_ARRAY.
BY_DICTIONARY, BY_PREFIX = (2, 8), (7,)
HEADER_BYTES = 64 << 10  # headers hold statistics: a few values
FIXED_BYTES = {1: 0, 2: 0, 3: 1, 7: 8}  # of the types true, false, byte and double

Read = Callable[[int, int], memoryview]


@dataclass(frozen=True)
class Page:
    """One page: `value_bytes` bounds a single value, which dictionaries and shared prefixes may repeat at no cost."""

    is_dictionary: bool
    num_values: int
    compressed_bytes: int
    inflated_bytes: int
    value_bytes: int
    repeats: bool

    def decoded_bytes(self, num_values: int) -> int:
        """Return what that many values of the page, or all when it has fewer, take at most."""
        return min(num_values, self.num_values) * self.value_bytes if self.repeats else self.inflated_bytes


def pages_of(read: Read, start: int, size_bytes: int) -> Iterator[Page]:
    """Yield the pages of the column chunk at [start, start + size_bytes) of a file; ends early where it is damaged.

    Parameters
    ----------
    read : Callable[[int, int], bytes]
        Returns up to n bytes of the file from an offset: `read(offset, n)`.
    """
    offset, end, dictionary_bytes = start, start + size_bytes, 0
    while offset < end:
        try:
            header, length = _struct(read(offset, min(HEADER_BYTES, end - offset)), 0)
            kind, inflated, compressed = header[1], header[2], header[3]
            data = header.get(8) or header.get(5) or header.get(7) or {}
            encoding = data.get(4 if 8 in header else 2, 0)
            page = _page(kind == DICTIONARY_PAGE, data.get(1, 0), compressed, inflated, encoding, dictionary_bytes)
        except (IndexError, KeyError, TypeError, AttributeError, RecursionError):
            return  # Arrow finds the same damage, and says it
        if compressed < 0:
            return
        yield page
        if page.is_dictionary:
            dictionary_bytes = inflated
        offset += length + compressed


def _page(
    is_dictionary: bool, num_values: int, compressed: int, inflated: int, encoding: int, dictionary_bytes: int
) -> Page:
    repeats = not is_dictionary and encoding in (*BY_DICTIONARY, *BY_PREFIX)
    value_bytes = dictionary_bytes if encoding in BY_DICTIONARY else inflated
    return Page(is_dictionary, num_values, compressed, inflated, value_bytes, repeats)


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by number, and where it ends; text is skipped."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        delta, kind = head >> 4, head & 15
        if delta:
            number += delta
        else:
            number, at = _whole(data, at)
        fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in FIXED_BYTES:
        return None, at + FIXED_BYTES[kind]
    if kind in (4, 5, 6):
        return _whole(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind in (9, 10):
        return _list(data, at)
    if kind == 12:
        return _struct(data, at)
    raise KeyError(kind)  # maps do not occur in page headers


def _list(data: memoryview, at: int) -> tuple[None, int]:
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(data, at)
    for _ in range(count):
        data[at]  # a count that lies ends with the data
        _, at = (None, at + 1) if kind in (1, 2) else _value(data, at, kind)
    return None, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _whole(data: memoryview, at: int) -> tuple[int, int]:
    """Return a signed number, which stands zigzag: 0, -1, 1, -2, ..."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
