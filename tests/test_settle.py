from datetime import datetime

import pytest

from pipeline.errors import StorageError
from pipeline.publication import read_view
from pipeline.tables import read_table


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


def test_labels_below_the_bound_are_kept_for_a_look_when_the_view_is_new(night, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(10))
    config = night.config(label={"review_below": 0.45})
    first = nightshift(config, "nightly")
    rows = read_table(night.store, "review/data/1.parquet").to_pylist()
    assert 0 < len(rows) < 10
    assert first.record["review"] == {
        "path": "review/data/1.parquet",
        "below": 0.45,
        "num_below": len(rows),
        "rows": len(rows),
    }
    assert (
        f"to be looked at: {len(rows)} labels with a confidence below 0.45: {night.store.url}/review/data" in first.said
    )
    monkeypatch.setattr("pipeline.review.write_table", lambda *_: pytest.fail("nothing is new"))
    assert nightshift(config, "nightly").record["review"] == first.record["review"]


def test_a_run_that_died_before_the_review_is_made_up_for(night, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(10))
    config = night.config(label={"review_below": 1.0})
    with monkeypatch.context() as patch:

        def dies(*_):
            raise StorageError("the store went away")

        patch.setattr("jobs.settle.write_review", dies)
        assert nightshift(config, "nightly").code == 1
    assert read_view(night.store, "data").n == 1
    again = nightshift(config, "nightly")
    assert (again.code, again.record["view"], again.record["review"]["rows"]) == (0, 1, 10)


def test_without_a_bound_nothing_is_written_for_a_look(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    assert nightshift(night.config(), "nightly").record["review"] is None
    assert not list(night.store.list("review"))


def test_a_run_ends_with_its_books_and_its_json_stays_alone_on_stdout(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(), "label")
    assert ended.record["engines"][0]["images"] == 10
    lines = ended.said.splitlines()[-4:]
    assert lines[0].startswith("10 images in = 10 labelled + 0 quarantined; 0 were done before; took ")
    assert lines[1].startswith("engine: torch fp32 on ")
    assert lines[3].startswith("next: nightshift report CONFIG")
    assert (
        nightshift(night.config(), "label").said.splitlines()[-2] == "nothing was labelled; 10 images were done before"
    )
