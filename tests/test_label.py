import json

import pyarrow as pa
import pytest
from conftest import published

from jobs.label import work
from jobs.runs import Run, execute
from pipeline.errors import StorageError
from pipeline.ledger import read_ledger
from pipeline.plans import read_plan
from pipeline.publication import read_view
from pipeline.registry import generation
from pipeline.storage import open_storage
from pipeline.tables import read_table

LABELS = ("ant", "bee", "cat")


@pytest.fixture
def model(night):
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "quarantined", "skipped", "failed_shards"))


def ledger_of(night, config, version):
    plan = read_plan(night.store, config.dataset)
    asked = generation(config.dataset, "tiny", version, config.input, config.label)
    return plan, read_ledger(night.store, asked, plan.shards)


def fail_in(monkeypatch, fails):
    """Make labelling a shard raise what `fails(shard)` returns, if anything."""
    from pipeline.labelling import Labeller

    call = Labeller.__call__

    def labelled(self, shard, halvings=0):
        error = fails(shard)
        if error:
            raise error
        return call(self, shard, halvings)

    monkeypatch.setattr(Labeller, "__call__", labelled)
    monkeypatch.setattr("cluster.retries.FIRST_PAUSE_S", 0.001)


# What goes in comes out.


def test_every_image_is_labelled_or_quarantined_once(night, model, nightshift, local_ray):
    images = [night.png(n) for n in range(23)]
    images[4], images[11], images[20] = b"<html>404</html>", b"", None
    night.write("a.parquet", range(23), image=pa.array(images, pa.binary()))
    config = night.config(input={"shard_images": 5}, label={"max_bad_fraction": 0.5})
    ended = nightshift(config, "label")
    assert ended.code == 0
    assert counts(ended.record) == (23, 20, 3, 0, 0)
    assert (ended.record["model"], ended.record["view"]) == (f"tiny@{model}", 1)
    assert "23 images in = 20 labelled + 3 quarantined; 0 were done before" in ended.said
    assert [row[0] for row in published(night.store, "data")] == [n for n in range(23) if n not in (4, 11, 20)]
    view = read_view(night.store, "data")
    rejected = [row for path in view.document["quarantine_files"] for row in read_table(night.store, path).to_pylist()]
    assert sorted((row["image_id"], row["stage"]) for row in rejected) == [(4, "decode"), (11, "decode"), (20, "read")]
    plan, ledger = ledger_of(night, config, model)
    assert set(ledger) == {shard.id for shard in plan.shards}
    assert {entry.run_id for entry in ledger.values()} == {ended.record["run_id"]}


