import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from conftest import published

from jobs.limits import Limits
from pipeline.publication import read_view
from pipeline.settings import LabelSettings


def shards(*sizes):
    return [SimpleNamespace(id=str(number), num_images=size) for number, size in enumerate(sizes)]


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "skipped", "remaining", "failed_shards"))


@pytest.fixture
def model(night):
    return night.seal()


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set: `clock.now`."""
    made = SimpleNamespace(now=datetime(2026, 11, 24, 2, tzinfo=UTC))
    monkeypatch.setattr("jobs.limits.datetime", SimpleNamespace(now=lambda zone: made.now))
    monkeypatch.setattr("jobs.runs.datetime", SimpleNamespace(now=lambda zone: made.now))
    return made


def after_each_shard(monkeypatch, does):
    """Call `does` whenever a shard is labelled and committed."""
    from pipeline.labelling import Labeller

    call = Labeller.__call__

    def labelled(self, shard, *more):
        entry = call(self, shard, *more)
        does(shard)
        return entry

    monkeypatch.setattr(Labeller, "__call__", labelled)


# The pure part.


@pytest.mark.parametrize(
    ("max_images", "done", "taken"),
    [(None, 0, 3), (1, 0, 1), (10, 0, 1), (11, 0, 2), (99, 0, 3), (20, 10, 1), (20, 20, 0)],
)
def test_whole_shards_are_taken_until_the_count_is_reached(max_images, done, taken):
    limits = Limits(LabelSettings(max_images=max_images), datetime.now(UTC))
    limits.count(done)
    assert list(limits.take(shards(10, 10, 10))) == shards(10, 10, 10)[:taken]


def test_no_limit_is_never_met():
    limits = Limits(LabelSettings(), datetime.now(UTC) - timedelta(days=400))
    limits.count(10**9)
    assert (limits.passed(), limits.reason) == (False, "")


# Whole runs.


def test_max_images_stops_between_shards_and_the_same_command_goes_on(night, model, nightshift, local_ray):
    night.write("a.parquet", range(50))
    config = night.config(input={"shard_images": 10}, label={"max_images": 15})
    found = [nightshift(config, "label") for _ in range(3)]
    assert [ended.code for ended in found] == [5, 5, 0]
    assert [counts(ended.record) for ended in found] == [(20, 20, 0, 30, 0), (20, 20, 20, 10, 0), (10, 10, 40, 0, 0)]
    assert "label.max_images = 15 is reached; 30 images in 3 shards remain" in found[0].record["outcome"]
    assert "stopped early; the same command continues it" in found[0].said
    assert [row[0] for row in published(night.store, "data")] == list(range(50))


def test_what_a_stopped_run_labelled_is_published(night, model, nightshift, local_ray):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10}, label={"max_images": 10})
    nightshift(config, "nightly")
    assert len(published(night.store, "data")) == 10
    nightshift(config, "nightly")
    assert len(published(night.store, "data")) == 20


def test_failed_shards_do_not_use_up_max_images(night, model, nightshift, local_ray, monkeypatch):
    from pipeline.errors import StorageError
    from pipeline.labelling import Labeller

    call = Labeller.__call__

    def poisoned(self, shard, *more):
        if shard.segments[0].first_row == 0:
            raise StorageError("always")
        return call(self, shard, *more)

    monkeypatch.setattr(Labeller, "__call__", poisoned)
    night.write("a.parquet", range(40))
    config = night.config(input={"shard_images": 10}, label={"max_images": 10})
    for done in (10, 20, 30):
        ended = nightshift(config, "label")
        assert counts(ended.record) == (10, 10, done - 10, 40 - done, 1)
    assert ended.code == 3, "all that is left has been tried"
    assert "1 shard failed" in ended.record["outcome"]


def test_after_the_deadline_no_shard_starts_and_what_is_in_flight_is_committed(
    night, model, nightshift, local_ray, clock, monkeypatch
):
    night.write("a.parquet", range(50))
    config = night.config(input={"shard_images": 10}, label={"deadline": "5h", "max_workers": 1})
    with monkeypatch.context() as patch:
        after_each_shard(patch, lambda shard: setattr(clock, "now", clock.now + timedelta(hours=2)))
        ended = nightshift(config, "label")
    assert ended.code == 5
    # The third shard passes the deadline; the fourth is in flight beside it.
    assert counts(ended.record) == (40, 40, 0, 10, 0)
    assert "label.deadline = 5h passed at" in ended.record["outcome"]
    assert "10 images in 1 shard remain" in ended.record["outcome"]
    assert len(published(night.store, "data")) == 40
    rest = nightshift(config, "label")
    assert (rest.code, counts(rest.record)) == (0, (10, 10, 40, 0, 0))


def test_a_deadline_that_passes_with_the_last_shard_stops_nothing(
    night, model, nightshift, local_ray, clock, monkeypatch
):
    night.write("a.parquet", range(10))
    after_each_shard(monkeypatch, lambda shard: setattr(clock, "now", clock.now + timedelta(hours=9)))
    ended = nightshift(night.config(label={"deadline": "5h"}), "label")
    assert (ended.code, counts(ended.record)) == (0, (10, 10, 0, 0, 0))


def test_a_deadline_that_passed_while_planning_starts_no_session(
    night, model, nightshift, local_ray, clock, monkeypatch
):
    from jobs import ahead

    night.write("a.parquet", range(10))
    nightshift(night.config(), "plan")
    local_ray.sessions = 0
    make = ahead.bring_up_to_date

    def slow(*arguments):
        clock.now += timedelta(hours=6)
        return make(*arguments)

    monkeypatch.setattr(ahead, "bring_up_to_date", slow)
    ended = nightshift(night.config(label={"deadline": "5h"}), "nightly")
    assert (ended.code, counts(ended.record), local_ray.sessions) == (5, (0, 0, 0, 10, 0), 0)
    assert "10 images in 1 shard remain" in ended.record["outcome"]
    assert read_view(night.store, "data") is None


def test_a_new_models_labels_wait_also_when_the_deadline_stops_them(night, model, nightshift, local_ray):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "label")
    other = ["--set", f"model.version={night.seal(seed=1)}", "--set", "label.max_images=20"]
    stopped = nightshift(config, "label", *other)
    assert (stopped.code, counts(stopped.record)) == (5, (20, 20, 0, 10, 0))
    assert "replace the view only when every shard has them, and 1 shard with 10 images do not" in stopped.said
    assert read_view(night.store, "data").document["model"] == f"tiny@{model}"
    done = nightshift(config, "nightly", *other)
    assert (done.code, counts(done.record)) == (0, (10, 10, 20, 0, 0))
    assert read_view(night.store, "data").document["model"] == done.record["model"]


@pytest.mark.parametrize("value", ["06:00", "22:30", "1h30m"])
def test_a_time_of_day_needs_no_quotes_in_yaml(night, value, tmp_path):
    from jobs.config import read_config

    (tmp_path / "night.yaml").write_text(f"store: s\ninput: {{url: d}}\nlabel: {{deadline: {value}}}\n")
    assert read_config(str(tmp_path / "night.yaml")).label.deadline == value
    assert read_config(str(tmp_path / "night.yaml"), ["label.deadline=23:05"]).label.deadline == "23:05"


def test_a_deadline_that_is_none_is_refused_with_its_key(night, model, nightshift, tmp_path, capsys):
    from jobs.cli import main

    (tmp_path / "night.yaml").write_text("store: s\ninput: {url: d}\nlabel: {deadline: soon}\n")
    assert main(["label", str(tmp_path / "night.yaml"), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["outcome"]
    assert "label.deadline: expected a duration above zero" in said
    assert "'soon'" in said
