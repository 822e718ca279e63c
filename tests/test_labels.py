import csv
import io
import json

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.labels import show
from pipeline.errors import StorageError, UsageError
from pipeline.tables import read_table, write_table


@pytest.fixture
def published(night):
    """Thirty labels in two files: (night, config, rows)."""
    night.write("a.parquet", [f"id-{n}" for n in range(20)])
    night.write("b.parquet", [f"id-{n}" for n in range(20, 30)])
    config = night.config(input={"shard_images": 20})
    view = night.whole(config, night.seal())
    return night, config, [row for path in view.files for row in read_table(night.store, path).to_pylist()]


def copy(config, to) -> int:
    return show(config, str(to), 20, False)


def read(path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_copy_holds_every_row_of_the_view(published, tmp_path, suffix, capsys):
    _, config, rows = published
    assert copy(config, tmp_path / "new" / f"x.{suffix}") == 0
    assert read(tmp_path / "new" / f"x.{suffix}") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"x.{suffix}"]
    assert "30 labels of view 1 copied" in capsys.readouterr().err


def test_csv_holds_every_row_with_the_best_classes_as_json(published, tmp_path):
    _, config, rows = published
    copy(config, tmp_path / "x.csv")
    found = read(tmp_path / "x.csv")
    assert [row["image_id"] for row in found] == [row["image_id"] for row in rows]
    assert [float(row["confidence"]) for row in found] == [row["confidence"] for row in rows]
    assert [json.loads(row["top_k"]) for row in found] == [row["top_k"] for row in rows]
    assert list(found[0]) == list(rows[0])


def test_pandas_reads_the_copies(published, tmp_path):
    _, config, rows = published
    for suffix in ("parquet", "csv", "jsonl"):
        copy(config, tmp_path / f"x.{suffix}")
    frames = [
        pandas.read_parquet(tmp_path / "x.parquet"),
        pandas.read_csv(tmp_path / "x.csv"),
        pandas.read_json(tmp_path / "x.jsonl", lines=True),
    ]
    for frame in frames:
        assert frame["label"].tolist() == [row["label"] for row in rows]


def test_cells_that_a_spreadsheet_would_run_are_quoted_in_csv_only(night, tmp_path):
    ids = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "plain", "a=b", 'with "quotes", and\nlines']
    night.write("a.parquet", ids)
    config = night.config()
    night.whole(config, night.seal())
    copy(config, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        found = [row["image_id"] for row in csv.DictReader(file)]
    assert found == [*(f"'{word}" for word in ids[:6]), *ids[6:]]
    copy(config, tmp_path / "x.jsonl")
    assert [row["image_id"] for row in read(tmp_path / "x.jsonl")] == ids


def test_numbers_stay_numbers(night, tmp_path):
    night.write("a.parquet", [-5, 7])
    config = night.config()
    night.whole(config, night.seal())
    for suffix in ("csv", "jsonl", "parquet"):
        copy(config, tmp_path / f"x.{suffix}")
    assert [row["image_id"] for row in read(tmp_path / "x.csv")] == ["-5", "7"]
    assert [row["image_id"] for row in read(tmp_path / "x.jsonl")] == [-5, 7]
    assert pq.read_schema(tmp_path / "x.parquet").field("image_id").type == pa.int64()


def test_view_without_labels_is_copied_as_its_columns(night, tmp_path):
    night.write("a.parquet", [1, 2], image=pa.array([b"bad", None], pa.binary()))
    config = night.config()
    assert night.whole(config, night.seal()).files == []
    for suffix in ("csv", "jsonl", "parquet"):
        assert copy(config, tmp_path / f"x.{suffix}") == 0
    assert (tmp_path / "x.csv").read_text().startswith("image_id,uri,label,")
    assert read(tmp_path / "x.csv") == read(tmp_path / "x.jsonl") == read(tmp_path / "x.parquet") == []
    assert pq.read_schema(tmp_path / "x.parquet").names[:3] == ["image_id", "uri", "label"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.xlsx", "unknown format '.xlsx'; use a name that ends in .parquet, .csv, .jsonl"),
        ("x", "unknown format ''"),
        ("file/x.csv", "choose a place that can be written"),
        ("file/deep/x.csv", "choose a place that can be written"),
        ("folder.csv", "choose a place that can be written"),
    ],
)
def test_target_that_cannot_be_written_is_said(published, tmp_path, name, words):
    _, config, _ = published
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.csv" / "kept").write_text("")
    with pytest.raises(UsageError) as caught:
        copy(config, tmp_path / name)
    assert words in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert not list(tmp_path.glob("**/*.tmp"))
    assert (tmp_path / "folder.csv" / "kept").exists()


