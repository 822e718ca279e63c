import io
import os

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import InputError, SourceChangedError
from pipeline.settings import InputSettings, StorageSettings
from pipeline.sources import check_columns, dataset_name, list_source, open_source, read_csv, segments_of

PLAIN = StorageSettings()


def touch(folder, *names: str, data: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def found(url, **settings) -> tuple[str, list[str], int]:
    listing = list_source(InputSettings(url=str(url), **settings), PLAIN)
    return listing.format, [file.path for file in listing.files], listing.ignored


def refused(url, **settings) -> str:
    with pytest.raises(InputError) as caught:
        list_source(InputSettings(url=str(url), **settings), PLAIN)
    return str(caught.value)


def cut(settings: InputSettings, storage_settings: StorageSettings = PLAIN) -> list[list[tuple[int, int, int]]]:
    """Return (first row, rows, rows of the file) per segment, per file of the input."""
    listing, (folder, _) = list_source(settings, storage_settings), open_source(settings, storage_settings)
    return [
        [(s.first_row, s.num_rows, s.file_rows) for s in segments_of(file, listing.format, settings, folder)]
        for file in listing.files
    ]


def segments_refused(settings: InputSettings) -> str:
    with pytest.raises(InputError) as caught:
        cut(settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/photos", "photos"), ("/data/photos/", "photos"), ("s3://bucket", "bucket"), ("s3://b/a.b/c d", "c d"),
        ("/data/photos.parquet", "photos"), ("list.csv", "list"), ("/x/cat.jpg", "cat"), ("a.pq", "a"),
    ],
)  # fmt: skip
def test_a_data_set_is_called_like_the_last_part_of_its_url(url, name):
    assert dataset_name(InputSettings(url=url)) == name
    assert dataset_name(InputSettings(url=url, name="other")) == "other"


# ---- listing


def test_images_are_found_flat_and_nested_in_name_order_and_the_rest_is_counted(tmp_path):
    touch(tmp_path, "b.JPG", "a/1.jpeg", "a/2.Png", "c.webp", "d.gif", "e.bmp", "f.tif", "g.TIFF", "notes.txt", "x.pdf")
    expected = ["a/1.jpeg", "a/2.Png", "b.JPG", "c.webp", "d.gif", "e.bmp", "f.tif", "g.TIFF"]
    assert found(tmp_path) == ("images", expected, 2)


def test_hidden_files_are_bookkeeping_but_cameras_write_underscores(tmp_path):
    touch(tmp_path, "_MG_1234.JPG", "_background/1.png", "a.png", ".a.png", ".cache/b.png", "_SUCCESS")
    assert found(tmp_path)[1] == ["_MG_1234.JPG", "_background/1.png", "a.png"]
    touch(tmp_path / "t", "part-0.parquet", "_delta_log/0.parquet", "_SUCCESS", ".part-0.parquet.crc", "_x.parquet")
    assert found(tmp_path / "t")[1] == ["part-0.parquet"]


def test_tables_win_over_loose_images_unless_the_format_is_given(tmp_path):
    touch(tmp_path, "a.parquet", "b.PQ", "preview.jpg", "list.csv")
    assert found(tmp_path, image_column="image") == ("parquet", ["a.parquet", "b.PQ"], 2)
    assert found(tmp_path, format="csv", uri_column="uri") == ("csv", ["list.csv"], 3)
    assert found(tmp_path, format="images") == ("images", ["preview.jpg"], 3)


@pytest.mark.parametrize("name", ["one.parquet", "list.csv", "ü #1.JPG"])
def test_the_input_may_be_one_file(tmp_path, name):
    touch(tmp_path, name, "other.parquet", "other.jpg", "other.csv")
    assert found(tmp_path / name)[1:] == ([name], 0)


