import os

import pytest

from cluster import early, planner
from cluster.planner import look
from pipeline.errors import InputError, StoppedError
from pipeline.plans import PartWriter, read_plan, read_unfinished
from pipeline.settings import StorageSettings
from pipeline.shards import Shard
from pipeline.storage import Entry

NOW = "2026-11-24T02:00:00+00:00"
IMAGES = {"image_column": None, "id_column": None, "label_column": None}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Every file may end a part."""
    monkeypatch.setattr(early, "PATIENCE_S", 0.0)
    monkeypatch.setattr(early, "SHARE", 0.0)


class Watched:
    """Looks at an input and keeps what was handed over, and what of it stood in the store at that moment."""

    def __init__(self, night, **settings):
        self.config, self.store = night.config(**settings), night.store
        self.shards, self.kept = [], []

    def look(self, **changes):
        config = self.config
        return look(self.store, config.input, config.storage, config.label.columns, self._emit, **changes)

    def plan(self, found):
        source, storage = self.config.input, self.config.storage
        return planner.plan(self.store, source, storage, NOW, pytest.fail, lambda files: None, found=found)[0]

    def _emit(self, shards):
        self.shards += shards
        self.kept.append(read_unfinished(self.store, "data"))


def write_loose(night, *names):
    for name in names:
        path = night.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def ids(shards):
    return [shard.id for shard in shards]


def test_shards_are_handed_over_while_the_listing_goes_on_and_their_parts_are_kept_before(night, monkeypatch):
    for number in range(6):
        night.write(f"{number}.parquet", range(5 * number, 5 * number + 5))
    seen, watched = [], Watched(night, input={"shard_images": 10})
    list_all = planner.listed

    def listed(*arguments):
        for entry in list_all(*arguments):
            seen.append((entry.path, len(watched.shards)))
            yield entry

    monkeypatch.setattr(planner, "listed", listed)
    found = watched.look()
    assert found.early
    assert seen == [
        ("0.parquet", 0),
        ("1.parquet", 0),
        ("2.parquet", 0),
        ("3.parquet", 1),
        ("4.parquet", 1),
        ("5.parquet", 2),
    ]
    assert [shard.num_images for shard in watched.shards] == [10, 10, 10]
    assert all(set(ids(kept)) >= set(ids(watched.shards[: n + 1])) for n, kept in enumerate(watched.kept))
    assert read_plan(night.store, "data") is None, "the listing alone completes no plan"


@pytest.mark.parametrize("loose", [False, True])
def test_the_plan_of_a_long_listing_is_that_of_a_short_one(night, monkeypatch, loose):
    settings = {"input": {"shard_images": 4, **(IMAGES if loose else {})}}
    if loose:
        write_loose(night, *(f"{folder}/{n}.png" for folder in ("a", "a-b", "b", "z") for n in range(5)), "a.png", "c")
    else:
        for number in range(7):
            night.write(f"{number}.parquet", range(5 * number, 5 * number + 5), rows_per_group=3)
        (night.data / "broken.parquet").write_bytes(b"no Parquet")
    watched = Watched(night, **settings)
    long = watched.plan(watched.look())
    assert len(watched.shards) == len(long.shards) > 4
    for entry in list(night.store.list("plans")):
        night.store.delete(entry.path)
    monkeypatch.setattr(early, "PATIENCE_S", 1000.0)
    again = Watched(night, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(planner, "read_unfinished", lambda *_: pytest.fail("a short listing needs no history"))
        found = again.look()
    short = again.plan(found)
    assert not again.shards, "a short listing is waited for"
    assert (long.shards, long.failed_files, long.details) == (short.shards, short.failed_files, short.details)


def test_what_is_known_is_not_handed_over_again(night):
    write_loose(night, "1.png", "2.png", "3.png", "4.png")
    first = Watched(night, input={"shard_images": 2, **IMAGES})
    before = first.plan(first.look())
    write_loose(night, "0.png", "5.png", "6.png")
    os.utime(night.data / "2.png", (1, 1))
    (night.data / "4.png").unlink()
    second = Watched(night, input={"shard_images": 2, "max_vanished_fraction": 1, **IMAGES})
    after = second.plan(second.look())
    assert [[s.path for s in shard.segments] for shard in second.shards] == [["0.png", "2.png"], ["5.png", "6.png"]]
    assert ids(after.shards) == ids(before.shards) + ids(second.shards)
    assert [[s.path for s in shard.live] for shard in after.shards[:2]] == [["1.png"], ["3.png"]]
    third = Watched(night, input={"shard_images": 2, **IMAGES})
    found = third.look()
    assert (found.early, third.shards, third.plan(found)) == (False, [], after)


def test_parts_of_a_listing_that_died_keep_their_shards(night, monkeypatch):
    write_loose(night, *(f"{n}.png" for n in range(9)))
    first = Watched(night, input={"shard_images": 2, **IMAGES})
    asked = iter([False] * 5)
    with pytest.raises(StoppedError):
        first.look(stop=lambda: next(asked, True))
    assert [shard.num_images for shard in first.shards] == [2, 2]
    second = Watched(night, input={"shard_images": 3, **IMAGES})
    plan = second.plan(second.look())
    assert sorted(ids(plan.shards)) == sorted(ids(first.shards) + ids(second.shards))
    assert sorted(s.path for shard in plan.shards for s in shard.live) == [f"{n}.png" for n in range(9)]


def test_tables_that_turn_up_after_images_are_planned_alone(night):
    write_loose(night, *(f"a{n}.png" for n in range(6)))
    night.write("table.parquet", range(5))
    watched = Watched(night, input={"shard_images": 2})
    plan = watched.plan(watched.look())
    assert all(s.path.endswith(".png") for shard in watched.shards for s in shard.segments)
    assert [[s.path for s in shard.live] for shard in plan.shards] == [["table.parquet"]]


@pytest.mark.parametrize(
    "settings",
    [{"input": {"filter": [["label", "=", "ant"]]}}, {"label": {"columns": ["extra"]}}],
    ids=["filter", "columns"],
)
def test_questions_that_the_whole_listing_answers_wait_for_it(night, settings):
    for number in range(4):
        night.write(f"{number}.parquet", range(5 * number, 5 * number + 5), extra=list("vwxyz"))
    watched = Watched(night, **{**settings, "input": {"shard_images": 5, **settings.get("input", {})}})
    assert not watched.look().early
    assert not watched.shards


def test_another_input_of_the_same_name_is_refused_before_anything_is_kept(night, tmp_path):
    night.write("a.parquet", range(5))
    watched = Watched(night)
    watched.plan(watched.look())
    (tmp_path / "other").mkdir()
    night.data.rename(tmp_path / "other" / "data")
    other = Watched(night, input={"url": str(tmp_path / "other" / "data")})
    with pytest.raises(InputError, match=r"was planned from .*; another input needs another input\.name"):
        other.look()
    assert read_unfinished(night.store, "data") == []


def test_parts_come_more_rarely_as_the_listing_goes_on(night, monkeypatch):
    """An hour of one file per second, packed one by one, is some dozens of parts."""
    clock = [0.0]
    monkeypatch.setattr(early, "monotonic", lambda: clock[0])
    monkeypatch.setattr(early, "PATIENCE_S", 1.0)
    monkeypatch.setattr(early, "SHARE", 0.1)
    handed = []
    packs = early.EarlyShards(
        night.config(input={"shard_images": 1, **IMAGES}).input,
        lambda: early.History("images", set(), PartWriter(night.store, "data", 1)),
        lambda files, kind: [Shard((segment_of(file),)).segments for file in files],
        handed.append,
    )
    for second in range(3600):
        clock[0] = second + 0.5
        packs.take(Entry(f"{second}.png", 1, "v", None))
    packs.finish()
    assert 40 < len(handed) < 100
    assert sum(len(shards) for shards in handed) == 3600


def segment_of(file):
    from pipeline.sources import segments_of

    return segments_of(file, "images", None, None)[0]


def test_settings_of_the_storage_reach_the_readers(night, s3):
    url, direct = s3
    assert isinstance(direct, StorageSettings)
    from pipeline.storage import open_storage

    bucket = open_storage(f"{url}/early/data", direct)
    for number in range(5):
        path = night.write(f"{number}.parquet", range(5 * number, 5 * number + 5))
        bucket.write(path.name, path.read_bytes())
    watched = Watched(night, input={"url": f"{url}/early/data", "shard_images": 5}, storage=direct.model_dump())
    plan = watched.plan(watched.look())
    assert ids(plan.shards) == ids(watched.shards)
    assert len(plan.shards) == 5