def test_a_second_run_labels_nothing_and_starts_no_session(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    assert counts(nightshift(night.config(), "label").record) == (20, 20, 0, 0, 0)
    rows = published(night.store, "data")
    local_ray.sessions = 0
    again = nightshift(night.config(), "label")
    assert again.code == 0
    assert counts(again.record) == (0, 0, 0, 20, 0)
    assert "view 1 unchanged" in again.said
    assert published(night.store, "data") == rows
    assert local_ray.sessions == 0


def test_another_question_is_another_generation(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    first = nightshift(night.config(), "label").record
    second = nightshift(night.config(label={"top_k": 1}), "label").record
    assert counts(second) == (20, 20, 0, 0, 0)
    assert first["fingerprint"] != second["fingerprint"]
    assert read_view(night.store, "data").n == 2
    assert {len(row) for row in top_k(night)} == {1}


def top_k(night):
    files = read_view(night.store, "data").files
    return [row for path in files for row in read_table(night.store, path)["top_k"].to_pylist()]


def test_batch_size_and_workers_change_no_label(night, model, nightshift, local_ray, tmp_path):
    night.write("a.parquet", range(50))
    found = []
    for number, (batch_size, workers) in enumerate([(64, 1), (7, 2), (1, 4)]):
        night.store = open_storage(str(tmp_path / f"store-{number}"), night.config().storage)
        night.seal()
        config = night.config(input={"shard_images": 10}, label={"batch_size": batch_size, "max_workers": workers})
        assert counts(nightshift(config, "label").record) == (50, 50, 0, 0, 0)
        found.append(published(night.store, "data"))
    assert found[0] == found[1] == found[2]
    assert {label for _, label, _ in found[0]} == set(LABELS), "equal labels say little when there is one"


def test_the_image_ids_keep_their_type(night, model, nightshift, local_ray):
    night.write("a.parquet", pa.array([7, 2**40], pa.int64()).to_pylist())
    nightshift(night.config(), "label")
    assert read_table(night.store, read_view(night.store, "data").files[0]).schema.field("image_id").type == pa.int64()


def test_the_engine_is_said_once_and_recorded_for_every_shard(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 5})
    ended = nightshift(config, "label")
    assert ended.said.count("engine: torch fp32 reference, fast decoding") == 1
    entries = ledger_of(night, config, model)[1].values()
    assert [entry.used["agreement"]["top1"] for entry in entries] == [1.0, 1.0]


# What the second night meets.


def test_one_changed_image_relabels_one(night, model, nightshift, local_ray):
    night.data.mkdir()
    for number in range(9):
        (night.data / f"{number}.png").write_bytes(night.png(number))
    config = night.config(input={"image_column": None, "id_column": None, "label_column": None})
    nightshift(config, "label")
    (night.data / "3.png").write_bytes(night.png(99, size=(9, 9)))
    (night.data / "5.png").unlink()
    nightshift(config, "plan")
    again = nightshift(config, "label")
    assert counts(again.record) == (1, 1, 0, 7, 0)
    rows = {image_id: content for image_id, _, content in published(night.store, "data")}
    assert sorted(rows) == [f"{number}.png" for number in range(9) if number != 5]
    assert len(set(rows.values())) == 8


def test_a_file_that_changed_after_the_plan_fails_its_shard_and_says_plan_again(night, model, nightshift, local_ray):
    night.write("a.parquet", range(5))
    night.write("b.parquet", range(5, 10))
    config = night.config(input={"shard_images": 5})
    nightshift(config, "plan")
    night.write("b.parquet", range(5, 12))
    ended = nightshift(config, "label")
    assert ended.code == 3
    assert counts(ended.record) == (5, 5, 0, 0, 1)
    assert ended.record["failures"][0]["kind"] == "changed"
    assert "changed since it was planned" in ended.record["failures"][0]["error"]
    assert ended.record["failures"][0]["attempts"] == 1
    assert "1 shard failed; `nightshift nightly` plans again" in ended.record["outcome"]
    assert len(published(night.store, "data")) == 5


def test_a_label_file_that_vanished_is_made_again_and_counted_as_this_runs_work(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "label")
    rows = published(night.store, "data")
    night.store.delete(read_view(night.store, "data").files[0])
    again = nightshift(config, "label")
    assert again.code == 0
    assert "is not what the ledger says; labelling it again" in again.said
    assert counts(again.record) == (10, 10, 0, 10, 0)
    assert published(night.store, "data") == rows


def test_files_that_are_lost_again_and_again_stop_the_night(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(5))
    monkeypatch.setattr("pipeline.coverage.mismatched", lambda store, asked, ledger: list(ledger))
    ended = nightshift(night.config(), "label")
    assert ended.code == 1
    assert "nothing was published" in ended.said
    assert read_view(night.store, "data") is None


def test_a_wholly_bad_shard_holds_no_later_night(night, model, nightshift, local_ray):
    night.write("a.parquet", range(40))
    night.write("b.parquet", [50, 51], image=pa.array([b"bad", b"bad"], pa.binary()))
    config = night.config(input={"shard_images": 10}, label={"max_bad_fraction": 0.1})
    assert nightshift(config, "label").code == 0
    again = nightshift(config, "label")
    assert (again.code, counts(again.record)) == (0, (0, 0, 0, 42, 0))


def test_a_run_that_a_newer_plan_overtook_says_so(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(5))
    config = night.config()
    nightshift(config, "plan")
    old = read_plan(night.store, "data")
    night.write("b.parquet", range(5, 9))
    assert nightshift(config, "nightly").code == 0
    monkeypatch.setattr("jobs.label.present_plan", lambda run: old)
    late = nightshift(config, "label")
    assert late.code == 3
    assert "plan 1 was overtaken by plan 2, whose view stays" in late.said
    assert len(published(night.store, "data")) == 9


def test_images_that_share_an_id_are_published_once_and_the_other_is_quarantined(night, model, nightshift, local_ray):
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [3, 4])
    ended = nightshift(night.config(), "label")
    assert ended.code == 0
    assert "1 row whose image id is taken" in ended.said
    assert [row[0] for row in published(night.store, "data")] == [1, 2, 3, 4]
    view = read_view(night.store, "data")
    assert view.document["counts"] == {"images_in": 5, "labelled": 4, "quarantined": 1}


# What holds a night back.


