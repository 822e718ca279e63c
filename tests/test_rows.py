import hashlib
import io
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import PLAIN, columns, read, reasons, shards_of, values

from pipeline import rows as rows_module
from pipeline.errors import ImageError, InputError, SourceChangedError, StorageError, TransientError
from pipeline.rows import ShardReader
from pipeline.settings import InputSettings, StorageSettings
from pipeline.shards import Shard
from pipeline.storage import open_storage

# ---- Parquet


@pytest.mark.parametrize(
    ("kind", "cells", "expected"),
    [
        (pa.list_(pa.string()), [["b", "a", "b"], [], None, ["c", None]], [("a", "b"), (), None, ("c",)]),
        (pa.large_list(pa.int64()), [[2, 1], [], None, [3]], [("1", "2"), (), None, ("3",)]),
        (pa.dictionary(pa.int8(), pa.string()), ["b; a;b", "", None, ";c;"], [("a", "b"), (), None, ("c",)]),
    ],
)
def test_labels_of_an_image_are_a_list_or_text(tmp_path, write_parquet, table_input, kind, cells, expected):
    column = pa.array(cells, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(cells, kind)
    write_parquet(tmp_path / "a.parquet", {**columns(4), "there": column, "gone": column})
    source = table_input(tmp_path, label_column=None, labels_column="there", absent_column="gone")
    rows = read(source)
    assert values(rows, "labels") == expected
    assert values(rows, "absent") == expected
    assert values(read(source.without_truth()), "labels") == [None] * 4


def test_a_column_of_labels_has_lists_of_names(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", {**columns(1), "there": pa.array([[1.5]])})
    with pytest.raises(
        InputError, match=r"'there' \(input.labels_column\) has type list.*double.*; expected a list of strings"
    ):
        read(table_input(tmp_path, labels_column="there", label_column=None))
    with pytest.raises(InputError, match=r"A list of labels is for input.labels_column"):
        read(table_input(tmp_path, label_column="there"))


@pytest.mark.parametrize(
    ("group", "limit", "batch"), [(100, 512, 64), (1, 7, 3), (10, 25, 64), (30, 7, 1), (7, 1000, 7)]
)
def test_every_row_is_read_once_in_order_however_it_is_cut(tmp_path, write_parquet, table_input, group, limit, batch):
    write_parquet(tmp_path / "a.parquet", columns(50), group)
    write_parquet(tmp_path / "b.parquet", columns(50, first=50), group)
    rows = read(table_input(tmp_path, shard_images=limit), batch_size=batch)
    assert values(rows, "image_id") == list(range(100))
    assert values(rows, "data") == [b"%d" % i for i in range(100)]
    assert values(rows, "label") == [f"l{i % 3}" for i in range(100)]
    assert values(rows, "position") == [*range(50), *range(50)]
    assert values(rows, "uri") == [f"{name}.parquet#{i}" for name in "ab" for i in range(50)]
    assert rows[7].content_hash == hashlib.sha256(b"7").hexdigest()


def test_without_an_id_column_the_id_is_file_and_row(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "x" / "a.parquet", columns(3))
    assert values(read(table_input(tmp_path, id_column=None)), "image_id") == [f"x/a.parquet#{i}" for i in range(3)]


def test_null_images_and_null_ids_become_bad_rows_and_the_rest_goes_on(tmp_path, write_parquet, table_input):
    write_parquet(
        tmp_path / "a.parquet",
        {"id": [1, None, 3, None], "image": [b"1", b"2", None, None], "label": ["a", "b", None, "d"]},
    )
    rows = read(table_input(tmp_path))
    assert reasons(rows) == [None, "null_id", "null", "null_id"]
    assert values(rows, "image_id") == [1, None, 3, None]
    assert values(rows, "label") == ["a", "b", None, "d"]
    assert values(rows, "content_hash")[1:] == [None] * 3
    assert "a.parquet#1: id is null" in str(rows[1].error)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())], ids=str
)
def test_encoded_bytes_of_every_type(tmp_path, write_parquet, table_input, kind):
    images = pa.array([b"1", None, b"3"], kind.value_type if pa.types.is_dictionary(kind) else kind).cast(kind)
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3], "image": images, "label": ["a", "b", "c"]})
    rows = read(table_input(tmp_path))
    assert values(rows, "data") == [b"1", None, b"3"]
    assert all(isinstance(row.data, bytes) for row in rows if row.data)


