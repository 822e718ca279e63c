"""A disk that fills up while a night is written: nothing is half committed, and a rerun with space completes."""

import errno

import pytest
from conftest import published

from pipeline.plans import read_plan
from pipeline.publication import read_view
from pipeline.storage import FileStorage


@pytest.fixture(autouse=True)
def model(night, monkeypatch):
    monkeypatch.setattr("cluster.retries.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("cluster.retries.FULL_PATIENCE_S", 0)  # of a minute, in which space may be made
    return night.seal()


class Disk:
    """Writes below `folder` until `left` bytes are used up; then half a temporary file, and no space left on device."""

    def __init__(self, monkeypatch, folder, left):
        self.left = left
        write = FileStorage._write_temporary

        def limited(storage, path, data):
            if path.startswith(folder) and len(data) > self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= len(data) if path.startswith(folder) else 0
            return write(storage, path, data)

        monkeypatch.setattr(FileStorage, "_write_temporary", limited)


@pytest.mark.parametrize(("folder", "left"), [("labels/", 0), ("labels/", 9000), ("ledger/", 0), ("ledger/", 2000)])
def test_shards_that_do_not_fit_fail_with_the_reason_and_a_rerun_completes(
    night, nightshift, local_ray, monkeypatch, folder, left
):
    night.write("a.parquet", range(50))
    config = night.config(input={"shard_images": 10}, label={"attempts": 2})
    with monkeypatch.context() as patch:
        Disk(patch, folder, left)
        ended = nightshift(config, "nightly")
    assert ended.code == 3
    assert ended.record["failed_shards"] > 0
    assert ended.record["labelled"] + 10 * ended.record["failed_shards"] == 50
    assert "No space left on device" in ended.record["failures"][0]["error"]
    assert "free space" in ended.record["failures"][0]["error"]
    view = read_view(night.store, "data")
    assert (view.counts.labelled if view else 0) == ended.record["labelled"]
    rerun = nightshift(config, "nightly")
    assert (rerun.code, rerun.record["labelled"]) == (0, 50 - ended.record["labelled"])
    assert [row[0] for row in published(night.store, "data")] == list(range(50))


@pytest.mark.parametrize("folder", ["published/", "plans/"])
def test_a_night_that_cannot_be_planned_or_published_fails_whole_and_a_rerun_completes(
    night, nightshift, local_ray, monkeypatch, folder
):
    night.write("a.parquet", range(20))
    nightshift(night.config(), "nightly")
    night.write("b.parquet", range(20, 30))
    before = published(night.store, "data")
    with monkeypatch.context() as patch:
        Disk(patch, folder, 0)
        ended = nightshift(night.config(), "nightly")
    assert ended.code == 1
    assert "No space left on device" in ended.said
    assert published(night.store, "data") == before
    assert read_plan(night.store, "data").n == (1 if folder == "plans/" else 2)
    rerun = nightshift(night.config(), "nightly")
    assert rerun.code == 0
    assert [row[0] for row in published(night.store, "data")] == list(range(30))


def test_a_record_that_does_not_fit_is_said(night, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(10))
    Disk(monkeypatch, "runs/", 0)
    ended = nightshift(night.config(), "nightly")
    assert ended.code == 1
    assert "the run's record cannot be written" in ended.said
    assert len(published(night.store, "data")) == 10