@pytest.mark.parametrize("name", ["data.parquet", "album.jpg"])
def test_a_folder_may_be_called_like_a_file(tmp_path, name):
    touch(tmp_path / name, "part-0.parquet", "part-1.parquet")
    assert found(tmp_path / name)[1] == ["part-0.parquet", "part-1.parquet"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "does not exist, is empty"),
        ("nowhere.parquet", "does not exist; give a file"),
        ("empty", "does not exist, is empty"),
        ("empty.parquet", "does not exist; give a file"),
        ("archive.zip", "is a file of another kind"),
    ],
)
def test_nothing_to_read_says_what_was_expected(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.parquet").mkdir()
    touch(tmp_path, "archive.zip")
    message = refused(tmp_path / name)
    assert f"input.url: {tmp_path / name}" in message
    assert words in message


def test_files_of_other_kinds_are_named(tmp_path):
    touch(tmp_path, "a.txt", "b.zip")
    assert "no Parquet, CSV or image files among the 2 files" in refused(tmp_path)
    assert "(such as a.txt, b.zip)" in refused(tmp_path)
    assert "no csv files among the 2" in refused(tmp_path, format="csv")


def test_loose_images_have_no_columns(tmp_path):
    touch(tmp_path, "a.jpg")
    words = "input.label_column names a column ('label'); loose images have none"
    assert words in refused(tmp_path, label_column="label")


def test_pipes_links_in_a_circle_and_odd_names_do_not_stop_a_listing(tmp_path):
    names = ["100% #1.jpg", "a/weird:name.jpg", "blank name.png", "ü.jpg"]
    touch(tmp_path, *names)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert found(tmp_path)[1] == names


def test_a_name_that_is_not_unicode_is_refused_by_name(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert r"the file name 'caf\udce9.jpg' is not UTF-8; rename or remove it" in refused(tmp_path)


def test_an_unreadable_folder_is_the_inputs_fault(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.os, "scandir", refuse)
    assert "cannot be listed" in refused(tmp_path)
    assert "Permission denied" in refused(tmp_path)


def test_the_same_listing_on_an_object_store(s3):
    url, settings = s3
    store = storage.open_storage(f"{url}/in", settings)
    names = ["100% done #1.JPG", "a/q?x.jpg", "a/ü ñ.png", "plain.gif", "we%2Fird:name.jpg"]
    for name in [*names, "notes.txt", ".hidden.jpg", ".x/y.jpg"]:
        store.write(name, b"x")
    listing = list_source(InputSettings(url=f"{url}/in"), settings)
    assert [file.path for file in listing.files] == names
    assert listing.ignored == 1


def test_files_and_folders_on_an_object_store(s3):
    url, settings = s3
    store = storage.open_storage(url, settings)
    for name in ("in/one.parquet", "in/two.parquet/part-0.parquet", "in/two.parquet/part-1.parquet"):
        store.write(name, b"x")
    paths = {
        name: [f.path for f in list_source(InputSettings(url=f"{url}/in/{name}"), settings).files]
        for name in ("one.parquet", "two.parquet")
    }
    assert paths == {"one.parquet": ["one.parquet"], "two.parquet": ["part-0.parquet", "part-1.parquet"]}
    for name in ("three.parquet", "no/such/folder"):
        with pytest.raises(InputError, match=f"{name} does not exist"):
            list_source(InputSettings(url=f"{url}/{name}"), settings)


@pytest.mark.parametrize("path", ["x", "x.parquet"])
def test_a_missing_bucket_is_an_input_error(s3, path):
    with pytest.raises(InputError, match=r"s3://no-such-bucket/x.* does not exist"):
        list_source(InputSettings(url=f"s3://no-such-bucket/{path}"), s3[1])


def test_a_key_with_an_empty_part_hides_no_others(s3):
    client = boto3.client("s3", endpoint_url=s3[1].endpoint, region_name="us-east-1")
    for name in ("a//b.jpg", "a/c.jpg", "d.jpg"):
        client.put_object(Bucket=s3[0].removeprefix("s3://"), Key=f"in/{name}", Body=b"x")
    listing = list_source(InputSettings(url=f"{s3[0]}/in"), s3[1])
    assert [file.path for file in listing.files] == ["a/c.jpg", "d.jpg"]


# ---- segments


def test_an_image_file_is_one_segment(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    assert cut(InputSettings(url=str(tmp_path))) == [[(0, 1, 1)], [(0, 1, 1)]]


@pytest.mark.parametrize(
    ("rows", "group", "limit", "segments"),
    [
        (10, 10, 10, [(0, 10, 10)]),
        (100, 1, 30, [(0, 30, 100), (30, 30, 100), (60, 30, 100), (90, 10, 100)]),
        (10, 4, 5, [(0, 4, 10), (4, 4, 10), (8, 2, 10)]),
        (50, 20, 7, [(0, 20, 50), (20, 20, 50), (40, 10, 50)]),  # row groups are never cut
        (5, 5, 1000, [(0, 5, 5)]),
        (0, 5, 10, []),
    ],
)
def test_row_groups_are_packed_up_to_shard_images(tmp_path, write_parquet, table_input, rows, group, limit, segments):
    write_parquet(tmp_path / "a.parquet", {"id": range(rows), "image": [b"x"] * rows, "label": ["l"] * rows}, group)
    assert cut(table_input(tmp_path, shard_images=limit)) == [segments]


def test_a_table_without_rows_needs_no_types(tmp_path, write_parquet, table_input):
    """What pandas writes for an empty frame: every column is of the type null."""
    write_parquet(tmp_path / "a.parquet", {"id": pa.nulls(0), "image": pa.nulls(0), "label": pa.nulls(0)})
    write_parquet(tmp_path / "b.parquet", {"id": [1], "image": [b"x"], "label": ["l"]})
    assert cut(table_input(tmp_path)) == [[], [(0, 1, 1)]]


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "footer", "html"])
def test_a_broken_parquet_file_is_named(tmp_path, write_parquet, table_input, damage):
    path = write_parquet(tmp_path / "a.parquet", {"id": [1] * 50, "image": [b"x"] * 50, "label": ["l"] * 50})
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"PAR1" + bytes(range(256)) * 2 + b"PAR1",
            "truncated": data[: len(data) // 2],
            "footer": data[:-200] + bytes(192) + data[-8:],
            "html": b"<html>not found</html>",
        }[damage]
    )
    message = segments_refused(table_input(tmp_path))
    assert message.startswith(f"{path}: not a readable Parquet file (")
    assert message.endswith("replace or remove it")


