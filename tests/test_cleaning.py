import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import published

from jobs.clean import _scope
from pipeline.cleaning import Scope, cutoff, remove, superfluous
from pipeline.documents import advance, newest
from pipeline.publication import read_view
from pipeline.storage import Entry


def age(night, days, below=""):
    """Let days pass for everything that the store holds."""
    for path in (Path(night.store.url) / below).rglob("*"):
        if path.is_file():
            at = path.stat().st_mtime - days * 86400
            os.utime(path, (at, at))


def files(night):
    return {entry.path for entry in night.store.list()}


def clean(night, config, days=30, models=False):
    """Clean, and return the paths that are gone."""
    scope = _scope(config, night.store, days)
    before = files(night)
    gone = remove(night.store, scope, superfluous(night.store, scope, models))
    paths = {entry.path for entries in gone.values() for entry in entries}
    assert files(night) == before - paths
    return paths


def promote(night, version):
    at = newest(night.store, "models/tiny/production")
    advance(night.store, "models/tiny/production", {"version": version}, at[0] if at else 0)


@pytest.fixture
def model(night):
    return night.seal()


def test_what_is_young_stays_whatever_it_is(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    promote(night, night.seal(seed=1))
    nightshift(config, "nightly")
    night.store.write("cache/x", b"x")
    assert clean(night, config, days=1, models=True) == set()


def test_an_old_generation_goes_with_its_ledger_when_the_view_has_left_it_for_long(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    old = nightshift(config, "nightly").record["fingerprint"]
    age(night, 100)
    promote(night, night.seal(seed=1))
    new = nightshift(config, "nightly").record["fingerprint"]
    age(night, 20)
    left = {path.split("/")[0] for path in clean(night, config)}
    assert left == {"cache"}, "it left the view 20 days ago, and readers may still be at it"
    age(night, 20)
    gone = clean(night, config)
    kinds = {path.split("/")[0] for path in gone if old in path}
    assert kinds == {"labels", "ledger"}
    assert not [path for path in files(night) if old in path]
    assert not [path for path in gone if new in path]
    assert "published/data/1.json" in gone
    assert len(published(night.store, "data")) == 20


def test_the_production_models_generation_stays_while_it_is_built(night, model, nightshift, local_ray):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    promote(night, night.seal(seed=1))
    half = nightshift(config, "nightly", "--set", "label.max_images=20").record
    age(night, 40)
    assert not [path for path in clean(night, config) if half["fingerprint"] in path]
    done = nightshift(config, "nightly").record
    assert (done["images_in"], done["skipped"], done["exit_code"]) == (10, 20, 0)


def test_files_of_a_relabelled_shard_go_when_no_kept_view_lists_them(night, model, nightshift, local_ray):
    images = pa.array([b"bad"] + [night.png(n) for n in range(9)], pa.binary())
    night.write("a.parquet", range(10), image=images)
    config = night.config(label={"max_bad_fraction": 1.0})
    nightshift(config, "nightly")
    first = read_view(night.store, "data")
    age(night, 40)
    nightshift(config, "label", "--retry-quarantined")
    assert not set(first.files) & clean(night, config)
    age(night, 40)
    second = read_view(night.store, "data")
    gone = clean(night, config)
    assert gone >= {*first.files, *first.document["quarantine_files"]}
    assert not gone & {*second.files, *second.document["quarantine_files"]}


def test_plans_but_the_newest_go_and_a_later_plan_keeps_every_shard(night, model, nightshift, local_ray):
    config = night.config(input={"shard_images": 10})
    for number in range(3):
        night.write(f"{number}.parquet", range(10 * number, 10 * number + 10))
        nightshift(config, "nightly")
    night.store.write("plans/data/3/part-00000-lost.parquet", b"of a planner that was second")
    night.store.write("plans/data/4/part-00000-half.parquet", night.store.read(parts(night, 3)[0]))
    age(night, 40)
    gone = {path for path in clean(night, config) if path.startswith("plans/")}
    assert {path.split("/")[2] for path in gone} == {"1", "2", "3"}
    assert [path for path in gone if "/3/" in path] == ["plans/data/3/part-00000-lost.parquet"]
    night.write("3.parquet", range(30, 40))
    ended = nightshift(config, "nightly")
    assert (ended.record["images_in"], ended.record["skipped"]) == (10, 30)


def parts(night, n):
    document = json.loads(night.store.read(f"plans/data/{n}/plan.json"))
    return [f"plans/data/{n}/{name}" for name in document["parts"]]


def test_runs_go_but_not_those_of_the_view_the_last_one_and_other_data_sets(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "plan", "--run-id", "planned")
    nightshift(night.config(), "label", "--run-id", "labelled")
    nightshift(night.config(), "nightly", "--run-id", "idle-1")
    nightshift(night.config(), "nightly", "--run-id", "idle-2")
    for name, dataset in [("other", "elsewhere"), ("damaged", None)]:
        record = {"run_id": name, "dataset": dataset, "started_at": "2020"}
        night.store.write(f"runs/{name}/run.json", json.dumps(record).encode() if dataset else b"{")
    night.store.write("runs/killed/report.html", b"")
    age(night, 40)
    gone = {path.split("/")[1] for path in clean(night, night.config()) if path.startswith("runs/")}
    assert gone == {"planned", "idle-1", "killed"}


def test_trainings_and_features_go_but_that_a_training_is_finished_stays_known(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "nightly")
    names = ["features/data/f/s.parquet", "trainings/old/epoch-1.safetensors", "trainings/old/epoch-1.json"]
    found = [f"trainings/old/{name}.json" for name in ("result", "tuning", "trials/0a1b", "folds/4-0")]
    for name in [*names, *found, "features/other/f/s.parquet"]:
        night.store.write(name, b"{}")
    age(night, 40)
    night.store.write("trainings/running/epoch-1.json", b"{}")
    assert {p for p in clean(night, night.config()) if p[0] in "ft"} == set(names[1:]), (
        "a training may be reading features"
    )
    age(night, 40)
    gone = clean(night, night.config())
    assert {p for p in gone if p[0] in "ft"} == {names[0], "trainings/running/epoch-1.json"}


def test_bundles_go_only_when_asked_and_never_those_that_something_names(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "nightly")
    unused, pinned, elsewhere, now = (night.seal(seed=n) for n in range(1, 5))
    promote(night, now)
    document = {"model": f"tiny@{elsewhere}", "files": [], "generation": f"tiny@{elsewhere}"}
    night.store.write("published/other/1.json", json.dumps(document).encode())
    age(night, 40)
    config = night.config(model={"version": pinned})
    assert not [path for path in clean(night, config) if path.startswith("models/")]
    gone = {path.split("/")[2] for path in clean(night, config, models=True) if path.startswith("models/")}
    assert gone == {unused}


def test_the_cache_goes_and_the_digests_of_ids_stay(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "nightly")
    night.store.write("cache/engines/x", b"x")
    age(night, 40)
    cached = {entry.path for entry in night.store.list("cache")}
    digests = {path for path in cached if path.startswith("cache/identities/")}
    gone = {path for path in clean(night, night.config()) if path.startswith("cache/")}
    assert digests
    assert gone == cached - digests
    assert "cache/engines/x" in gone


def test_temporary_files_of_killed_writers_go_and_other_hidden_files_stay(night, model):
    night.write("a.parquet", range(10))
    night.whole(night.config(), model)
    folder = Path(night.store.url) / "labels/data"
    left, other = folder / ".x.parquet.0123456789ab.tmp", folder / ".profile.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    clean(night, night.config())
    assert left.exists()
    age(night, 40)
    clean(night, night.config())
    assert (left.exists(), other.exists()) == (False, True)


def test_another_data_set_and_foreign_files_beside_the_labels_are_left_alone(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    nightshift(night.config(), "nightly")
    foreign = {"labels/data/notes/x.parquet", "labels/other/tiny@1/x.parquet", "ledger/other/tiny@1/x.json", "mine.txt"}
    for path in foreign:
        night.store.write(path, b"{}")
    age(night, 40)
    assert not foreign & clean(night, night.config())


def test_without_a_plan_no_label_is_touched(night, model):
    night.write("a.parquet", range(10))
    night.whole(night.config(), model)
    for path in [path for path in files(night) if path.startswith("plans/")]:
        night.store.delete(path)
    age(night, 40)
    assert not [path for path in clean(night, night.config()) if path.startswith(("labels/", "ledger/"))]


@pytest.mark.parametrize(("behind", "kept"), [(0, {4}), (1, {3, 4}), (3, {1, 2, 3, 4}), (None, {1, 2, 3, 4})])
def test_views_from_the_one_that_a_delta_table_shows_stay(night, model, nightshift, local_ray, behind, kept):
    config = night.config()
    for number in range(4):
        night.write(f"{number}.parquet", range(10 * number, 10 * number + 10))
        nightshift(config, "nightly")
        if behind is not None and number < 4 - behind:
            actions = [{"commitInfo": {}}, {"txn": {"appId": "nightshift.view", "version": number + 1}}]
            text = "\n".join(json.dumps(action) for action in actions)
            night.store.write(f"labels/data/_delta_log/{number:020}.json", text.encode())
        elif behind is None:
            night.store.write("labels/data/_delta_log/00000000000000000000.json", b'{"commitInfo": {}}\n')
    age(night, 40)
    gone = clean(night, config)
    assert not [path for path in gone if "_delta_log" in path]
    assert {int(p.rsplit("/", 1)[1][:-5]) for p in files(night) if p.startswith("published/data/")} == kept


def test_a_delta_commit_of_tonight_keeps_the_view_that_it_took_away(night, model, nightshift, local_ray):
    config = night.config()
    for number, shown in enumerate([1, None, 3]):
        night.write(f"{number}.parquet", range(10 * number, 10 * number + 10))
        nightshift(config, "nightly")
        if number == 1:
            age(night, 40)  # the commit for view 2 was lost; the table showed view 1 until tonight
        if shown:
            text = json.dumps({"txn": {"appId": "nightshift.view", "version": shown}})
            night.store.write(f"labels/data/_delta_log/{number:020}.json", text.encode())
    assert "published/data/1.json" not in clean(night, config)


def test_a_store_without_times_keeps_everything():
    scope = Scope("data", "tiny", cutoff(1), frozenset(), frozenset())
    assert not scope.old([Entry("a", 1, "v")])
    assert scope.old([Entry("a", 1, "v", datetime.now(UTC) - timedelta(days=2))])


def test_what_was_written_or_published_since_it_was_listed_stays(night, model, nightshift, local_ray):
    night.write("a.parquet", range(10))
    config = night.config()
    nightshift(config, "nightly")
    first = read_view(night.store, "data").files[0]
    age(night, 100)
    promote(night, night.seal(seed=1))
    nightshift(config, "nightly")
    night.store.write("cache/x", b"x")
    age(night, 40)
    scope = _scope(config, night.store, 30)
    found = superfluous(night.store, scope)
    listed = {entry.path for entries in found.values() for entry in entries}
    assert {first, "cache/x"} <= listed
    night.store.write("cache/x", b"x")
    promote(night, model)
    nightshift(config, "nightly")  # back to the old model: its files are the view again
    remove(night.store, scope, found)
    assert {first, "cache/x"} <= files(night)
    assert len(published(night.store, "data")) == 10


def test_cleaning_at_every_step_of_a_running_night_loses_nothing(night, model, nightshift, local_ray, monkeypatch):
    from pipeline import labelling

    images = pa.array([b"bad"] + [night.png(n) for n in range(19)], pa.binary())
    night.write("a.parquet", range(20), image=images)
    config = night.config(input={"shard_images": 10}, label={"max_bad_fraction": 1.0})
    nightshift(config, "nightly")
    age(night, 100)
    night.write("b.parquet", range(20, 50))
    promote(night, night.seal(seed=1))
    commit = labelling.commit

    def cleaned(*arguments):
        clean(night, config, days=1)
        entry = commit(*arguments)
        clean(night, config, days=1)
        return entry

    monkeypatch.setattr(labelling, "commit", cleaned)
    ended = nightshift(config, "nightly")
    assert (ended.code, ended.record["images_in"], ended.record["quarantined"]) == (0, 50, 1)
    assert len(published(night.store, "data")) == 49
    again = nightshift(config, "nightly")
    assert (again.code, again.record["images_in"], again.record["view"]) == (0, 0, ended.record["view"])


def rows(night):
    """Return the view as a reader sees it."""
    view = read_view(night.store, "data")
    return published(night.store, "data"), view.n, view.document["counts"]


@pytest.mark.parametrize("seed", range(8))
def test_after_any_history_cleaning_changes_no_row_and_leaves_a_night_nothing_to_do(night, nightshift, local_ray, seed):
    chance = random.Random(seed)
    versions = [night.seal(seed=n) for n in range(3)]
    settings = {"input": {"shard_images": 7, "max_vanished_fraction": 1.0}, "output": {"compact_below": 1000}}
    config = night.config(**settings, label={"max_bad_fraction": 1.0})
    next_id = 0
    for number in range(chance.randint(4, 7)):
        for _ in range(chance.randint(1, 8)):
            count = chance.randint(1, 12)
            ids = range(next_id, next_id + count)
            images = [b"bad" if chance.random() < 0.1 else night.png(n) for n in ids]
            name = f"{chance.randint(0, 12)}.parquet"  # perhaps over another
            night.write(name, ids, image=pa.array(images, pa.binary()))
            next_id += count
        there = sorted(night.data.iterdir())
        for path in chance.sample(there, chance.randint(0, len(there) - 1) // 3):
            path.unlink()
        if chance.random() < 0.4:
            promote(night, chance.choice(versions))
        relabel = ["--set", f"label.relabel={chance.choice(['all', 'new'])}"]
        limit = ["--set", f"label.max_images={chance.randint(1, 40)}"] if chance.random() < 0.3 else []
        command = ["label", "--retry-quarantined"] if chance.random() < 0.2 and number else ["nightly"]
        assert nightshift(config, *command, *relabel, *limit).code in (0, 3, 5)
        age(night, chance.randint(0, 40))
        if chance.random() < 0.5 and read_view(night.store, "data"):
            before = rows(night)
            clean(night, config, days=chance.randint(1, 40))
            assert rows(night) == before
    assert nightshift(config, "nightly", *relabel).code == 0
    age(night, 400)
    before = rows(night)
    assert clean(night, config, models=True)
    assert clean(night, config, models=True) == set(), "once is enough"
    assert rows(night) == before
    idle = nightshift(config, "nightly", *relabel)
    assert (idle.code, idle.record["images_in"], rows(night)) == (0, 0, before)
    assert not [path for path in clean(night, config, models=True) if not path.startswith("runs/")]


def test_the_roll_up_stays_with_its_generation_and_a_night_reads_nothing_else(
    night, model, nightshift, local_ray, monkeypatch
):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    first = nightshift(config, "nightly").record["fingerprint"]
    rollup = f"ledger/data/tiny@{first}/rollup.parquet"
    assert rollup in files(night)
    assert rollup not in clean(night, config, days=-1)

    def refuse(*_):
        raise AssertionError("the roll-up holds it")

    monkeypatch.setattr("pipeline.ledger._read", refuse)
    again = nightshift(config, "nightly")
    assert (again.code, again.record["skipped"], again.record["images_in"]) == (0, 20, 0)


def test_review_files_stay_as_long_as_their_views(night, model, nightshift, local_ray):
    config = night.config(label={"review_below": 1.0})
    for name in "abc":
        night.write(f"{name}.parquet", [f"{name}{n}" for n in range(5)])
        assert nightshift(config, "nightly").record["review"]["rows"] > 0
        age(night, 20)
    gone = clean(night, config, days=30)
    assert "review/data/1.parquet" in gone
    assert "review/data/3.parquet" in files(night)
    assert {path for path in files(night) if path.startswith("review/")} == {
        path.replace("published/", "review/").replace(".json", ".parquet")
        for path in files(night)
        if path.startswith("published/")
    }
