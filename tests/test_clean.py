import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import published, write_config

from jobs.cli import main
from pipeline.documents import advance, newest
from pipeline.publication import read_view
from pipeline.storage import open_storage


@pytest.fixture
def model(night):
    return night.seal()


@pytest.fixture
def clean(tmp_path, capsys):
    """Run `nightshift clean` and return its exit code, its JSON and what it said."""

    def run(config, *arguments):
        path = write_config(tmp_path / "clean.yaml", config)
        capsys.readouterr()
        code = main(["clean", str(path), "--json", *arguments])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return run


def age(night, days):
    for path in Path(night.store.url).rglob("*"):
        if path.is_file():
            at = path.stat().st_mtime - days * 86400
            os.utime(path, (at, at))


def promote(night, version):
    advance(
        night.store, "models/tiny/production", {"version": version}, newest(night.store, "models/tiny/production")[0]
    )


def files(store):
    return {entry.path: entry.size_bytes for entry in store.list()}


def test_it_says_what_it_would_remove_and_removes_it_only_when_asked(night, model, nightshift, local_ray, clean):
    night.write("a.parquet", range(20))
    nightshift(night.config(), "nightly")
    age(night, 100)
    promote(night, night.seal(seed=1))
    nightshift(night.config(), "nightly")
    age(night, 40)
    before = files(night.store)
    code, said, words = clean(night.config(), "--older-than", "30")
    assert (code, said["removed"], files(night.store)) == (0, False, before)
    assert "the same command with --yes does it" in words
    code, done, words = clean(night.config(), "--older-than", "30", "--yes")
    gone = {path: size for path, size in before.items() if path not in files(night.store)}
    assert (code, done["removed"], done["kinds"]) == (0, True, said["kinds"])
    assert sum(kind["files"] for kind in done["kinds"].values()) == len(gone)
    assert sum(kind["bytes"] for kind in done["kinds"].values()) == sum(gone.values())
    assert done["kinds"]["labels"]["files"] == 1
    assert "removed" in words
    assert "--yes" not in words
    _, again, words = clean(night.config(), "--older-than", "30", "--yes")
    assert sum(kind["files"] for kind in again["kinds"].values()) == 0
    assert len(published(night.store, "data")) == 20


def test_an_empty_store_has_nothing_to_clean(night, clean):
    code, said, _ = clean(night.config(), "--older-than", "1", "--yes", "--models")
    assert (code, sum(kind["files"] for kind in said["kinds"].values())) == (0, 0)


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "soon", "99999999"])
def test_days_are_whole_and_at_least_one(days, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["clean", "x.yaml", "--older-than", days])
    assert stopped.value.code == 2
    assert "1 to 36500" in capsys.readouterr().err


def test_without_days_it_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["clean", "x.yaml"])


def test_a_bucket_is_cleaned_by_its_own_times(night, model, nightshift, local_ray, clean, s3, monkeypatch):
    bucket, settings = s3
    night.store = open_storage(f"{bucket}/store", settings)
    night.seal()
    night.write("a.parquet", range(20))
    config = night.config(storage=settings.model_dump())
    nightshift(config, "nightly")
    promote(night, night.seal(seed=1))
    nightshift(config, "nightly")
    assert all(abs(entry.modified_at - datetime.now(UTC)) < timedelta(hours=1) for entry in night.store.list())
    _, said, words = clean(config, "--older-than", "1", "--yes")
    assert sum(kind["files"] for kind in said["kinds"].values()) == 0
    assert "AbortIncompleteMultipartUpload" in words
    monkeypatch.setattr("jobs.clean.cutoff", lambda days: datetime.now(UTC) + timedelta(days=days))
    before = published(night.store, "data")
    code, said, _ = clean(config, "--older-than", "1", "--yes")
    assert (code, said["kinds"]["labels"]["files"], said["kinds"]["ledger"]["files"]) == (
        0,
        1,
        2,
    )  # the roll-up as well
    assert published(night.store, "data") == before
    assert nightshift(config, "nightly").record["images_in"] == 0


def test_what_a_delta_reader_sees_stays_readable(night, model, nightshift, local_ray, clean):
    deltalake = pytest.importorskip("deltalake")
    config = night.config(output={"table": "delta", "compact_below": 0})
    table = f"{night.store.url}/labels/data"
    for number in range(3):
        night.write(f"{number}.parquet", range(10 * number, 10 * number + 10))
        nightshift(config, "nightly")
        age(night, 20)
    promote(night, night.seal(seed=1))
    nightshift(config, "nightly")
    at_dawn = deltalake.DeltaTable(table)  # a reader that has just been overtaken
    old = deltalake.DeltaTable(table, version=at_dawn.version() - 1)
    clean(config, "--older-than", "1", "--yes")
    assert old.to_pyarrow_table().num_rows == 30
    age(night, 40)
    _, said, _ = clean(config, "--older-than", "30", "--yes")
    assert said["kinds"]["labels"]["files"] == 3
    rows = deltalake.DeltaTable(table).to_pyarrow_table()
    assert sorted(rows["image_id"].to_pylist()) == [row[0] for row in published(night.store, "data")]
    assert nightshift(config, "nightly").record["images_in"] == 0
    night.write("3.parquet", range(30, 35))
    nightshift(config, "nightly")
    assert deltalake.DeltaTable(table).to_pyarrow_table().num_rows == 35


def test_a_damaged_document_stops_cleaning_before_anything_is_removed(night, model, nightshift, local_ray, clean):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "nightly")
    path = next(entry.path for entry in night.store.list("ledger"))
    night.store.write("cache/x", b"x")
    night.store.write(path, b"{")
    age(night, 40)
    before = files(night.store)
    code, said, _ = clean(night.config(), "--older-than", "1", "--yes")
    assert (code, files(night.store)) == (1, before)
    assert "is not valid JSON" in said["outcome"]
    assert read_view(night.store, "data") is not None