def test_a_source_that_changed_since_the_listing_is_noticed(tmp_path, write_parquet, table_input):
    columns = {"id": [1], "image": [b"x"], "label": ["l"]}
    write_parquet(tmp_path / "a.parquet", columns)
    settings = table_input(tmp_path)
    [file] = list_source(settings, PLAIN).files
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    with pytest.raises(SourceChangedError, match=r"a\.parquet changed since it was planned"):
        segments_of(file, "parquet", settings, open_source(settings, PLAIN)[0])


def test_an_overwritten_object_is_noticed(s3, table_input):
    store = storage.open_storage(f"{s3[0]}/in", s3[1])
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [1], "image": [b"x"], "label": ["l"]}), sink)
    store.write("a.parquet", sink.getvalue())
    settings = table_input(f"{s3[0]}/in")
    [file] = list_source(settings, s3[1]).files
    assert len(segments_of(file, "parquet", settings, store)) == 1
    store.write("a.parquet", sink.getvalue() + b" ")
    with pytest.raises(SourceChangedError):
        segments_of(file, "parquet", settings, store)


# ---- columns


def test_files_with_other_columns_fail_alone_and_by_name(tmp_path, write_parquet, table_input):
    settings = table_input(tmp_path)
    write_parquet(tmp_path / "a.parquet", {"id": [1], "image": [b"x"], "label": ["l"], "more": [1]})
    write_parquet(tmp_path / "b.parquet", {"id": [1], "x": [b"x"], "label": ["l"]})
    listing, (folder, _) = list_source(settings, PLAIN), open_source(settings, PLAIN)
    assert len(segments_of(listing.files[0], "parquet", settings, folder)) == 1
    with pytest.raises(
        InputError, match=r"b\.parquet has no column 'image' \(input.image_column\); it has: id, x, label"
    ):
        segments_of(listing.files[1], "parquet", settings, folder)


