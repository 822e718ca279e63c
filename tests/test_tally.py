"""Tests of the tally: what a run has done so far and what it waited for, in words."""

from collections import Counter
from dataclasses import replace

from jobs.tally import ADVICE, Tally
from pipeline.counts import Counts
from pipeline.ledger import LedgerEntry
from pipeline.tables import Written


def entry(**seconds):
    return LedgerEntry("s", "run", {"a": [10, 9, 1]}, Written("labels/a.parquet", 9, 1, "0"), None, seconds=seconds)


def test_nothing_is_said_before_the_first_shard():
    tally = Tally(Counter())
    assert (tally.words, tally.limit, tally.shares, tally.retries) == ("", "", {}, {})


def test_counts_retries_and_shares_add_up_over_shards():
    retries = Counter()
    tally = Tally(retries)
    tally.add(entry(storage=1, decode=2, engine=5), Counts(10, 9, 1))
    retries["storage"] += 1
    tally.add(entry(engine=1, write=1), Counts(10, 10, 0))
    assert tally.counts == Counts(20, 19, 1)
    assert tally.shares == {"engine": 0.6, "decode": 0.2, "storage": 0.1, "write": 0.1}
    assert tally.words == "1 quarantined, 1 retry, engine 60% decode 20% storage 10% write 10%"
    assert tally.retries == {"storage": 1}


def test_engines_are_told_apart_and_their_images_counted():
    tally, fast = Tally(Counter()), {"engine": "openvino", "precision": "bf16", "device": "EPYC", "decoding": "fast"}
    for used, images in (({**fast, "said": "x"}, 10), ({**fast, "device": "L4"}, 50), ({**fast, "said": "y"}, 20)):
        tally.add(replace(entry(), used={**used, "agreement": {"photos": 3}}), Counts(images, images, 0))
    assert tally.engines == [
        {**fast, "device": "L4", "agreement": {"photos": 3}, "images": 50},
        {**fast, "agreement": {"photos": 3}, "images": 30},
    ]


def test_several_retries_are_counted_whatever_their_kind():
    tally = Tally(Counter(storage=2, worker=1))
    assert tally.words == "3 retries"


def test_the_largest_share_says_what_to_buy():
    for stage, advice in ADVICE.items():
        tally = Tally(Counter())
        tally.add(entry(**dict.fromkeys(ADVICE, 0.1) | {stage: 0.7}), Counts(10, 9, 1))
        assert tally.limit == f"70% of the labellers' time went into {advice}"
