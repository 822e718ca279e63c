"""Tests of the review files: which rows, in which order, from which files."""

from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline import review
from pipeline.documents import advance
from pipeline.publication import read_view
from pipeline.review import write_review
from pipeline.tables import read_schema, read_table, write_table


@pytest.fixture
def reviewed(night):
    """Thirty labels in three files: (night, view, ledger)."""
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        night.write(f"{name}.parquet", range(first, first + 10), site=[name] * 10)
    config, version = night.config(input={"shard_images": 10}, label={"columns": ["site"]}), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    return night, night.publish(config, plan, version, ledger)[0], ledger


def labels(night, view) -> list[dict]:
    return [row for path in view.files for row in read_table(night.store, path).to_pylist()]


@pytest.mark.parametrize("below", [0.4, 0.45, 0.5, 1.0])
def test_rows_below_the_bound_are_written_least_confident_first(reviewed, below):
    night, view, ledger = reviewed
    found = write_review(night.store, view, ledger, below)
    rows = read_table(night.store, f"review/data/{view.n}.parquet").to_pylist()
    expected = sorted((r for r in labels(night, view) if r["confidence"] < below), key=lambda r: r["confidence"])
    assert expected
    assert [row["confidence"] for row in rows] == [row["confidence"] for row in expected]
    assert {row["image_id"] for row in rows} == {row["image_id"] for row in expected}
    assert all(list(row) == ["image_id", "uri", "label", "confidence", "top_k", "model", "site"] for row in rows)
    assert (found.path, found.num_below, found.rows) == (f"review/data/{view.n}.parquet", len(rows), len(rows))


def test_files_without_such_rows_are_not_read(reviewed, monkeypatch):
    night, view, ledger = reviewed
    sure = view.document["files"][1]
    (shard_id,) = sure["shard_ids"]
    entries = {**ledger, shard_id: replace(ledger[shard_id], confidences=[0] * 19 + [10])}
    read = []
    monkeypatch.setattr(
        review, "read_table", lambda store, path, names: read.append(path) or read_table(store, path, names)
    )
    write_review(night.store, view, entries, 0.6)
    assert set(read) == set(view.files) - {sure["path"]}
    read.clear()
    write_review(night.store, view, {**entries, shard_id: replace(entries[shard_id], confidences=[])}, 0.7)
    assert set(read) == set(view.files), "a shard without a histogram may hold anything"
    del entries[shard_id]
    write_review(night.store, view, entries, 0.8)
    assert read.count(sure["path"]) == 2


def test_a_bound_on_the_edge_of_two_bins_is_exact(night):
    shares = [0.15, 0.1999999, 0.2, 0.25, 0.6, 0.5999999]
    table = pa.table(
        {"image_id": range(6), "uri": [""] * 6, "label": ["x"] * 6, "confidence": pa.array(shares, pa.float32())}
    )
    written = write_table(night.store, "labels/data/m@1/x.parquet", table)
    document = {"dataset": "data", "files": [{"path": written.path, "shard_ids": ["s"]}]}
    advance(night.store, "published/data", {**document, "quarantine": []}, 0)
    for below, ids in ((0.2, [0, 1]), (0.25, [0, 1, 2]), (0.6, [0, 1, 2, 3, 5])):
        write_review(night.store, read_view(night.store, "data"), {}, below)
        assert read_table(night.store, "review/data/1.parquet")["image_id"].to_pylist() == ids


def test_it_is_written_once_per_view_and_bound(reviewed, monkeypatch):
    night, view, ledger = reviewed
    first = write_review(night.store, view, ledger, 0.45)
    before = night.store.stat(first.path)
    monkeypatch.setattr(review, "write_table", lambda *_: pytest.fail("written again"))
    assert write_review(night.store, view, ledger, 0.45) == first
    assert night.store.stat(first.path) == before
    monkeypatch.undo()
    assert write_review(night.store, view, ledger, 1.0).num_below == 30


def test_only_the_least_confident_are_kept_of_too_many_and_all_are_counted(reviewed, monkeypatch):
    night, view, ledger = reviewed
    monkeypatch.setattr(review, "MOST_ROWS", 4)
    found = write_review(night.store, view, ledger, 1.0)
    assert (found.num_below, found.rows) == (30, 4)
    shares = read_table(night.store, found.path)["confidence"].to_pylist()
    assert shares == sorted(row["confidence"] for row in labels(night, view))[:4]
    assert write_review(night.store, view, ledger, 1.0) == found


def test_nothing_below_the_bound_is_a_file_without_rows(reviewed):
    night, view, ledger = reviewed
    found = write_review(night.store, view, ledger, 0.01)
    assert (found.num_below, found.rows) == (0, 0)
    assert read_schema(night.store, found.path).names == ["image_id", "uri", "label", "confidence", "top_k", "model"]


def test_columns_whose_types_differ_become_text(reviewed):
    night, view, ledger = reviewed
    table = read_table(night.store, view.files[0])
    ids = pa.array([f"id-{n}" for n in range(10)])
    write_table(night.store, view.files[0], table.set_column(0, "image_id", ids).drop_columns("site"))
    found = write_review(night.store, view, ledger, 1.0)
    rows = read_table(night.store, found.path).to_pylist()
    assert {row["image_id"] for row in rows} == {*ids.to_pylist(), *map(str, range(10, 30))}
    assert [row["site"] for row in rows].count(None) == 10


def test_embeddings_stay_in_the_labels(night):
    night.write("a.parquet", range(4))
    config, version = night.config(label={"embeddings": True}), night.seal()
    view = night.whole(config, version)
    found = write_review(night.store, view, {}, 1.0)
    assert (found.rows, "embedding" in read_schema(night.store, found.path).names) == (4, False)
