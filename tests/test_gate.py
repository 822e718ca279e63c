"""Nights that checks hold back, approve and reject, through the commands."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import published

from pipeline.errors import StorageError
from pipeline.holds import read_holds
from pipeline.publication import read_view

SIZE = 150
CHECKS = {"max_psi": 0.25, "min_images": 50}


@pytest.fixture
def nights(night, nightshift, local_ray):
    """Return what does one night over 150 new images, ordinary ones or all the same, and how it ended."""
    night.seal()
    done = []

    def go(odd=False, command="nightly", new=True, **sections):
        if new:
            first = len(done) * SIZE
            ids = range(first, first + SIZE)
            pictures = [night.png(1)] * SIZE if odd else [night.png(n % 97) for n in range(SIZE)]
            night.write(f"{len(done)}.parquet", ids, rows_per_group=50, image=pa.array(pictures, pa.binary()))
            done.append(ids)
        config = night.config(checks=CHECKS, **sections)
        date = ("--date", f"2026-11-{10 + len(done)}") if command == "nightly" else ()
        name = f"{command}-{len(done)}-{len(list(night.store.list('runs')))}"
        return nightshift(config, command, "--run-id", name, *date)

    go.config = lambda: night.config(checks=CHECKS)
    return go


def rows(night):
    return [row[0] for row in published(night.store, "data")]


@pytest.fixture
def held(nights, night):
    """Two ordinary nights, and a third that is held back."""
    assert [nights().code, nights().code] == [0, 0]
    ended = nights(odd=True)
    assert ended.code == 3, ended.said
    return ended


def test_a_drifted_night_is_held_with_its_reason_and_the_view_stays(held, night):
    assert "the labels are others than in the 2 nights before: population stability index" in held.record["outcome"]
    assert "`nightshift approve CONFIG --run nightly-3-" in held.record["outcome"]
    assert held.record["labelled"] == SIZE, "its labels are kept"
    assert read_view(night.store, "data").n == 2
    assert rows(night) == list(range(2 * SIZE))
    (hold,) = read_holds(night.store, "data")
    assert (hold.run_id, hold.images, hold.decision) == (held.record["run_id"], SIZE, None)


def test_the_same_command_labels_nothing_anew_and_says_what_waits(held, nights, night):
    again = nights(new=False)
    assert (again.code, again.record["images_in"]) == (3, 0)
    assert f"what run {held.record['run_id']} labelled is held back still" in again.record["outcome"]
    assert read_view(night.store, "data").n == 2


def test_the_next_night_is_published_without_it(held, nights, night):
    following = nights()
    assert following.code == 3
    assert rows(night) == [*range(2 * SIZE), *range(3 * SIZE, 4 * SIZE)]
    assert following.record["checks"]["nights"] == 2, "a night that is held is no measure"


def test_approve_publishes_it(held, nights, night):
    ended = nights(new=False, command="approve")
    assert ended.code == 0, ended.said
    assert f"approved: {SIZE} images of run {held.record['run_id']}" in ended.said
    assert rows(night) == list(range(3 * SIZE))
    assert nights(new=False).code == 0
    again = nights(new=False, command="approve")
    assert (again.code, "Waiting for a decision: none" in again.record["outcome"]) == (2, True)
    assert nights(odd=True).record["checks"]["nights"] == 3, "what was approved is a measure from now on"


def test_reject_keeps_it_out_for_good(held, nights, night):
    assert nights(new=False, command="reject").code == 0
    assert rows(night) == list(range(2 * SIZE))
    again = nights(new=False)
    assert (again.code, again.record["images_in"]) == (0, 0), "it is labelled, and stays out"
    assert nights().code == 0
    assert rows(night) == [*range(2 * SIZE), *range(3 * SIZE, 4 * SIZE)]
    assert nights(new=False, command="approve").code == 2


def test_wider_bounds_let_it_through(held, nights, night, nightshift):
    ended = nightshift(nights.config(), "nightly", "--set", "checks.max_psi=50")
    assert ended.code == 0, ended.said
    assert rows(night) == list(range(3 * SIZE))
    assert [hold.decision for hold in read_holds(night.store, "data")] == ["approved"]


def test_an_interrupted_nights_labels_are_judged_with_the_rest(nights, night, monkeypatch):
    nights()

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jobs.settle.judge", stops)
        assert nights(odd=True).code == 5
    ended = nights(new=False)
    assert (ended.code, ended.record["images_in"]) == (3, 0)
    assert "population stability index" in ended.record["outcome"]
    assert rows(night) == list(range(SIZE))


def test_what_a_person_is_told_names_the_classes(held):
    moved = held.record["outcome"].split("(")[-1]
    assert any(f"{name} " in moved for name in ("ant", "bee", "cat"))
    assert "->" in moved


def test_history_shows_how_nights_ended(held, nights, night, nightshift, capsys):
    nights(new=False, command="reject")
    nights()
    ended = nightshift(nights.config(), "history")
    lines = ended.record
    assert [line["images_in"] for line in lines] == [SIZE] * 4
    assert [line["ended"] for line in lines] == ["complete", "complete", "rejected", "complete"]
    assert [line["published"] for line in lines] == [True, True, False, True]
    assert lines[2]["psi"] > 0.25 > lines[3]["psi"]
    assert lines[0]["psi"] is None
    assert 0 < lines[0]["confidence"] < 1
    from jobs.cli import main

    path = Path(night.store.url).parent / "night.yaml"
    assert main(["history", str(path), "--limit", "2", "--set", "cluster.price_per_hour=3600"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert "rejected" in table[1]
    assert f"{lines[2]['seconds']:.{2 if lines[2]['seconds'] >= 1 else 4}f}" in table[1], "the price is per hour"


def test_a_store_without_nights_has_no_history(night, nightshift, capsys):
    ended = nightshift(night.config(), "history")
    assert ended.record == []


def test_bounds_that_exclude_each_other_are_refused():
    from pipeline.checksettings import CheckSettings

    with pytest.raises(ValueError, match="min_volume"):
        CheckSettings(min_volume=2, max_volume=1)


def test_a_record_stays_one_json_document(held):
    assert json.loads(json.dumps(held.record))["night"]["images_in"] == SIZE


def test_approve_again_publishes_again(held, nights, night, nightshift, monkeypatch):
    """A decision that could not be carried out is no dead end."""

    def fails(*_):
        raise StorageError("the store is full")

    with monkeypatch.context() as patch:
        patch.setattr("jobs.settle.publish", fails)
        assert nights(new=False, command="approve").code == 1
    assert rows(night) == list(range(2 * SIZE))
    again = nightshift(nights.config(), "approve", "--run", held.record["run_id"])
    assert again.code == 0, again.said
    assert rows(night) == list(range(3 * SIZE))


def test_approve_does_not_bring_an_older_model_back(held, nights, night, nightshift):
    newer = night.seal(seed=5)
    ended = nightshift(
        night.config(checks={}, model={"version": newer}), "nightly"
    )  # another model labels everything, as it may without bounds
    assert (ended.code, ended.record["labelled"]) == (0, 3 * SIZE)
    refused = nightshift(night.config(checks=CHECKS, model={"version": newer}), "approve")
    assert refused.code == 2
    assert "is not what is published now" in refused.record["outcome"]
    assert [hold.decision for hold in read_holds(night.store, "data")] == [None], (
        "nothing is decided that cannot be done"
    )
    assert read_view(night.store, "data").document["model"] == f"tiny@{newer}"


def test_rejected_labels_stay_out_when_they_are_made_again(nights, night, nightshift):
    nights()
    first = len(range(SIZE))
    pictures = [night.png(1)] * (SIZE - 1) + [b"no picture"]
    night.write("odd.parquet", range(first, first + SIZE), rows_per_group=50, image=pa.array(pictures, pa.binary()))
    assert nights(new=False).code == 3
    assert nights(new=False, command="reject").code == 0
    again = nightshift(nights.config(), "label", "--retry-quarantined")
    assert again.record["images_in"] > 0
    assert rows(night) == list(range(SIZE))


def test_what_a_running_night_has_committed_is_not_judged_by_approve(held, nights, night, nightshift, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jobs.settle.judge", stops)  # as if it were still at it
        nights()
    assert nightshift(nights.config(), "approve").code == 0
    assert rows(night) == list(range(3 * SIZE)), "the approved night, and not the one that nobody has judged"
    assert len(read_holds(night.store, "data")) == 1
    assert nights(new=False).code == 0
    assert rows(night) == list(range(4 * SIZE))


def test_a_store_whose_only_night_was_rejected_says_so(nights, night, nightshift):
    night.write("a.parquet", range(10), image=pa.array([b"bad"] * 10, pa.binary()))
    assert nightshift(nights.config(), "nightly").code == 3
    assert nightshift(nights.config(), "reject").code == 0
    ended = nightshift(nights.config(), "nightly")
    assert (ended.code, "all that is labelled so far was rejected" in ended.said) == (0, True)


def test_a_new_model_is_not_held_for_labelling_everything(nights, night, nightshift):
    for _ in range(3):
        assert nights().code == 0
    newer = night.seal(seed=5)
    checks = {"max_volume": 1.5, "min_volume": 0.5}
    ended = nightshift(night.config(checks=checks, model={"version": newer}), "nightly")
    assert (ended.code, ended.record["labelled"], ended.record["checks"]["volume"]) == (0, 3 * SIZE, None)


def test_published_labels_are_never_judged_as_new(nights, night, nightshift):
    """Generations that no shard is left of, or has come to yet, change nothing about the others."""
    nights()
    for seed in (5, 6):
        newer = night.seal(seed=seed)
        config = night.config(checks=CHECKS, model={"version": newer}, label={"relabel": "new"})
        ended = nightshift(config, "nightly")
        assert (ended.code, ended.record["night"]["images_in"]) == (0, 0)
    assert read_holds(night.store, "data") == []


def test_what_waits_is_not_cleaned_away(held, nights, night, nightshift):
    for path in Path(night.store.url).rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    assert nightshift(nights.config(), "clean", "--older-than", "1", "--yes", "--models").code == 0
    assert nightshift(nights.config(), "approve").code == 0
    assert rows(night) == list(range(3 * SIZE))