def test_a_bucket_is_no_target(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="local files only"):
        copy(published[1], "s3://bucket/x.parquet")
    assert not list(tmp_path.glob("s3*"))


def test_copy_that_fails_leaves_the_old_copy_whole(published, tmp_path):
    night, config, _ = published
    copy(config, tmp_path / "x.csv")
    before = (tmp_path / "x.csv").read_bytes()
    night.store.delete(sorted(entry.path for entry in night.store.list("labels"))[1])
    with pytest.raises(StorageError, match="does not exist"):
        copy(config, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_ids_of_two_types_do_not_fit_one_parquet_file(night, tmp_path):
    night.write("a.parquet", pa.array([1, 2], pa.int64()))
    night.write("b.parquet", pa.array(["x", "y"]))
    config = night.config(input={"shard_images": 2})
    night.whole(config, night.seal())
    with pytest.raises(UsageError, match=r"image ids are int64 and string .* \.csv or \.jsonl"):
        copy(config, tmp_path / "x.parquet")
    copy(config, tmp_path / "x.jsonl")
    assert [row["image_id"] for row in read(tmp_path / "x.jsonl")] == [1, 2, "x", "y"]


def test_first_rows_and_files_are_shown(published, capsys):
    night, config, rows = published
    show(config, None, 25, False)
    printed = capsys.readouterr()
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [(image_id, label) for image_id, label, _ in lines] == [(r["image_id"], r["label"]) for r in rows[:25]]
    assert "view 1 of data: 30 labels of tiny@" in printed.err
    assert printed.err.count(f"  {night.store.url}/labels/data/") == 2


def test_json_names_the_files_in_full(published, capsys):
    config = published[1]
    show(config, None, 20, True)
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"images_in": 30, "labelled": 30, "quarantined": 0}
    assert sum(pq.read_metadata(path).num_rows for path in document["files"]) == 30


def test_nothing_published_yet_is_said(night):
    with pytest.raises(UsageError, match="nothing is published for data set 'data' yet; run `nightshift label"):
        show(night.config(), None, 20, False)


def test_files_with_other_columns_are_copied_into_one_table(night, tmp_path):
    """As those of two generations, of which one copies a column of the input."""
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3])
    config = night.config(input={"shard_images": 2})
    view = night.whole(config, night.seal())
    table = read_table(night.store, view.files[1])
    write_table(night.store, view.files[1], table.append_column("site", pa.array(["north"])))
    for suffix in ("csv", "jsonl", "parquet"):
        copy(config, tmp_path / f"x.{suffix}")
        assert [row.get("site") or None for row in read(tmp_path / f"x.{suffix}")] == [None, None, "north"]
    found = pq.read_schema(tmp_path / "x.parquet")
    assert found.names == [*table.column_names, "site"]
    assert found.metadata == table.schema.metadata


def test_large_files_are_copied_some_rows_at_a_time(published, tmp_path, monkeypatch):
    _, config, rows = published
    monkeypatch.setattr("jobs.labels.ROWS_AT_ONCE", 7)
    for suffix in ("jsonl", "parquet"):
        copy(config, tmp_path / f"x.{suffix}")
        assert read(tmp_path / f"x.{suffix}") == rows
