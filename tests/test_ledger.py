from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.counts import Counts
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, commit, mismatched, read_ledger, roll_up
from pipeline.shards import Segment, Shard
from pipeline.tables import Written


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


class Counting:
    """A storage that notes what is asked of it."""

    def __init__(self, storage) -> None:
        self._storage, self.url, self.lists, self.reads = storage, storage.url, [], []

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def list(self, prefix=""):
        self.lists.append(prefix)
        return self._storage.list(prefix)

    def read(self, path, version=None):
        self.reads.append(path)
        return self._storage.read(path, version)


def many(store, asked, number):
    """Commit so many shards of one image each; return them and their entries."""
    shards = [Shard((Segment(f"{n}.jpg", 9, "1", 0, 1, 1),)) for n in range(number)]
    entries = {}
    for shard in shards:
        (segment,) = shard.segments
        labels = Written(asked.labels(shard.id, "one"), 1, 100, "0" * 64)
        entry = LedgerEntry(shard.id, "one", {segment.key: [1, 1, 0]}, labels, None, seconds={"decode": 0.1})
        entries[shard.id] = commit(store, asked, entry)
    return shards, entries


def reads(night, asked, shards):
    """Read the ledger; return it, and the names that were read."""
    store = Counting(night.store)
    found = read_ledger(store, asked, shards)
    assert store.lists == [asked.ledger()]
    return found, sorted(Path(path).name for path in store.reads)


@pytest.fixture
def asked():
    return Generation("data", "tiny", "0123")


def test_the_second_night_over_a_thousand_shards_reads_one_document(night, asked):
    shards, entries = many(night.store, asked, 1000)
    assert reads(night, asked, shards)[1] == sorted(f"{shard.id}.json" for shard in shards)
    roll_up(night.store, asked, entries)
    assert reads(night, asked, shards) == (entries, ["rollup.parquet"])


def test_what_was_committed_since_the_roll_up_is_read_singly_and_is_what_counts(night, asked):
    shards, entries = many(night.store, asked, 5)
    roll_up(night.store, asked, {shard_id: entries[shard_id] for shard_id in list(entries)[:4]})
    again = commit(night.store, asked, replace(entries[shards[0].id], run_id="another"))
    found, names = reads(night, asked, shards)
    assert found == {**entries, again.shard_id: again}
    assert names == sorted(["rollup.parquet", f"{shards[0].id}.json", f"{shards[4].id}.json"])


def test_an_entry_that_is_gone_is_not_done_whatever_the_roll_up_holds(night, asked):
    shards, entries = many(night.store, asked, 3)
    roll_up(night.store, asked, entries)
    night.store.delete(asked.ledger(shards[1].id))
    assert set(reads(night, asked, shards)[0]) == {shards[0].id, shards[2].id}


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_without_a_readable_roll_up_every_entry_is_read(night, asked, damage):
    shards, entries = many(night.store, asked, 3)
    roll_up(night.store, asked, entries)
    if damage is None:
        night.store.delete(asked.rollup())
    else:
        night.store.write(asked.rollup(), damage)
    found, names = reads(night, asked, shards)
    assert found == entries
    assert set(names) >= {f"{shard.id}.json" for shard in shards}
    roll_up(night.store, asked, found)
    assert reads(night, asked, shards) == (entries, ["rollup.parquet"])


def test_a_roll_up_that_holds_everything_is_not_written_again(night, asked):
    shards, entries = many(night.store, asked, 3)
    roll_up(night.store, asked, entries)
    before = night.store.stat(asked.rollup())
    roll_up(night.store, asked, read_ledger(night.store, asked, shards))
    assert night.store.stat(asked.rollup()) == before


def test_roll_ups_of_two_runs_at_once_harm_nobody(night, asked):
    shards, entries = many(night.store, asked, 40)
    ids = list(entries)
    theirs = {i: commit(night.store, asked, replace(entries[i], run_id="theirs")) for i in ids[10:30]}
    ours = {i: entries[i] for i in ids[:20]}
    for parts in ((ours, theirs), (theirs, ours)):
        for part in parts:
            roll_up(night.store, asked, part)
            found, _ = reads(night, asked, shards)
            assert found == {**entries, **theirs}


def test_an_entry_written_between_the_listing_and_the_read_goes_into_no_roll_up(night, asked):
    shards, entries = many(night.store, asked, 1)
    (shard_id,) = entries

    class Late(Counting):
        def read(self, path, version=None):
            if not self.reads:
                commit(night.store, asked, replace(entries[shard_id], run_id="a newer one"))
            return super().read(path, version)

    found = read_ledger(Late(night.store), asked, shards)
    assert (found[shard_id].run_id, found[shard_id].stored) == ("a newer one", None)
    roll_up(night.store, asked, found)
    assert reads(night, asked, shards)[0][shard_id].run_id == "a newer one"