SCHEMA = {"id": pa.string(), "image": pa.binary(), "label": pa.string(), "split": pa.string(), "group": pa.string()}
COLUMNS = {f"{name}_column": name for name in ("image", "id", "label", "split", "group")}
TEXT = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
INTEGERS = [pa.int8(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())]
NESTED = [pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.map_(pa.string(), pa.string())]
EMBEDDED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def check(column: str, kind: pa.DataType) -> None:
    schema = pa.schema([(name, kind if name == column else usual) for name, usual in SCHEMA.items()])
    check_columns(schema, InputSettings(url="x", **COLUMNS), "a.parquet")


@pytest.mark.parametrize(
    ("column", "kind"),
    [("id", kind) for kind in TEXT + INTEGERS]
    + [
        (c, kind)
        for c in ("label", "split", "group")
        for kind in [*TEXT, *INTEGERS, pa.bool_(), pa.date32(), pa.null()]
    ]
    + [("image", kind) for kind in [pa.binary(), pa.large_binary(), pa.binary_view(), EMBEDDED]]
    + [("image", pa.dictionary(pa.int32(), pa.binary()))],
    ids=str,
)
def test_types_that_can_be_used(column, kind):
    check(column, kind)


@pytest.mark.parametrize(
    ("column", "kind"),
    [("id", k) for k in [*NESTED, pa.float64(), pa.bool_(), pa.binary(), pa.null(), pa.timestamp("us"), pa.decimal128(5)]]
    + [(c, kind) for c in ("label", "split", "group") for kind in [*NESTED, pa.float32(), pa.binary()]]
    + [("image", k) for k in [pa.string(), pa.int64(), pa.list_(pa.uint8()), pa.null(), pa.struct([("path", pa.string())])]]
    + [("image", pa.struct([("bytes", pa.string())]))],
    ids=str,
)  # fmt: skip
def test_types_that_cannot_are_refused_with_column_key_and_type(column, kind):
    with pytest.raises(InputError) as caught:
        check(column, kind)
    assert f"a.parquet: column {column!r} (input.{column}_column) has type {kind}; expected " in str(caught.value)


@pytest.mark.parametrize("kind", TEXT, ids=str)
def test_locations_are_text(kind):
    check_columns(pa.schema([("u", kind)]), InputSettings(url="x", uri_column="u"), "a.parquet")


@pytest.mark.parametrize("kind", [pa.binary(), pa.int64(), *NESTED], ids=str)
def test_locations_of_other_types_are_refused(kind):
    with pytest.raises(InputError, match=r"column 'u' \(input.uri_column\) has type .*; expected string"):
        check_columns(pa.schema([("u", kind)]), InputSettings(url="x", uri_column="u"), "a.parquet")


def test_a_table_without_an_image_column_says_which_it_could_be():
    schema = pa.schema([("id", pa.int64()), ("photo", EMBEDDED), ("thumb", pa.binary())])
    with pytest.raises(InputError, match=r"columns that could be it: photo, thumb$"):
        check_columns(schema, InputSettings(url="x"), "a.parquet")
    with pytest.raises(InputError, match=r"columns that could be it: id$"):
        check_columns(pa.schema([("id", pa.int64())]), InputSettings(url="x"), "a.parquet")


def test_a_missing_column_suggests_the_nearest():
    with pytest.raises(InputError, match=r"has no column 'imge' \(input.image_column\); did you mean 'image'\?"):
        check_columns(pa.schema(SCHEMA.items()), InputSettings(url="x", image_column="imge"), "a.parquet")


def test_a_column_that_stands_twice_is_refused():
    schema = pa.schema([("image", pa.binary()), ("image", pa.binary())])
    with pytest.raises(InputError, match=r"a.parquet has several columns 'image' \(input.image_column\)"):
        check_columns(schema, InputSettings(url="x", image_column="image"), "a.parquet")