def test_too_many_bad_images_are_kept_but_not_published(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    nightshift(night.config(), "label")
    night.write(
        "b.parquet", range(20, 30), image=pa.array([b"bad"] * 2 + [night.png(n) for n in range(8)], pa.binary())
    )
    nightshift(night.config(), "plan")
    held = nightshift(night.config(), "label")
    assert held.code == 3
    assert counts(held.record) == (10, 8, 2, 20, 0)
    assert "2 of 10 new images are bad (20.0%), more than label.max_bad_fraction = 0.05" in held.record["outcome"]
    assert len(published(night.store, "data")) == 20
    assert nightshift(night.config(), "label").code == 3, "a rerun does not wave it through"
    raised = nightshift(night.config(), "label", "--set", "label.max_bad_fraction=0.2")
    assert raised.code == 0
    assert counts(raised.record) == (0, 0, 0, 30, 0)
    assert len(published(night.store, "data")) == 28


def test_retry_quarantined_labels_those_shards_again(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(10))
    night.write("b.parquet", range(10, 20), image=pa.array([b"bad"] + [night.png(n) for n in range(9)], pa.binary()))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "label")
    ended = nightshift(config, "label", "--retry-quarantined")
    assert counts(ended.record) == (10, 9, 1, 10, 0)
    assert len(published(night.store, "data")) == 19


def test_retried_shards_that_are_not_reached_keep_their_labels(night, model, nightshift, local_ray, monkeypatch):
    for name in ("a", "b"):
        night.write(
            f"{name}.parquet", [f"{name}{n}" for n in range(5)], image=pa.array([b"bad", *map(night.png, range(4))])
        )
    config = night.config(input={"shard_images": 5}, label={"max_bad_fraction": 1})
    nightshift(config, "label")
    stopped = nightshift(config, "label", "--retry-quarantined", "--set", "label.max_images=5")
    assert (stopped.code, counts(stopped.record), stopped.record["remaining"]) == (5, (5, 4, 1, 5, 0), 5)
    assert len(published(night.store, "data")) == 8
    fail_in(monkeypatch, lambda shard: StorageError("damaged"))
    failed = nightshift(config, "label", "--retry-quarantined")
    assert (failed.code, counts(failed.record)) == (3, (0, 0, 0, 10, 2))
    assert len(published(night.store, "data")) == 8


def test_a_shard_that_always_fails_is_listed_and_the_rest_is_published(
    night, model, nightshift, local_ray, monkeypatch
):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10}, label={"attempts": 2})
    with monkeypatch.context() as patch:
        fail_in(patch, lambda shard: ValueError("a defect") if shard.segments[0].first_row == 10 else None)
        ended = nightshift(config, "label")
    assert ended.code == 3
    assert counts(ended.record) == (20, 20, 0, 0, 1)
    failure = ended.record["failures"][0]
    assert (failure["kind"], failure["error"], failure["attempts"]) == ("error", "ValueError: a defect", 2)
    assert f"shard {failure['shard']} failed 2 time(s): ValueError: a defect" in ended.said
    assert "1 shard failed; the same command tries them again" in ended.record["outcome"]
    assert len(published(night.store, "data")) == 20
    mended = nightshift(config, "label")
    assert mended.code == 0
    assert counts(mended.record) == (10, 10, 0, 20, 0)
    assert len(published(night.store, "data")) == 30


def test_shards_that_fail_once_cost_nothing_but_time(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(30))
    seen = set()

    def once(shard):
        return None if shard.id in seen else seen.add(shard.id) or MemoryError()

    fail_in(monkeypatch, once)
    ended = nightshift(night.config(input={"shard_images": 10}), "label")
    assert ended.code == 0
    assert counts(ended.record) == (30, 30, 0, 0, 0)


def test_a_run_without_any_labelled_shard_publishes_nothing(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(10))
    fail_in(monkeypatch, lambda shard: StorageError("no"))
    ended = nightshift(night.config(), "label")
    assert ended.code == 3
    assert counts(ended.record) == (0, 0, 0, 0, 1)
    assert read_view(night.store, "data") is None


def test_a_new_models_labels_wait_until_all_shards_are_labelled(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "label")
    other = night.seal(seed=1)
    with monkeypatch.context() as patch:
        fail_in(patch, lambda shard: StorageError("no") if shard.segments[0].first_row else None)
        held = nightshift(config, "label", "--set", f"model.version={other}")
    assert held.code == 3
    assert read_view(night.store, "data").document["model"] == f"tiny@{model}"
    done = nightshift(config, "label", "--set", f"model.version={other}")
    assert counts(done.record) == (10, 10, 0, 10, 0)
    assert read_view(night.store, "data").document["model"] == f"tiny@{other}"