def test_structs_hold_bytes_or_a_path_below_the_allowed_prefixes(tmp_path, write_parquet, table_input):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "beside.jpg").write_bytes(b"beside")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.jpg").write_bytes(b"more")
    cells = [
        {"bytes": b"1", "path": "ignored.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": f"{tmp_path}/more/m.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    write_parquet(tmp_path / "in" / "a.parquet", {"id": range(6), "image": cells, "label": ["l"] * 6})
    own = read(table_input(tmp_path / "in"))
    assert values(own, "data") == [b"1", b"beside", None, None, None, None]
    assert reasons(own) == [None, None, "forbidden_location", "not_found", "null", "null"]
    wider = read(table_input(tmp_path / "in", allowed_prefixes=(str(tmp_path),)))
    assert values(wider, "data") == [b"1", b"beside", b"more", None, None, None]
    assert values(wider, "uri") == [f"a.parquet#{i}" for i in range(6)]


def test_dictionary_encoded_columns_are_read_as_their_values(tmp_path, write_parquet, table_input):
    def encoded(*items):
        return pa.array(items).dictionary_encode()

    write_parquet(
        tmp_path / "a.parquet",
        {
            "id": encoded("x", "y", "z"),
            "image": [b"1", b"2", b"3"],
            "label": encoded("cat", None, "cat"),
            "split": encoded("train", "Validation", None),
            "group": encoded("g1", "g2", "g1"),
        },
    )
    settings = table_input(tmp_path, split_column="split", group_column="group")
    rows = read(settings)
    assert values(rows, "image_id") == ["x", "y", "z"]
    assert values(rows, "label") == ["cat", None, "cat"]
    assert values(rows, "split") == ["train", "val", None]
    assert values(rows, "group") == ["g1", "g2", "g1"]
    [shard] = shards_of(settings)
    assert ShardReader(settings, PLAIN).id_type(shard) == pa.string()


def test_labels_that_are_numbers_become_text(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2], "image": [b"1", b"2"], "label": [7, None]})
    assert values(read(table_input(tmp_path)), "label") == ["7", None]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint16(), pa.string(), pa.large_string()], ids=str)
def test_ids_keep_their_type(tmp_path, write_parquet, table_input, kind):
    ids = pa.array(["1", "2"]).cast(kind)
    write_parquet(tmp_path / "a.parquet", {"id": ids, "image": [b"1", b"2"], "label": ["a", "b"]})
    settings = table_input(tmp_path)
    assert values(read(settings), "image_id") == ids.to_pylist()
    assert ShardReader(settings, PLAIN).id_type(shards_of(settings)[0]) == kind


def test_one_type_holds_the_ids_of_all_files_of_a_shard(tmp_path, write_parquet, table_input):
    for name, kind in (("a", pa.int32()), ("b", pa.int64())):
        ids = pa.array([1, 2], kind)
        write_parquet(tmp_path / f"{name}.parquet", {"id": ids, "image": [b"1", b"2"], "label": ["a", "b"]})
    settings = table_input(tmp_path)
    [shard] = shards_of(settings)
    assert ShardReader(settings, PLAIN).id_type(shard) == pa.int64()
    write_parquet(tmp_path / "c.parquet", {"id": ["x"], "image": [b"1"], "label": ["a"]})
    [shard] = shards_of(settings)
    with pytest.raises(
        StorageError, match=r"column 'id' has other types in other files .*write the files with one type"
    ):
        ShardReader(settings, PLAIN).id_type(shard)


