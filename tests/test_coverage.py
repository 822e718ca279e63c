import pytest
from conftest import published

from pipeline.coverage import generations, read_coverage
from pipeline.publication import read_view
from pipeline.tables import read_table


@pytest.fixture
def model(night):
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "skipped", "remaining", "failed_shards"))


def models(night):
    """Return by image id the version whose label the view lists."""
    view = read_view(night.store, "data")
    rows = [row for path in view.files for row in read_table(night.store, path, ("image_id", "model")).to_pylist()]
    assert len(rows) == view.counts.labelled
    return {row["image_id"]: row["model"].rpartition("@")[2] for row in rows}


NEW = ("--set", "label.relabel=new")


def promote(night, version):
    from pipeline.documents import advance, newest

    folder = "models/tiny/production"
    advance(night.store, folder, {"version": version}, newest(night.store, folder)[0])


def test_under_new_published_images_keep_their_labels_and_what_is_new_gets_the_new_model(
    night, model, nightshift, local_ray
):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    other = night.seal(seed=1)
    promote(night, other)
    night.write("b.parquet", range(20, 26))
    ended = nightshift(config, "nightly", *NEW)
    assert (ended.code, counts(ended.record)) == (0, (6, 6, 20, 0, 0))
    assert models(night) == {n: model if n < 20 else other for n in range(26)}
    assert "the view also lists labels of tiny@" in ended.said
    assert next(generation.name for generation in generations(read_view(night.store, "data"))) == (
        f"tiny@{ended.record['fingerprint']}"
    )
    again = nightshift(config, "nightly", *NEW)
    assert (again.code, counts(again.record)) == (0, (0, 0, 26, 0, 0))
    assert "view 2 unchanged" in again.said


def test_under_new_a_changed_image_gets_the_new_model_and_its_neighbours_keep_theirs(
    night, model, nightshift, local_ray
):
    night.data.mkdir()
    for number in range(6):
        (night.data / f"{number}.png").write_bytes(night.png(number))
    config = night.config(input={"image_column": None, "id_column": None, "label_column": None})
    nightshift(config, "nightly")
    other = night.seal(seed=1)
    promote(night, other)
    (night.data / "3.png").write_bytes(night.png(99, size=(9, 9)))
    (night.data / "5.png").unlink()
    ended = nightshift(config, "nightly", *NEW)
    assert (ended.code, counts(ended.record)) == (0, (1, 1, 4, 0, 0))
    assert models(night) == {f"{n}.png": other if n == 3 else model for n in range(5)}


def test_under_new_a_night_that_fails_in_part_publishes_the_rest(night, model, nightshift, local_ray, monkeypatch):
    from pipeline.errors import StorageError
    from pipeline.labelling import Labeller

    call = Labeller.__call__
    night.write("a.parquet", range(10))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    promote(night, night.seal(seed=1))
    night.write("b.parquet", range(10, 30))

    def fails(self, shard, *more):
        if shard.segments[0].first_row == 0:
            raise StorageError("no")
        return call(self, shard, *more)

    monkeypatch.setattr(Labeller, "__call__", fails)
    ended = nightshift(config, "nightly", *NEW)
    assert (ended.code, counts(ended.record)) == (3, (10, 10, 10, 10, 1))
    assert sorted(models(night)) == [*range(10), *range(20, 30)]


def test_under_new_the_old_model_back_in_production_relabels_nothing_that_is_published(
    night, model, nightshift, local_ray
):
    config = night.config(input={"shard_images": 10})
    other = night.seal(seed=1)
    for number, version in enumerate([model, other, model]):
        promote(night, version)
        night.write(f"{number}.parquet", range(10 * number, 10 * number + 10))
        assert counts(nightshift(config, "nightly", *NEW).record) == (10, 10, 10 * number, 0, 0)
    assert models(night) == {n: other if n // 10 == 1 else model for n in range(30)}


def test_all_after_new_labels_beside_the_mixed_view_until_it_is_whole(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    other = night.seal(seed=1)
    promote(night, other)
    night.write("b.parquet", range(20, 30))
    nightshift(config, "nightly", *NEW)
    half = nightshift(config, "nightly", "--set", "label.max_images=10")
    assert (half.code, counts(half.record)) == (5, (10, 10, 10, 10, 0))
    assert set(models(night).values()) == {model, other}, "the mixed view stays"
    whole = nightshift(config, "nightly")
    assert (whole.code, counts(whole.record)) == (0, (10, 10, 20, 0, 0))
    assert models(night) == dict.fromkeys(range(30), other)


def test_going_back_to_a_model_that_labelled_everything_publishes_at_once(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config()
    nightshift(config, "nightly")
    before = published(night.store, "data")
    other = night.seal(seed=1)
    promote(night, other)
    assert counts(nightshift(config, "nightly").record) == (20, 20, 0, 0, 0)
    assert set(models(night).values()) == {other}
    promote(night, model)
    local_ray.sessions = 0
    back = nightshift(config, "nightly")
    assert (back.code, counts(back.record), local_ray.sessions) == (0, (0, 0, 20, 0, 0), 0)
    assert published(night.store, "data") == before


def test_a_kept_file_that_was_lost_is_labelled_by_the_model_of_tonight(night, model, nightshift, local_ray):
    night.write("a.parquet", range(20))
    config = night.config(input={"shard_images": 10})
    nightshift(config, "nightly")
    other = night.seal(seed=1)
    promote(night, other)
    lost = read_view(night.store, "data").files[1]
    ids = read_table(night.store, lost)["image_id"].to_pylist()
    night.store.delete(lost)
    ended = nightshift(config, "nightly", *NEW)
    assert (ended.code, counts(ended.record)) == (0, (10, 10, 10, 0, 0))
    assert models(night) == {n: other if n in ids else model for n in range(20)}


def test_the_pointer_that_moves_during_a_run_moves_the_next_run_only(night, model, nightshift, local_ray, monkeypatch):
    from pipeline.labelling import Labeller

    call, other = Labeller.__call__, night.seal(seed=1)

    def moves(self, shard, *more):
        if shard.segments[0].first_row == 10:
            promote(night, other)
        return call(self, shard, *more)

    night.write("a.parquet", range(40))
    config = night.config(input={"shard_images": 10}, label={"max_workers": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "__call__", moves)
        ended = nightshift(config, "nightly")
    assert (ended.code, ended.record["model"]) == (0, f"tiny@{model}")
    assert models(night) == dict.fromkeys(range(40), model)
    after = nightshift(config, "nightly")
    assert (after.record["model"], counts(after.record)) == (f"tiny@{other}", (40, 40, 0, 0, 0))


def test_a_shard_that_two_generations_have_belongs_to_the_one_that_is_published(night, model):
    night.write("a.parquet", range(30))
    config = night.config(input={"shard_images": 10})
    other = night.seal(seed=1)
    plan = night.plan(config)
    mine, theirs = (night.label(config, plan, version) for version in (model, other))
    asked, published_by = (night.task(config, version).generation for version in (model, other))
    night.publish(config, plan, other, theirs)
    coverage = read_coverage(night.store, asked, plan.shards, read_view(night.store, "data"), "new")
    assert [(generation, set(entries)) for generation, entries in coverage.parts] == [
        (asked, set()),
        (published_by, set(theirs)),
    ]
    assert coverage.entries == theirs
    everything = read_coverage(night.store, asked, plan.shards, read_view(night.store, "data"), "all")
    assert everything.parts == [(asked, mine)]
    gone = next(iter(theirs))
    assert set(coverage.without([gone]).extended({gone: mine[gone]}).entries) == set(theirs)
