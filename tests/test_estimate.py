import json

import pytest

from jobs.estimate import _duration


@pytest.fixture
def model(night):
    return night.seal()


def store_of(night):
    return sorted((entry.path, entry.version) for entry in night.store.list())


@pytest.mark.parametrize("command", ["label", "nightly"])
def test_a_dry_run_before_anything_counts_everything_and_writes_nothing(night, model, nightshift, local_ray, command):
    path = night.write("a.parquet", range(25), rows_per_group=5)
    before = store_of(night)
    ended = nightshift(night.config(input={"shard_images": 10}), command, "--dry-run")
    assert ended.code == 0
    said = ended.record
    assert (said["dry_run"], said["shards"], said["images"], said["skipped"], said["plan"]) == (True, 3, 25, 0, 1)
    assert abs(said["bytes"] - path.stat().st_size) < 3
    assert (said["seconds"], said["cost"], said["rate_of_run"], said["model"]) == (None, None, None, f"tiny@{model}")
    assert "tiny@" in ended.said
    assert "no earlier run of this data set and model" in ended.said
    assert store_of(night) == before


def test_a_nightly_dry_run_looks_at_the_input_as_it_is_now_and_label_at_the_newest_plan(
    night, model, nightshift, local_ray
):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10}, cluster={"price_per_hour": 36.0})
    last = nightshift(config, "nightly", "--run-id", "night-1").record
    night.write("b.parquet", range(20, 45))
    before = store_of(night)
    local_ray.sessions = 0
    assert nightshift(config, "label", "--dry-run").record["images"] == 0
    assert local_ray.sessions == 0
    ended = nightshift(config, "nightly", "--dry-run")
    said = ended.record
    assert (said["images"], said["shards"], said["skipped"], said["plan"]) == (25, 3, 20, 2)
    assert (said["rate_of_run"], said["images_per_s"]) == ("night-1", last["images_per_s"])
    assert said["seconds"] == pytest.approx(25 / last["images_per_s"], abs=0.06)
    assert said["cost"] == pytest.approx(25 / last["images_per_s"] / 100, abs=1e-3)
    assert "the rate of run night-1" in ended.said
    assert "at 36 per hour" in ended.said
    assert store_of(night) == before


def test_limits_and_a_new_model_are_minded(night, model, nightshift, local_ray):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    other = night.seal(seed=1)
    night.write("b.parquet", range(30, 35))
    asked = ["nightly", "--dry-run", "--set", f"model.version={other}"]
    assert nightshift(config, *asked).record["images"] == 35
    assert nightshift(config, *asked, "--set", "label.relabel=new").record["images"] == 5
    assert nightshift(config, *asked, "--set", "label.max_images=11").record["images"] == 20


def test_the_rate_of_another_model_or_data_set_is_not_taken(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    for run_id, dataset, name in [("x", "data", "other"), ("y", "elsewhere", "tiny")]:
        record = {"run_id": run_id, "started_at": "2026", "dataset": dataset, "model": f"{name}@1", "images_per_s": 5.0}
        night.store.write(f"runs/{run_id}/run.json", json.dumps(record).encode())
    assert nightshift(night.config(), "nightly", "--dry-run").record["rate_of_run"] is None


def test_a_dry_run_ends_as_the_night_would_where_that_is_known(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    (night.data / "b.parquet").write_bytes(b"half")
    before = store_of(night)
    assert nightshift(night.config(), "nightly", "--dry-run").code == 3
    refused = nightshift(night.config(model={"name": "other"}), "nightly", "--dry-run")
    assert (refused.code, refused.record["exit_code"]) == (2, 2)
    assert store_of(night) == before


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min")]
)
def test_durations_are_spelled_with_two_units(seconds, words):
    assert _duration(seconds) == words