def test_tombstoned_segments_are_neither_read_nor_asked(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", columns(3))
    write_parquet(tmp_path / "b.parquet", columns(3, first=3))
    settings = table_input(tmp_path)
    [shard] = shards_of(settings)
    (tmp_path / "a.parquet").unlink()
    shard = Shard(shard.segments, frozenset({shard.segments[0].key}))
    reader = ShardReader(settings, PLAIN)
    assert [row.image_id for batch in reader.read(shard) for row in batch] == [3, 4, 5]
    assert reader.id_type(shard) == pa.int64()
    assert reader.splits(shard) == {None}


def test_only_the_columns_asked_for_are_read(tmp_path, write_parquet, table_input, monkeypatch):
    write_parquet(tmp_path / "a.parquet", {**columns(4), "heavy": [bytes(1000)] * 4})
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def watch(self, *arguments, **options):
        asked.append((arguments[1], options["columns"]))
        return iter_batches(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    assert len(read(table_input(tmp_path))) == 4
    assert asked == [([0], ["image", "id", "label"])]


def test_only_the_row_groups_of_the_segment_are_read(tmp_path, write_parquet, table_input):
    """The other row groups are destroyed: reading one of them would fail."""
    path = write_parquet(tmp_path / "a.parquet", columns(30), 10)
    settings = table_input(tmp_path, shard_images=10)
    shards = shards_of(settings)
    chunk = pq.ParquetFile(path).metadata.row_group(0)
    starts = [chunk.column(i).dictionary_page_offset or chunk.column(i).data_page_offset for i in range(3)]
    version = shards[0].segments[0].version
    damage(path, min(starts), chunk.total_byte_size // 2, int(version, 16))
    reader = ShardReader(settings, PLAIN)
    rest = [row.image_id for shard in shards[1:] for batch in reader.read(shard) for row in batch]
    assert rest == list(range(10, 30))
    with pytest.raises(StorageError, match=r"a\.parquet: damaged rows \(.*\); replace the file, then plan again"):
        list(reader.read(shards[0]))


def damage(path, start: int, size: int, mtime_ns: int) -> None:
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_a_file_that_changed_since_the_plan_fails_the_attempt(tmp_path, write_parquet, table_input):
    path = write_parquet(tmp_path / "a.parquet", columns(3))
    settings = table_input(tmp_path)
    [shard] = shards_of(settings)
    os.utime(path, ns=(1, 1))
    reader = ShardReader(settings, PLAIN)
    for action in (lambda: list(reader.read(shard)), lambda: reader.id_type(shard)):
        with pytest.raises(SourceChangedError, match=r"a\.parquet changed since it was planned"):
            action()


def test_a_file_with_other_rows_under_the_same_time_is_noticed(tmp_path, write_parquet, table_input):
    path = write_parquet(tmp_path / "a.parquet", columns(3))
    os.utime(path, ns=(5, 5))
    settings = table_input(tmp_path)
    [shard] = shards_of(settings)
    write_parquet(path, columns(4))
    os.utime(path, ns=(5, 5))
    with pytest.raises(SourceChangedError, match="has 4 rows, planned were 3; plan again"):
        list(ShardReader(settings, PLAIN).read(shard))


def test_an_object_that_changed_since_the_plan_fails_the_attempt(s3, table_input):
    store = open_storage(f"{s3[0]}/in", s3[1])
    for name in ("a.parquet", "b.parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.table(columns(3)), sink)
        store.write(name, sink.getvalue())
    settings = table_input(f"{s3[0]}/in")
    assert len(read(settings, s3[1])) == 6
    [shard] = shards_of(settings, s3[1])
    store.write("b.parquet", sink.getvalue() + b" ")
    with pytest.raises(SourceChangedError, match=r"b\.parquet changed since it was planned"):
        list(ShardReader(settings, s3[1]).read(shard))


# ---- URIs


def test_locations_in_tables_are_fetched_and_bad_ones_are_bad_rows(tmp_path, write_parquet):
    for name in ("1.jpg", "sub/ü #2%20.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    (tmp_path / "secret").write_bytes(b"secret")
    uris = ["1.jpg", "sub/ü #2%20.jpg", f"{tmp_path}/in/1.jpg", None, "", "no.jpg", "../secret", "s3://b/x"]
    write_parquet(tmp_path / "in" / "t.parquet", {"id": range(8), "u": pa.array(uris).dictionary_encode()})
    settings = InputSettings(url=str(tmp_path / "in"), uri_column="u", id_column="id")
    rows = read(settings, batch_size=3)
    assert values(rows, "data") == [b"1.jpg", "sub/ü #2%20.jpg".encode(), b"1.jpg", *[None] * 5]
    assert reasons(rows) == [None] * 3 + ["null", "null", "not_found", "forbidden_location", "forbidden_location"]
    assert values(rows, "uri") == [*uris[:3], "t.parquet#3", "t.parquet#4", *uris[5:]]
    assert values(rows, "image_id") == list(range(8))


def test_without_an_id_column_the_id_is_the_location(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"1")
    (tmp_path / "list.csv").write_bytes(b"u\n1.jpg\n")
    [row] = read(InputSettings(url=str(tmp_path / "list.csv"), uri_column="u"))
    assert (row.image_id, row.uri, row.data) == ("1.jpg", "1.jpg", b"1")


def test_an_unreachable_store_fails_the_attempt_not_the_rows(tmp_path, write_parquet, monkeypatch):
    def down(*arguments):
        raise TransientError("timed out")

    write_parquet(tmp_path / "t.parquet", {"u": ["1.jpg"]})
    settings = InputSettings(url=str(tmp_path), uri_column="u")
    monkeypatch.setattr("pipeline.rows.fetch", down)
    with pytest.raises(TransientError, match="timed out"):
        read(settings)


# ---- CSV


def test_a_csv_keeps_zeros_newlines_and_order_over_several_shards(tmp_path):
    lines = ["id,u,label,split,group"]
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(b"%d" % i)
        lines.append(f'{i:03d},{i}.jpg,"two\nlines {i % 2}",{"dev" if i % 4 == 0 else ""},g{i % 3}')
    (tmp_path / "list.csv").write_text("\n".join(lines))
    settings = InputSettings(
        url=str(tmp_path), uri_column="u", id_column="id", label_column="label", split_column="split",
        group_column="group", shard_images=7,
    )  # fmt: skip
    rows = read(settings, batch_size=4)
    assert values(rows, "image_id") == [f"{i:03d}" for i in range(20)]
    assert values(rows, "data") == [b"%d" % i for i in range(20)]
    assert values(rows, "label") == [f"two\nlines {i % 2}" for i in range(20)]
    assert values(rows, "split") == ["val" if i % 4 == 0 else None for i in range(20)]
    assert values(rows, "group") == [f"g{i % 3}" for i in range(20)]
    assert values(rows, "position") == list(range(20))
    assert ShardReader(settings, PLAIN).id_type(shards_of(settings)[0]) == pa.string()


# ---- loose images

FOLDER = {
    "flat #1.JPG": (None, None),
    "daisy/50%.png": ("daisy", None),
    "train/daisy/ü ñ.jpg": ("daisy", "train"),
    "Validation/tulip/q?x.gif": ("tulip", "val"),
    "test/sub/rose/a.webp": ("rose", "test"),
    "2024/rose/weird:name.jpg": ("rose", None),
}


def check_folder(settings: InputSettings, storage: StorageSettings) -> None:
    rows = read(settings, storage)
    assert {row.image_id: (row.label, row.split) for row in rows} == FOLDER
    assert values(rows, "uri") == values(rows, "image_id")
    assert [row.data for row in rows] == [row.uri.encode() for row in rows]
    reader = ShardReader(settings, storage)
    assert [reader.read_one(row.uri) for row in rows] == values(rows, "data")
    [shard] = shards_of(settings, storage)
    assert reader.id_type(shard) == pa.string()
    assert reader.splits(shard) == {None, "train", "val", "test"}


def test_a_folder_of_images_names_ids_labels_and_splits(tmp_path):
    for name in FOLDER:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    check_folder(InputSettings(url=str(tmp_path)), PLAIN)


def test_the_same_folder_on_an_object_store(s3):
    store = open_storage(f"{s3[0]}/in", s3[1])
    for name in FOLDER:
        store.write(name, name.encode())
    check_folder(InputSettings(url=f"{s3[0]}/in"), s3[1])


def test_an_image_that_changed_since_the_plan_fails_the_attempt(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    settings = InputSettings(url=str(tmp_path))
    [shard] = shards_of(settings)
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    with pytest.raises(SourceChangedError):
        list(ShardReader(settings, PLAIN).read(shard))


# ---- single rows and splits


def test_the_bytes_of_one_row_by_its_uri(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "in" / "a#b.parquet", columns(25), 10)
    settings = table_input(tmp_path / "in")
    reader = ShardReader(settings, PLAIN)
    assert [reader.read_one(row.uri) for row in read(settings)] == [b"%d" % i for i in range(25)]


def test_the_bytes_of_one_location(tmp_path, write_parquet):
    (tmp_path / "a#1.jpg").write_bytes(b"1")
    write_parquet(tmp_path / "t.parquet", {"u": ["a#1.jpg"]})
    reader = ShardReader(InputSettings(url=str(tmp_path), uri_column="u"), PLAIN)
    assert reader.read_one("a#1.jpg") == b"1"
    with pytest.raises(ImageError, match="forbidden_location"):
        reader.read_one("../secret")


def test_linked_images_outside_the_folder_are_shown_too(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "real.jpg").write_bytes(b"1")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "real.jpg")
    settings = InputSettings(url=str(tmp_path / "in"))
    [row] = read(settings)
    assert row.data == ShardReader(settings, PLAIN).read_one(row.uri) == b"1"


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (["train", "TRAIN", "training"], {"train", "training"}),
        (["val", "valid", "validation", "dev", "Dev"], {"val"}),
        (["test", None], {"test", None}),
        ([None, None], {None}),
    ],
)
def test_the_splits_of_a_shard(tmp_path, write_parquet, table_input, splits, found):
    count = len(splits)
    write_parquet(tmp_path / "a.parquet", {**columns(count), "split": pa.array(splits, pa.string())})
    settings = table_input(tmp_path, split_column="split")
    [shard] = shards_of(settings)
    assert ShardReader(settings, PLAIN).splits(shard) == found == set(values(read(settings), "split"))


def test_without_a_split_column_no_split_is_named(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", columns(3))
    settings = table_input(tmp_path)
    assert ShardReader(settings, PLAIN).splits(shards_of(settings)[0]) == {None}


def test_the_same_images_as_bytes_locations_and_folder_are_the_same_rows(tmp_path, s3, write_parquet):
    """Show 5 of the issue, without the model: equal (id, label, content hash) sets, on files and on S3."""
    store = open_storage(s3[0], s3[1])
    ids, images = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(10)], [b"image %d" % i for i in range(10)]
    labels = ["ab"[i % 2] for i in range(10)]
    for image_id, data in zip(ids, images, strict=True):
        (tmp_path / "folder" / image_id).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / image_id).write_bytes(data)
    write_parquet(tmp_path / "bytes" / "t.parquet", {"id": ids, "image": images, "label": labels}, 3)
    for place, uris in (
        ("uris", [f"../folder/{i}" for i in ids]),
        ("s3uris", [f"{s3[0]}/folder/{i}" for i in ids]),
    ):
        write_parquet(tmp_path / place / "t.parquet", {"id": ids, "uri": uris, "label": labels}, 3)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        store.write(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    named = {"id_column": "id", "label_column": "label", "shard_images": 4}
    sets = []
    for base, storage, located in ((str(tmp_path), PLAIN, "uris"), (s3[0], s3[1], "s3uris")):
        for settings in (
            InputSettings(url=f"{base}/bytes", image_column="image", **named),
            InputSettings(url=f"{base}/{located}", uri_column="uri", allowed_prefixes=(base,), **named),
            InputSettings(url=f"{base}/folder"),
        ):
            rows = read(settings, storage)
            assert len(rows) == 10
            sets.append({(row.image_id, row.label, row.content_hash) for row in rows})
    assert sets == [sets[0]] * 6


# ---- What the config names may have changed since the plan


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_that_is_not_there_stops_the_run_with_the_nearest_name(tmp_path, write_parquet, suffix):
    if suffix == "csv":
        (tmp_path / "a.csv").write_text("id,place,label\n1,a.png,cat\n")
        settings = InputSettings(url=str(tmp_path), uri_column="place", id_column="id")
    else:
        write_parquet(tmp_path / "a.parquet", columns(3))
        settings = InputSettings(url=str(tmp_path), image_column="image", id_column="id")
    (shard,) = shards_of(settings)
    reader = ShardReader(settings.model_copy(update={"label_column": "lable"}), PLAIN)
    with pytest.raises(InputError, match=r"no column 'lable' \(input.label_column\); did you mean 'label'"):
        list(reader.read(shard))


def test_labelling_reads_no_column_that_it_does_not_use(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", columns(3))
    settings = table_input(tmp_path, label_column="label").without_truth()
    assert values(read(settings), "label") == [None] * 3
    assert (settings.image_column, settings.id_column) == ("image", "id")


# ---- Refused locations


def refuse(monkeypatch, refused: set[str]) -> None:
    def fetch(uri, *arguments):
        if uri in refused:
            raise ImageError("read", "access_denied", f"{uri}: access denied")
        return b"bytes"

    monkeypatch.setattr("pipeline.rows.fetch", fetch)


def uri_table(tmp_path, write_parquet) -> InputSettings:
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3], "uri": ["a", "b", "c"]})
    return InputSettings(url=str(tmp_path), uri_column="uri", id_column="id")


def test_one_refused_location_is_a_bad_row(tmp_path, write_parquet, monkeypatch):
    refuse(monkeypatch, {"b"})
    assert reasons(read(uri_table(tmp_path, write_parquet))) == [None, "access_denied", None]


def test_when_all_locations_are_refused_the_attempt_fails_and_no_row_is_blamed(tmp_path, write_parquet, monkeypatch):
    refuse(monkeypatch, {"a", "b", "c"})
    with pytest.raises(StorageError, match="all 3 locations are refused; the first: a: access denied"):
        read(uri_table(tmp_path, write_parquet))


def test_a_csv_of_many_shards_is_parsed_once(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("id,place\n" + "".join(f"{n},{n}.png\n" for n in range(10)))
    settings = InputSettings(url=str(tmp_path), uri_column="place", id_column="id", shard_images=2)
    shards, parsed, real = shards_of(settings), [], rows_module.read_csv
    monkeypatch.setattr(rows_module, "read_csv", lambda *arguments: parsed.append(1) or real(*arguments))
    reader = ShardReader(settings, PLAIN)
    ids = [row.image_id for shard in shards for rows in reader.read(shard) for row in rows]
    assert (ids, len(parsed), len(shards)) == ([str(n) for n in range(10)], 1, 5)


def test_loose_images_are_read_several_at_once(tmp_path, monkeypatch, table_input):
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(b"%d" % n)
    settings = InputSettings(url=str(tmp_path))
    together, real = threading.Barrier(4), ShardReader._read_file

    def meet(self, segment):
        together.wait(timeout=30)  # passes only when four are read at the same time
        return real(self, segment)

    monkeypatch.setattr(ShardReader, "_read_file", meet)
    assert values(read(settings), "data") == [b"0", b"1", b"2", b"3"]


# ---- Memory


def test_lists_are_shorter_where_images_are_large(tmp_path, write_parquet, table_input):
    data = [bytes([i]) * (100_000 if i % 2 else 10) for i in range(40)]
    write_parquet(tmp_path / "a.parquet", {"id": range(40), "image": data, "label": ["l"] * 40})
    settings = table_input(tmp_path)
    [shard] = shards_of(settings)
    lists = list(ShardReader(settings, PLAIN, buffer_bytes=2_000_000).read(shard, 16))
    assert [row.data for rows in lists for row in rows] == data
    assert all(sum(len(row.data) for row in rows) <= 250_000 for rows in lists)
    assert [len(rows) for rows in ShardReader(settings, PLAIN).read(shard, 16)] == [16, 16, 8]
    assert [len(rows) for rows in ShardReader(settings, PLAIN, buffer_bytes=400_000).read(shard, 16)] == [1] * 40
