from collections import Counter
from functools import partial

import pyarrow as pa
import pytest

from cluster.dispatch import Failure
from cluster.labeller import label, open_extractor, open_judge, over_shards
from cluster.resources import Size
from pipeline import labelling
from pipeline.counts import Counts
from pipeline.errors import ModelError
from pipeline.ledger import LedgerEntry
from pipeline.settings import LabelSettings
from pipeline.tasks import EvaluateTask, ExamplesTask


@pytest.fixture
def planned(night):
    """Three shards of ten rows, one of them bad, and a model."""
    images = [b"bad" if n == 14 else night.png(n) for n in range(30)]
    night.write("a.parquet", range(30), image=pa.array(images, pa.binary()))
    config = night.config(input={"shard_images": 10})
    return config, night.plan(config), night.seal()


def test_every_shard_comes_back_with_its_ledger_entry(night, planned, local_ray):
    config, plan, version = planned
    ended = dict(label(plan.shards, night.task(config, version)))
    assert set(ended) == set(plan.shards)
    assert all(isinstance(entry, LedgerEntry) for entry in ended.values())
    assert sum((entry.counts for entry in ended.values()), Counts()) == Counts(30, 29, 1)


def test_a_shard_whose_file_is_gone_fails_alone(night, planned, local_ray):
    config, _, version = planned
    gone = night.write("b.parquet", range(30, 35))
    plan = night.plan(config)
    gone.unlink()
    ended = {shard.segments[0].path: result for shard, result in label(plan.shards, night.task(config, version))}
    assert isinstance(ended["a.parquet"], LedgerEntry)
    assert isinstance(ended["b.parquet"], Failure)
    assert "b.parquet vanished since it was planned" in ended["b.parquet"].error
    assert ended["b.parquet"].kind == "changed"


def test_a_shard_that_is_too_large_for_memory_is_labelled_in_smaller_batches(night, planned, local_ray, monkeypatch):
    config, plan, version = planned
    sizes, good = [], labelling.label_shard

    def label_shard(shard, task, *rest):
        sizes.append(task.label.batch_size)
        if shard is plan.shards[1] and task.label.batch_size > 2:
            raise MemoryError
        return good(shard, task, *rest)

    monkeypatch.setattr(labelling, "label_shard", label_shard)
    retries = Counter()
    config = config.model_copy(update={"label": config.label.model_copy(update={"batch_size": 8, "attempts": 1})})
    ended = dict(label(iter(plan.shards), night.task(config, version), retries=retries))
    assert sum((entry.counts for entry in ended.values()), Counts()) == Counts(30, 29, 1)
    assert sorted(sizes) == [2, 4, 8, 8, 8]
    assert retries == {"memory": 2}


def test_labelling_stops_when_it_is_told_to(night, planned, local_ray):
    config, plan, version = planned
    assert list(label(plan.shards, night.task(config, version), stop=lambda: True)) == []


def test_shards_are_labelled_two_at_a_time_in_one_labeller(night, planned, run_together):
    """What the actors' threads do: one labeller, several shards at once, the same rows as one after the other."""
    config, plan, version = planned
    alone = {shard: labelling.Labeller(night.task(config, version))(shard).counts for shard in plan.shards}
    shared = labelling.Labeller(night.task(config, version))
    at_once = run_together(*(partial(shared, shard) for shard in plan.shards))
    assert [entry.counts for entry in at_once] == [alone[shard] for shard in plan.shards]


def test_no_shards_start_no_actors(monkeypatch):
    monkeypatch.setattr("cluster.labeller.ActorPool", None)
    assert list(over_shards([], lambda: None, LabelSettings())) == []


def test_actors_are_as_many_and_as_large_as_the_settings_say(planned, local_ray, monkeypatch):
    _, plan, _ = planned
    asked = []

    class Pool:
        def __init__(self, *arguments):
            asked.append(arguments)
            raise ModelError("enough")

    monkeypatch.setattr("cluster.labeller.ActorPool", Pool)
    settings = LabelSettings(
        min_workers=2, max_workers=3, cpus_per_worker=2, gpus_per_worker=0.5, memory_mb_per_worker=900,
        node_labels={"group": "gpu"},
    )  # fmt: skip
    with pytest.raises(ModelError, match="enough"):
        list(over_shards(plan.shards, len, settings))
    assert asked == [(len, 2, 3, Size(2, 0.5, 900, {"group": "gpu"}), 1)]


@pytest.mark.parametrize(("gpus", "setting", "each"), [(0, None, 0), (2, None, 1), (2, 0, 0), (2, 0.5, 0.5)])
def test_actors_take_a_gpu_each_where_there_are_some(planned, local_ray, monkeypatch, gpus, setting, each):
    asked = []

    class Pool:
        def __init__(self, *arguments):
            asked.append(arguments[3].gpus)
            raise ModelError("enough")

    monkeypatch.setattr("cluster.labeller.ActorPool", Pool)
    monkeypatch.setattr("cluster.resources.available", lambda resource: gpus)
    with pytest.raises(ModelError, match="enough"):
        list(over_shards(planned[1].shards, len, LabelSettings(gpus_per_worker=setting)))
    assert asked == [each]


def test_the_same_pool_makes_examples_and_judges(night, planned, local_ray):
    config, plan, version = planned
    store, tables = (config.store, config.storage, config.input), ("data", config.model, config.train, "plain", False)
    extractor = partial(open_extractor, ExamplesTask(*store, *tables))
    assert sum(rows for _, rows in over_shards(plan.shards, extractor, config.label)) == 29
    splits = ("train", "val", "test")
    judge = partial(open_judge, EvaluateTask(*store, config.split, config.label, "tiny", version, splits))
    sums = [result for _, result in over_shards(plan.shards, judge, config.label)]
    assert sum(part.num_images for part in sums) == 29
    assert sum(part.quarantined for part in sums) == 1
