import threading
import time

import pytest
from conftest import published

from cluster import early, planner
from pipeline.errors import StorageError
from pipeline.plans import read_plan, read_unfinished
from pipeline.publication import read_view

NUM_FILES, ROWS = 8, 5
INPUT = {"shard_images": ROWS}


@pytest.fixture(autouse=True)
def model(night, monkeypatch):
    monkeypatch.setattr(early, "PATIENCE_S", 0.0)
    monkeypatch.setattr(early, "SHARE", 0.0)
    monkeypatch.setattr("cluster.dispatch.UNREADY_S", 0.01)
    for number in range(NUM_FILES):
        night.write(f"{number}.parquet", range(ROWS * number, ROWS * number + ROWS))
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "quarantined", "skipped", "remaining"))


class SlowListing:
    """A listing that goes on from its file number `until` only when something has happened, or never if that fails."""

    def __init__(self, monkeypatch, until, happened, then=lambda: None):
        self.listed, self.waited, self._until, self._happened, self._then = planner.listed, False, until, happened, then
        monkeypatch.setattr(planner, "listed", self)

    def __call__(self, *arguments):
        for number, entry in enumerate(self.listed(*arguments)):
            if number == self._until:
                patience = time.monotonic() + 60
                while not self._happened():
                    assert time.monotonic() < patience, "it never happened"
                    time.sleep(0.01)
                self.waited = True
                self._then()
            yield entry


def committed(night):
    return [entry.path for entry in night.store.list("ledger") if not entry.path.endswith(".parquet")]


def test_the_first_shards_are_labelled_before_the_listing_ends(night, nightshift, local_ray, monkeypatch):
    listing = SlowListing(monkeypatch, NUM_FILES - 2, lambda: len(committed(night)) >= 2)
    night_1 = nightshift(night.config(input=INPUT), "nightly", "--run-id", "one")
    assert listing.waited
    assert (night_1.code, counts(night_1.record), local_ray.sessions) == (0, (40, 40, 0, 0, 0), 1)
    assert "what it has found so far is labelled while it goes on" in night_1.said
    assert [row[0] for row in published(night.store, "data")] == list(range(40))
    assert sorted(stage["name"] for stage in night_1.record["stages"]) == ["label", "plan"]
    assert night_1.record["changes"] == {"new": 40, "changed": 0, "deleted": 0}
    night_2 = nightshift(night.config(input=INPUT), "nightly")
    assert (night_2.code, counts(night_2.record)) == (0, (0, 0, 0, 40, 0))


def test_the_second_night_labels_only_what_is_new_while_it_lists(night, nightshift, local_ray, monkeypatch):
    config = night.config(input=INPUT)
    assert nightshift(config, "nightly").code == 0
    for number in range(NUM_FILES, 2 * NUM_FILES):
        night.write(f"{number:02}.parquet", range(ROWS * number, ROWS * number + ROWS))
    before = len(committed(night))
    SlowListing(monkeypatch, 2 * NUM_FILES - 2, lambda: len(committed(night)) > before)
    ended = nightshift(config, "nightly")
    assert (ended.code, counts(ended.record)) == (0, (40, 40, 0, 40, 0))
    assert len(committed(night)) == 2 * NUM_FILES
    assert [row[0] for row in published(night.store, "data")] == list(range(80))


def test_a_listing_that_breaks_off_loses_nothing(night, nightshift, local_ray, monkeypatch):
    """What was found is labelled and stays so; nothing is published, and the next night goes on from there."""

    def fail():
        raise StorageError("403 the credentials have expired")

    SlowListing(monkeypatch, NUM_FILES - 2, lambda: len(committed(night)) >= 2, fail)
    broken = nightshift(night.config(input=INPUT), "nightly")
    assert broken.code == 1
    assert "403 the credentials have expired" in broken.record["outcome"]
    done = broken.record["labelled"]
    assert done >= 2 * ROWS
    assert len(committed(night)) * ROWS == done, "what was in flight has ended"
    assert (read_plan(night.store, "data"), read_view(night.store, "data")) == (None, None)
    monkeypatch.undo()


