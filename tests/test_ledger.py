from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.counts import Counts
from pipeline.ledger import commit, mismatched, read_ledger


@pytest.fixture
def committed(night):
    """Two committed shards, the second with a bad image: (night, config, plan, generation, ledger)."""
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [4, 5], image=pa.array([night.png(4), b"bad"], pa.binary()))
    config = night.config(input={"shard_images": 3})
    plan, version = night.plan(config), night.seal()
    ledger = night.label(config, plan, version)
    return night, config, plan, night.task(config, version).generation, ledger


def path_of(night, path: str):
    return night.data.parent / "store" / path


def test_what_was_committed_is_read_back(committed):
    night, _, plan, asked, ledger = committed
    assert read_ledger(night.store, asked, plan.shards) == ledger
    assert [ledger[shard.id].counts for shard in plan.shards] == [Counts(3, 3, 0), Counts(2, 1, 1)]


def test_only_the_shards_asked_for_are_read(committed):
    night, _, plan, asked, _ = committed
    assert set(read_ledger(night.store, asked, plan.shards[:1])) == {plan.shards[0].id}
    assert read_ledger(night.store, replace(asked, fingerprint="other"), plan.shards) == {}


def test_files_without_an_entry_count_for_nothing(committed):
    night, _, plan, asked, ledger = committed
    gone = plan.shards[0].id
    path_of(night, asked.ledger(gone)).unlink()
    assert set(read_ledger(night.store, asked, plan.shards)) == set(ledger) - {gone}


def test_entry_that_does_not_cover_a_live_segment_is_not_done(committed):
    night, _, plan, asked, ledger = committed
    shard = plan.shards[1]
    commit(night.store, asked, replace(ledger[shard.id], segments={}))
    assert shard.id not in read_ledger(night.store, asked, plan.shards)


def test_live_counts_leave_vanished_segments_out(night):
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [4, 5])
    config, version = night.config(), night.seal()
    (entry,) = night.label(config, night.plan(config), version).values()
    (night.data / "a.parquet").unlink()
    (shard,) = night.plan(config).shards
    assert (entry.counts, entry.live_counts(shard)) == (Counts(5, 5, 0), Counts(2, 2, 0))
    assert entry.covers(shard)


def test_nothing_mismatches_after_a_commit(committed):
    night, _, _, asked, ledger = committed
    assert mismatched(night.store, asked, ledger) == []


@pytest.mark.parametrize("kind", ["labels", "quarantine"])
@pytest.mark.parametrize("damage", ["gone", "longer", "shorter"])
def test_missing_or_resized_file_is_a_mismatch(committed, kind, damage):
    night, _, plan, asked, ledger = committed
    shard_id = plan.shards[1].id
    path = path_of(night, getattr(ledger[shard_id], kind).path)
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data + b"x" if damage == "longer" else data[:-1])
    assert mismatched(night.store, asked, ledger) == [shard_id]


def test_comparing_needs_one_listing_of_each_kind(committed):
    night, _, _, asked, ledger = committed
    listed = []

    class Counting:
        def list(self, prefix=""):
            listed.append(prefix.split("/")[0])
            return night.store.list(prefix)

    mismatched(Counting(), asked, ledger)
    assert sorted(listed) == ["labels", "quarantine"]