def test_nothing_new_exits_4_where_the_config_requires_it(night, model, nightshift, local_ray):
    night.write("a.parquet", range(5))
    config = night.config(label={"require_new": True})
    assert nightshift(config, "label").code == 0
    again = nightshift(config, "label")
    assert again.code == 4
    assert "nothing new, although the config requires it" in again.said


# What makes a run impossible.


def test_labelling_without_a_model_says_what_to_run_first(night, nightshift, local_ray):
    night.write("a.parquet", range(5))
    ended = nightshift(night.config(), "label")
    assert ended.code == 2
    assert "run `nightshift train CONFIG` first" in ended.said


def test_a_version_that_is_not_there_is_refused_with_those_that_are(night, model, nightshift, local_ray):
    night.write("a.parquet", range(5))
    ended = nightshift(night.config(model={"version": "cafe"}), "label")
    assert ended.code == 2
    assert model in ended.said


def test_a_bundle_of_another_format_is_refused(night, model, nightshift, local_ray):
    night.write("a.parquet", range(5))
    path = f"models/tiny/{model}/bundle.json"
    night.store.write(path, json.dumps({**json.loads(night.store.read(path)), "format": 3}).encode())
    ended = nightshift(night.config(), "label")
    assert ended.code == 2
    assert "has format 3, this nightshift reads 1 and 2" in ended.said
    assert local_ray.sessions == 0


def test_weights_that_are_not_the_sealed_ones_stop_the_run(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    path = f"models/tiny/{model}/weights.safetensors"
    data = bytearray(night.store.read(path))
    data[-1] ^= 1
    night.store.write(path, bytes(data))
    ended = nightshift(night.config(input={"shard_images": 5}), "label")
    assert ended.code == 2
    assert "is not the sealed file" in ended.said
    assert read_view(night.store, "data") is None


def test_a_store_that_cannot_be_written_fails_and_says_where(night, model, nightshift, local_ray, tmp_path):
    night.write("a.parquet", range(5))
    (tmp_path / "store/plans").write_text("in the way")
    ended = nightshift(night.config(), "label")
    assert ended.code == 1
    assert str(tmp_path / "store/plans") in ended.said


def test_a_broken_input_file_ends_a_label_run_with_3_and_the_rest_published(night, model, nightshift, local_ray):
    night.write("a.parquet", range(5))
    (night.data / "b.parquet").write_bytes(b"half")
    ended = nightshift(night.config(), "label")
    assert ended.code == 3
    assert counts(ended.record) == (5, 5, 0, 0, 0)
    assert len(published(night.store, "data")) == 5
    again = nightshift(night.config(), "label")
    assert again.code == 3
    assert [file["path"] for file in again.record["failed_files"]] == ["b.parquet"]


def test_a_run_that_is_stopped_says_what_it_did_and_a_rerun_continues(night, model, nightshift, local_ray, monkeypatch):
    night.write("a.parquet", range(40))
    config = night.config(input={"shard_images": 10}, label={"max_workers": 1})
    with monkeypatch.context() as patch:
        fail_in(patch, stop_at(0))  # the one that is reached last: of two in flight LocalRay ends the later first
        stopped = nightshift(config, "label")
    assert stopped.code == 5
    assert "stopped early; the same command continues it" in stopped.said
    assert stopped.record["exit_code"] == 5
    done = stopped.record["labelled"]
    assert done in (10, 20, 30)
    assert counts(stopped.record) == (done, done, 0, 0, 0)
    assert read_view(night.store, "data") is None
    assert json.loads(night.store.read(f"runs/{stopped.record['run_id']}/run.json")) == stopped.record
    rerun = nightshift(config, "label")
    assert rerun.code == 0
    assert counts(rerun.record) == (40 - done, 40 - done, 0, done, 0)


def stop_at(first_row):
    def stop(shard):
        if shard.segments[0].first_row == first_row:
            raise KeyboardInterrupt

    return stop


def test_two_runs_at_once_end_well_with_one_view(night, model, local_ray, run_together):
    night.write("a.parquet", range(60))
    config = night.config(input={"shard_images": 5})
    runs = [Run("label", config, f"twin-{number}") for number in range(2)]
    codes = run_together(*[lambda run=run: execute(run, work) for run in runs])
    assert codes == [0, 0]
    for run in runs:
        assert run.record["images_in"] + run.record["skipped"] == 60
    assert [row[0] for row in published(night.store, "data")] == list(range(60))
