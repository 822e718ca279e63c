"""What the input holds: files of one format, cut into segments. Reads listings and footers, never image bytes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.errors import EmptyInputError, InputError, NotFoundError, StorageError
from pipeline.predicates import is_text, matching
from pipeline.refusals import first_line, printable
from pipeline.selection import row_settings
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Segment
from pipeline.storage import Entry, Storage, join, open_storage, scheme_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CSV_BLOCK_BYTES = 16 << 20  # no row may be longer
PASSED = "label.columns"  # the key that names columns to pass through
SUFFIXES = {"parquet": (".parquet", ".pq"), "csv": (".csv",), "images": IMAGE_SUFFIXES}


@dataclass(frozen=True)
class Listing:
    """The input's files of one format, in name order, and how many others lay between them."""

    format: str
    files: tuple[Entry, ...]
    ignored: int


def dataset_name(settings: InputSettings) -> str:
    """Return the data set's name in the store: `input.name`, else the last part of the URL without suffix."""
    if settings.name:
        return settings.name
    last = settings.url.rstrip("/").rsplit("/", 1)[-1]
    for suffixes in SUFFIXES.values():
        for suffix in suffixes:
            last = last.removesuffix(suffix)
    return last


def open_source(settings: InputSettings, storage: StorageSettings) -> tuple[Storage, str]:
    """Return the input's folder, and the name of the one file in it when the URL is a file, else an empty string."""
    url = settings.url.rstrip("/")
    if url.lower().endswith(tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)):
        folder, _, name = url.rpartition("/")
        whole = open_storage(url, storage)
        # Spark calls its folders x.parquet. HTTP servers have no listing to ask.
        if scheme_of(url) in ("http", "https") or next(iter(whole.list()), None) is None:
            return open_storage(folder or "/", storage), name
        return whole, ""
    return open_storage(url, storage), ""


def list_source(settings: InputSettings, storage: StorageSettings) -> Listing:
    """List the input and find out its format. Raises as `listed` and `listing_of` do."""
    return listing_of(settings, list(listed(settings, storage)))


def listed(settings: InputSettings, storage: StorageSettings) -> Iterator[Entry]:
    """Yield what the input holds, of any format, as the storage lists it.

    Raises
    ------
    EmptyInputError
        When there is no such path.
    InputError
        When it cannot be listed, or a file has a name that no table could hold.
    """
    try:
        folder, name = open_source(settings, storage)
        for entry in [folder.stat(name)] if name else folder.list():
            if name or not _hidden(entry.path):
                _check_name(entry, settings.url)
                yield entry
    except NotFoundError as error:
        raise EmptyInputError(
            f"input.url: {printable(settings.url)} does not exist; give a file or a folder that does"
        ) from error
    except StorageError as error:
        raise InputError(f"input.url: {printable(settings.url)} cannot be listed: {error}") from error


def listing_of(settings: InputSettings, entries: Sequence[Entry]) -> Listing:
    """Find out the format of what was listed, and return the files of it.

    Raises
    ------
    EmptyInputError
        When nothing can be read.
    InputError
        When the config names columns, and the files have none.
    """
    kind = format_of(settings, entries)
    files = sorted(files_of(kind, entries), key=lambda entry: entry.path)
    if not files:
        raise EmptyInputError(_nothing_there(settings, entries, kind))
    if kind == "images":
        refuse_columns(row_settings(settings, (file.path for file in files)))
    return Listing(kind, tuple(files), len(entries) - len(files))


def format_of(settings: InputSettings, entries: Iterable[Entry]) -> str:
    """Return the format that was asked for, or that the names show: an empty string when there is none among them."""
    return settings.format if settings.format != "auto" else _detect(entries)