def test_the_night_after_a_broken_listing_goes_on(night, nightshift, local_ray, monkeypatch):
    config = night.config(input=INPUT)
    with monkeypatch.context() as patch:
        SlowListing(patch, NUM_FILES - 2, lambda: len(committed(night)) >= 2, lambda: 1 / 0)
        broken = nightshift(config, "nightly")
    assert (broken.code, "ZeroDivisionError" in broken.record["outcome"]) == (1, True)
    kept, done = {shard.id for shard in read_unfinished(night.store, "data")}, broken.record["labelled"]
    ended = nightshift(config, "nightly")
    assert (ended.code, counts(ended.record)) == (0, (40 - done, 40 - done, 0, done, 0))
    assert kept <= {shard.id for shard in read_plan(night.store, "data").shards}
    assert [row[0] for row in published(night.store, "data")] == list(range(40))


def test_a_night_that_lost_too_much_keeps_its_labels_and_publishes_nothing(night, nightshift, local_ray, monkeypatch):
    config = night.config(input=INPUT)
    assert nightshift(config, "nightly").code == 0
    for number in range(NUM_FILES):
        (night.data / f"{number}.parquet").unlink()
        night.write(f"new-{number}.parquet", range(100 + ROWS * number, 100 + ROWS * number + ROWS))
    SlowListing(monkeypatch, NUM_FILES - 1, lambda: len(committed(night)) > NUM_FILES)
    held = nightshift(config, "nightly")
    assert held.code == 3
    assert "40 of 40 known images (100%) are gone" in held.record["outcome"]
    assert read_view(night.store, "data").counts.labelled == 40
    meant = nightshift(config, "nightly", "--set", "input.max_vanished_fraction=1")
    done = held.record["labelled"]
    assert done > 0
    assert (meant.code, counts(meant.record)) == (0, (40 - done, 40 - done, 0, done, 0))
    assert [row[0] for row in published(night.store, "data")] == list(range(100, 140))


def test_what_left_and_came_back_keeps_its_labels(night, nightshift, local_ray, monkeypatch, tmp_path):
    config, anything = night.config(input=INPUT), ("--set", "input.max_vanished_fraction=1")
    assert nightshift(config, "nightly").code == 0
    for number in range(1, NUM_FILES):
        (night.data / f"{number}.parquet").rename(tmp_path / f"{number}.parquet")
    assert nightshift(config, "nightly", *anything).code == 0
    for number in range(1, NUM_FILES):
        (tmp_path / f"{number}.parquet").rename(night.data / f"{number}.parquet")
    night.write("new.parquet", range(100, 105))
    ended = nightshift(config, "nightly")
    assert (ended.code, counts(ended.record)) == (0, (5, 5, 0, 40, 0))
    assert len(published(night.store, "data")) == 45


def test_limits_hold_for_what_is_labelled_ahead(night, nightshift, local_ray, monkeypatch):
    config = night.config(input=INPUT)
    SlowListing(monkeypatch, NUM_FILES - 1, lambda: len(committed(night)) >= 2)
    stopped = nightshift(config, "nightly", "--set", "label.max_images=12")
    assert (stopped.code, counts(stopped.record)) == (5, (15, 15, 0, 0, 25))
    assert "label.max_images = 12 is reached" in stopped.record["outcome"]
    assert nightshift(config, "nightly").record["skipped"] == 15


def test_an_interrupt_ends_the_listing_too(night, nightshift, local_ray, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    release = threading.Event()
    SlowListing(monkeypatch, NUM_FILES - 2, lambda: len(committed(night)) >= 1 and release.is_set())
    monkeypatch.setattr("jobs.shift.Shift._take", lambda self, *arguments: (release.set(), interrupt()))
    stopped = nightshift(night.config(input=INPUT), "nightly")
    assert stopped.code == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "planner"]
    assert read_plan(night.store, "data") is None
    monkeypatch.undo()
