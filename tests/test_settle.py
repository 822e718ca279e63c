from datetime import datetime

import pytest

from pipeline.publication import read_view


@pytest.fixture(autouse=True)
def model(night):
    return night.seal()


def test_the_logical_date_is_recorded_with_the_run_and_with_the_view(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(), "nightly", "--date", "2026-11-23")
    assert ended.record["date"] == "2026-11-23"
    assert ended.record["run_id"].startswith("2026-11-23-nightly-")
    assert read_view(night.store, "data").document["date"] == "2026-11-23"


def test_without_a_date_nothing_pretends_to_have_one(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(), "nightly")
    assert (ended.record["date"], read_view(night.store, "data").document["date"]) == (None, None)
    assert ended.record["run_id"].startswith(f"{datetime.now():%Y}")
    assert "-nightly-" in ended.record["run_id"]


def test_the_date_chooses_the_partition_that_a_night_labels(night, nightshift, local_ray):
    for day in ("2026-11-22", "2026-11-23"):
        (night.data / f"date={day}").mkdir(parents=True)
        night.write(f"date={day}/a.parquet", [f"{day}/{n}" for n in range(5)])
    config = night.config(input={"shard_images": 10, "filter": [["date", "=", "${date}"]]})
    first = nightshift(config, "nightly", "--date", "2026-11-23")
    assert (first.code, first.record["images_in"], first.record["remaining"]) == (0, 5, 0)
    second = nightshift(config, "nightly", "--date", "2026-11-22")
    assert (second.code, second.record["images_in"], second.record["skipped"]) == (0, 5, 5)
    assert read_view(night.store, "data").counts.labelled == 10
    third = nightshift(config, "nightly", "--date", "2026-11-24")
    assert (third.code, third.record["images_in"]) == (0, 0)
    assert "input.filter (date = 2026-11-24) takes none of the partitions of plan 1" in third.said


def test_a_backfill_of_one_partition_by_a_new_model_waits_for_the_others(night, model, nightshift, local_ray):
    for day in ("2026-11-22", "2026-11-23"):
        (night.data / f"date={day}").mkdir(parents=True)
        night.write(f"date={day}/a.parquet", [f"{day}/{n}" for n in range(5)])
    nightshift(night.config(), "nightly")
    config = night.config(input={"filter": [["date", "=", "2026-11-22"]]}, model={"version": night.seal(seed=1)})
    held = nightshift(config, "nightly")
    assert (held.code, held.record["images_in"]) == (3, 5)
    assert "replace the view only when every shard has them, and 1 shard with 5 images do not" in held.record["outcome"]
    assert read_view(night.store, "data").document["model"] == f"tiny@{model}"
