from dataclasses import replace

import pytest

from pipeline.errors import UsageError
from pipeline.holds import APPROVED, REJECTED, Hold, decide, read_holds, to_decide, write_hold


def hold(run_id="night-1"):
    return Hold(run_id, "flowers@1", "2026-11-24T02:00:00+00:00", 10, ("too many cats",), ("flowers@1a/s1",))


def test_what_is_held_is_read_back_with_its_decision(night):
    write_hold(night.store, "photos", hold())
    write_hold(night.store, "photos", hold("night-2"))
    write_hold(night.store, "other", hold("night-3"))
    assert read_holds(night.store, "photos") == [hold(), hold("night-2")]
    decide(night.store, "photos", "night-1", APPROVED, {"by": "me"})
    assert [each.decision for each in read_holds(night.store, "photos")] == [APPROVED, None]


def test_a_hold_is_written_once_and_another_of_the_same_run_beside_it(night):
    assert write_hold(night.store, "photos", hold()) == "night-1"
    assert write_hold(night.store, "photos", hold()) == "night-1"
    other = replace(hold(), shards=("flowers@1a/s2",))
    assert write_hold(night.store, "photos", other) == "night-1.2"
    assert read_holds(night.store, "photos") == [hold(), replace(other, run_id="night-1.2")]


def test_a_decision_stays(night):
    write_hold(night.store, "photos", hold())
    decide(night.store, "photos", "night-1", REJECTED, {})
    decide(night.store, "photos", "night-1", REJECTED, {})
    with pytest.raises(UsageError, match="was rejected before; a decision stays"):
        decide(night.store, "photos", "night-1", APPROVED, {})
    with pytest.raises(UsageError, match="was rejected before"):
        to_decide(read_holds(night.store, "photos"), "night-1", APPROVED)
    assert to_decide(read_holds(night.store, "photos"), "night-1", REJECTED).run_id == "night-1", "as before"


def test_the_only_one_that_waits_needs_no_name(night):
    with pytest.raises(UsageError, match=r"Waiting for a decision: none$"):
        to_decide([], None, APPROVED)
    write_hold(night.store, "photos", hold())
    assert to_decide(read_holds(night.store, "photos"), None, APPROVED).run_id == "night-1"
    write_hold(night.store, "photos", hold("night-2"))
    with pytest.raises(UsageError, match="night-1, night-2; give --run"):
        to_decide(read_holds(night.store, "photos"), None, APPROVED)
    assert to_decide(read_holds(night.store, "photos"), "night-2", APPROVED).run_id == "night-2"
    with pytest.raises(
        UsageError, match="nothing of run night-9 is held back; waiting for a decision: night-1, night-2"
    ):
        to_decide(read_holds(night.store, "photos"), "night-9", APPROVED)