# ---- CSV


def rows_of(data: bytes) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = read_csv(io.BytesIO(data), "x.csv").to_pylist()
    return rows


def test_every_value_is_text_and_only_empty_is_null():
    data = b'id,uri\n007,1.0\nNA,null\nnan,true\n,\n"",2026-01-01\n'
    assert [list(row.values()) for row in rows_of(data)] == [
        ["007", "1.0"], ["NA", "null"], ["nan", "true"], [None, None], [None, "2026-01-01"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfid,uri\n1,a\n", b"id,uri\r\n1,a\r\n", b"id,uri\n\n1,a\n\n", b"id,uri\n1,a"]
)
def test_byte_order_marks_line_ends_and_blank_lines_do_not_matter(data):
    assert rows_of(data) == [{"id": "1", "uri": "a"}]


def test_quoted_values_may_hold_newlines_commas_and_quotation_marks():
    values = ["a\nb", "a,b", 'say "hi"', '"', "ü"]
    data = "id,uri\n" + "".join(f'{i},"{v.replace(chr(34), chr(34) * 2)}"\n' for i, v in enumerate(values))
    assert [row["uri"] for row in rows_of(data.encode())] == values
    assert [row["uri"] for row in rows_of(data.encode().rstrip())] == values


def test_newlines_in_values_survive_block_borders(monkeypatch):
    monkeypatch.setattr("pipeline.sources.CSV_BLOCK_BYTES", 1000)
    assert [row["uri"] for row in rows_of(b"id,uri\n" + b'1,"a\n\nb"\n' * 2000)] == ["a\n\nb"] * 2000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Empty CSV"),
        (b"\n\n", "Empty CSV"),
        (b"id,uri", "Empty CSV"),
        (b"id,uri\n1,a\n2", "Expected 2 columns, got 1"),
        (b"id,uri\n1,a\n2,b,c\n", "Expected 2 columns, got 3"),
        (b'id,uri\n1,a\n2,"b', "opens a quotation mark that nothing closes"),
        (b'id,uri\n1,a\n2,"b\n3,c\n4,d\n', "may have swallowed rows"),
        (b'id,uri\n1,a\n2,"', "opens a quotation mark"),
        (b'id,uri\n1,a\n2,"b ""x', "opens a quotation mark"),
        (b"id,uri\n1,\xe9\n", "invalid UTF8"),
        (b"id,\xe9\n1,2\n", "expected UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "expected UTF-8"),
        ("id,uri\n1,a\n".encode("utf-16"), "expected UTF-8"),
    ],
)
def test_a_broken_csv_is_named(data, words):
    with pytest.raises(InputError, match=f"x.csv: not a readable CSV .*{words}"):
        rows_of(data)


@pytest.mark.parametrize("tail", [b'1,""', b'1,""\n', b'1,"b"', b'1,"a,"', b'"a",b', b'1,b""', b'1,"x"""', b'1,5"'])
def test_a_csv_that_ends_in_a_closed_quotation_is_whole(tail):
    assert len(rows_of(b"id,uri\n1,a\n" + tail)) == 2


def test_a_csv_is_cut_by_shard_images(tmp_path):
    touch(tmp_path, "list.csv", data=b"id,uri\n" + b"".join(b"%d,a\n" % i for i in range(7)))
    settings = InputSettings(url=str(tmp_path), uri_column="uri", shard_images=3)
    assert cut(settings) == [[(0, 3, 7), (3, 3, 7), (6, 1, 7)]]


def test_a_csv_has_a_header_and_maybe_no_rows(tmp_path):
    touch(tmp_path, "list.csv", data=b"id,uri\n")
    assert cut(InputSettings(url=str(tmp_path), uri_column="uri")) == [[]]
    assert "has no column 'url'" in segments_refused(InputSettings(url=str(tmp_path), uri_column="url"))