def files_of(kind: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the files of one format."""
    return (entry for entry in entries if _is(kind, entry.path))


def _check_name(entry: Entry, url: str) -> None:
    """Refuse a name that is not Unicode: no table or document could hold it as an id."""
    try:
        entry.path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{printable(url)}: the file name {entry.path!a} is not UTF-8; rename or remove it") from error


def refuse_columns(settings: InputSettings, columns: Sequence[str] = (), named_by: str = PASSED) -> None:
    """Raise InputError when the config names columns, and the input is a folder of images, which has none."""
    named = [(f"input.{key}", getattr(settings, key)) for key in COLUMN_TYPES if getattr(settings, key)]
    named += [("input.filter", p[0]) for p in settings.filter] + [(named_by, name) for name in columns]
    for key, name in named:
        raise InputError(
            f"{printable(settings.url)} is a folder of images, and {key} names a column ({name!r}); loose images have none: their id is "
            "the path, their label the folder, and their columns are Hive partitions (such as date=2026-11-24/). Remove it, "
            "or give a table"
        )


def _hidden(path: str) -> bool:
    """Say whether a path is bookkeeping of another tool: `_SUCCESS`, `_delta_log/`, `.crc`; cameras write `_MG_1.JPG`."""
    marks = (".",) if _is("images", path) else (".", "_")
    return any(part.startswith(marks) for part in path.split("/"))


def is_parquet(path: str) -> bool:
    """Say whether a file is called as Parquet files are."""
    return _is("parquet", path)


def _is(kind: str, path: str) -> bool:
    return path.lower().endswith(SUFFIXES.get(kind, ()))


def _detect(entries: Iterable[Entry]) -> str:
    """Tables win over loose images: a Parquet folder may hold a preview, an image folder holds no Parquet."""
    paths = [entry.path for entry in entries]
    return next((kind for kind in SUFFIXES if any(_is(kind, path) for path in paths)), "")


def _nothing_there(settings: InputSettings, entries: Sequence[Entry], kind: str) -> str:
    if not entries:
        return (
            f"input.url: {printable(settings.url)} does not exist, is empty, or is a file of another kind; expected Parquet files, "
            "a CSV, or images below it. Check the path (a share that is not mounted looks like this)"
        )
    wanted = kind if kind else "Parquet, CSV or image"
    found = ", ".join(entry.path for entry in entries[:3])
    return (
        f"input.url: no {wanted} files among the {len(entries)} files below {printable(settings.url)} (such as {found})"
    )


def segments_of(
    file: Entry, kind: str, settings: InputSettings, folder: Storage, columns: Sequence[str] = ()
) -> list[Segment]:
    """Cut one file into segments of at most `shard_images` rows where row groups allow.

    Parameters
    ----------
    columns : Sequence[str]
        What a table must have besides the columns that `settings` names.

    Raises
    ------
    InputError
        When the file is damaged or lacks a column; the message names the file.
    """
    if kind == "images":
        return [Segment(*file.identity, 0, 1, 1)]
    with folder.open(file.path, file.version) as handle:
        schema, sizes = (_csv_sizes if kind == "csv" else _group_sizes)(handle, file, settings, folder)
        if sizes or kind == "csv":  # writers of Parquet give the columns of empty tables any type
            check_columns(schema, settings, printable(join(folder.url, file.path)), columns)
    total, segments, first = sum(sizes), [], 0
    for rows in _packed(sizes, settings.shard_images):
        segments.append(Segment(*file.identity, first, rows, total))
        first += rows
    return segments


def _packed(sizes: Iterable[int], limit: int) -> list[int]:
    """Join neighbouring row groups up to `limit` rows; empty groups vanish."""
    packed: list[int] = []
    for rows in sizes:
        if packed and packed[-1] + rows <= limit:
            packed[-1] += rows
        elif rows:
            packed.append(rows)
    return packed


def _group_sizes(
    handle: BinaryIO, file: Entry, settings: InputSettings, folder: Storage
) -> tuple[pa.Schema, list[int]]:
    try:
        parquet = pq.ParquetFile(handle)
    except (pa.ArrowException, OSError) as error:
        location = printable(join(folder.url, file.path))
        raise InputError(
            f"{location}: not a readable Parquet file ({first_line(error)}); replace or remove it"
        ) from error
    sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    return parquet.schema_arrow, sizes if any(sizes) else []


def _csv_sizes(handle: BinaryIO, file: Entry, settings: InputSettings, folder: Storage) -> tuple[pa.Schema, list[int]]:
    """Count the rows and offer them as groups of `shard_images`: a CSV is read whole, but may feed several shards."""
    table = read_csv(handle, printable(join(folder.url, file.path)))
    whole, rest = divmod(table.num_rows, settings.shard_images)
    return table.schema, [settings.shard_images] * whole + [rest] * bool(rest)


def read_csv(handle: BinaryIO, location: str) -> pa.Table:
    """Read a CSV with a header line; every column is text, so that ids like 007 keep their zeros. Empty is null."""
    data = handle.read()
    reading, parsing = pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES), pacsv.ParseOptions(newlines_in_values=True)
    try:
        names = pacsv.open_csv(pa.BufferReader(data), reading, parsing).schema.names
        kinds = {name: pa.string() for name in names}
        converting = pacsv.ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=True)
        table = pacsv.read_csv(pa.BufferReader(data), reading, parsing, converting)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(
            f"{location}: not a readable CSV ({first_line(error)}); expected UTF-8, a header line and commas"
        ) from error
    if _ends_in_quotes(table, data):
        raise InputError(
            f"{location}: not a readable CSV (the last value opens a quotation mark that nothing closes, so it may have "
            "swallowed rows); the file is cut off, or the mark must be doubled"
        )
    return table


def _ends_in_quotes(table: pa.Table, data: bytes) -> bool:
    """Say whether the last value ran into the end of the file within quotes, which the reader does not mind."""
    if not table.num_rows or not table.num_columns:
        return False
    value = (table.column(table.num_columns - 1)[-1].as_py() or "").encode().replace(b'"', b'""')
    return data.endswith((b',"' + value, b'\n"' + value))


def check_columns(
    schema: pa.Schema, settings: InputSettings, location: str, columns: Sequence[str] = (), named_by: str = PASSED
) -> None:
    """Raise InputError unless the columns that the config names exist with a usable type; `columns` are named by a key of it."""
    if not settings.image_column and not settings.uri_column:
        candidates = [f.name for f in schema if is_image_type(f.type)] or schema.names
        raise InputError(
            f"{location} is a table, and the config names neither input.image_column (encoded bytes) nor "
            f"input.uri_column; columns that could be it: {', '.join(candidates)}"
        )
    for key, (fits, expected) in COLUMN_TYPES.items():
        name = getattr(settings, key)
        if not name:
            continue
        if not fits(kind := value_type(_field(schema, name, f"input.{key}", location).type)):
            raise InputError(f"{location}: column {name!r} (input.{key}) has type {kind}; expected {expected}")
    for predicate in settings.filter:
        kind = _field(schema, predicate[0], "input.filter", location).type
        matching(pa.nulls(0, kind), predicate)
    for name in columns:
        _field(schema, name, named_by, location)


def _field(schema: pa.Schema, name: str, key: str, location: str) -> pa.Field:
    """Return the one column of a name; InputError when there is none, or another of the same name."""
    if name not in schema.names:
        near = get_close_matches(name, schema.names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has: {', '.join(schema.names)}"
        raise InputError(f"{location} has no column {name!r} ({key}){hint}")
    if schema.names.count(name) > 1:
        raise InputError(f"{location} has several columns {name!r} ({key}); rename all but one")
    return schema.field(name)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column: dictionary encoding is a way to store them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_image_type(kind: pa.DataType) -> bool:
    """Say whether a column can hold encoded images: binary, or the struct<bytes, path> of Hugging Face data sets."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image_type(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_id(kind: pa.DataType) -> bool:
    """Say whether values identify: floats are not exact, binary and nested values have no spelling of their own."""
    return is_text(kind) or bool(pa.types.is_integer(kind))


def _is_name(kind: pa.DataType) -> bool:
    """Say whether values have one plain spelling; a file without any may hold nulls only."""
    return _is_id(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_date(kind) or pa.types.is_null(kind))


def _is_labels(kind: pa.DataType) -> bool:
    """Say whether values are lists of names, or text that can be cut into some."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return _is_name(value_type(kind.value_type)) if any(test(kind) for test in lists) else is_text(kind)


LABELS_EXPECTED = "a list of strings or integers, or text with input.labels_separator between the labels"
COLUMN_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "image_column": (
        is_image_type,
        "binary or struct<bytes, path>. For a column of locations use input.uri_column",
    ),
    "uri_column": (is_text, "string"),
    "id_column": (
        _is_id,
        "string or integer. Cast the column, or leave input.id_column out: ids are then <file>#<row>",
    ),
    "label_column": (_is_name, "string, integer or boolean. A list of labels is for input.labels_column"),
    "labels_column": (_is_labels, LABELS_EXPECTED),
    "absent_column": (_is_labels, LABELS_EXPECTED),
    "split_column": (_is_name, "string"),
    "group_column": (_is_name, "string, integer or date"),
}
