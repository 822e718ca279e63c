import pickle
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest
from ray import exceptions

from cluster import retries
from cluster.retries import Failure, Retries, Work, cause_of, kind_of, lost_worker, words
from pipeline.errors import (
    AccessDeniedError,
    ModelError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    StoreFullError,
    TransientError,
)


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


def raised_by_task(error):
    return exceptions.RayTaskError("run", "Traceback ...", error, "", 1, "::1").as_instanceof_cause()


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand, and pauses without chance."""
    now = [1000.0]
    monkeypatch.setattr(retries.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    return now


def rules(attempts=3, halvings=6, shared=True):
    counts = Counter()
    return Retries(attempts, halvings, shared, counts), counts


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SourceChangedError("other version"), "changed"),
        (NotFoundError("gone"), "changed"),
        (AccessDeniedError("403"), "refused"),
        (StorageError("no"), "refused"),
        (TransientError("503"), "storage"),
        (StoreFullError("no space left"), "full"),
        (MemoryError(), "memory"),
        (pa.ArrowMemoryError("malloc failed"), "memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "memory"),
        (RuntimeError("a defect"), "error"),
        (OSError(5, "io"), "error"),
        (ModelError("wrong weights"), "error"),
    ],
)
def test_kinds_of_what_a_task_raised(error, kind):
    assert kind_of(raised_by_task(error)) == kind
    assert kind_of(pickle.loads(pickle.dumps(exceptions.RayTaskError("run", "", error, "", 1, "::1")))) == kind
    assert not lost_worker(raised_by_task(error)), "the process is still there"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.ActorDiedError(), "worker"),
        (exceptions.ActorUnavailableError("no answer", None), "worker"),
        (exceptions.WorkerCrashedError(), "worker"),
        (exceptions.NodeDiedError("the node"), "worker"),
        (exceptions.OutOfMemoryError("killed by the memory monitor"), "memory"),
    ],
)
def test_kinds_of_what_ray_says(error, kind):
    assert kind_of(error) == kind
    assert lost_worker(error)


def test_an_error_that_cannot_be_pickled_is_an_error_like_others(caplog):
    class Holds(Exception):
        def __reduce__(self):
            raise TypeError("a lock")

    raised = exceptions.RayTaskError("run", "Traceback ...", Holds("x"), "", 1, "::1")
    assert (kind_of(raised), lost_worker(raised)) == ("error", False)
    assert "a lock" in str(cause_of(raised))


def test_an_error_is_charged_and_given_up_after_its_attempts(clock):
    decide, counts = rules(attempts=3)
    work = decide.after(Work("x"), raised_by_task(ValueError("one")))
    assert (work.tries, work.charged, work.alone, work.ready_at) == (1, 1, False, 1000.5)
    work = decide.after(work, raised_by_task(ValueError("two")))
    assert (work.tries, work.charged, work.ready_at) == (2, 2, 1001.0)
    assert decide.after(work, raised_by_task(ValueError("three\nlines"))) == Failure("ValueError: three", 3, "error")
    assert counts == {"error": 2}, "what is given up is not tried again"


@pytest.mark.parametrize("kind", ["changed", "refused"])
def test_an_answer_that_stays_no_is_given_up_at_once(kind):
    decide, counts = rules(attempts=9)
    error = {"changed": SourceChangedError("no"), "refused": StorageError("no")}[kind]
    assert decide.after(Work("x"), error) == Failure(f"{type(error).__name__}: no", 1, kind)
    assert not counts


def test_a_storage_that_is_away_for_minutes_costs_no_attempt(clock):
    decide, counts = rules(attempts=1)
    work = Work("x")
    while clock[0] < 1000 + retries.STORAGE_PATIENCE_S:
        work = decide.after(work, TransientError("503"))
        assert isinstance(work, Work)
        clock[0] = work.ready_at
    assert work.charged == 0
    failure = decide.after(work, TransientError("503"))
    assert failure == Failure("TransientError: 503", work.tries + 1, "storage")
    assert counts["storage"] == work.tries > 20, "pauses stay below half a minute"


def test_a_full_disk_is_given_up_after_a_minute(clock):
    decide, counts = rules(attempts=1)
    work = decide.after(Work("x"), StoreFullError("no space left"))
    assert isinstance(work, Work)
    clock[0] += retries.FULL_PATIENCE_S
    assert decide.after(work, StoreFullError("no space left")).kind == "full"
    assert counts == {"full": 1}
    assert retries.FULL_PATIENCE_S < retries.STORAGE_PATIENCE_S / 5


def test_where_nothing_succeeds_the_items_do_not_each_wait_their_ten_minutes(clock):
    decide, _ = rules()
    decide.after(Work("first"), TransientError("503"))
    clock[0] += retries.STORAGE_PATIENCE_S + 1
    assert isinstance(decide.after(Work("drawn since"), TransientError("503")), Failure)
    decide.succeeded()
    assert isinstance(decide.after(Work("drawn later"), TransientError("503")), Work)


def test_one_object_that_never_answers_is_given_up_while_others_succeed(clock):
    decide, _ = rules()
    work = decide.after(Work("x"), TransientError("503"))
    clock[0] += retries.STORAGE_PATIENCE_S + 1
    decide.succeeded()
    assert isinstance(decide.after(work, TransientError("503")), Failure)


def test_an_item_that_fails_otherwise_meanwhile_has_reached_the_storage(clock):
    decide, _ = rules()
    work = decide.after(Work("x"), TransientError("503"))
    work = decide.after(work, ValueError("decoded, and then"))
    clock[0] += retries.STORAGE_PATIENCE_S + 1
    decide.succeeded()
    assert isinstance(decide.after(work, TransientError("503")), Work)


def test_memory_halves_the_batch_down_to_one_and_then_charges(clock):
    decide, counts = rules(attempts=2, halvings=3)
    work, seen = Work("x"), []
    while isinstance(work, Work):
        seen.append((work.halvings, work.charged, work.alone))
        work = decide.after(work, MemoryError("no room"))
    assert seen == [(0, 0, False), (1, 0, True), (2, 0, True), (3, 0, True), (3, 1, True)]
    assert work == Failure("MemoryError: no room", 5, "memory")
    assert counts == {"memory": 4}


def test_a_death_in_company_charges_nobody_and_the_suspect_is_tried_alone(clock):
    decide, counts = rules(attempts=2)
    work = decide.after(Work("x"), exceptions.ActorDiedError())
    assert (work.alone, work.charged, work.halvings) == (True, 0, 0)
    work = decide.after(work, exceptions.ActorDiedError())
    assert (work.alone, work.charged, work.halvings) == (True, 1, 1)
    failure = decide.after(work, exceptions.ActorDiedError())
    assert (failure.attempts, failure.kind) == (3, "worker")
    assert counts == {"worker": 2}


def test_where_workers_hold_one_item_the_first_death_is_charged(clock):
    decide, _ = rules(attempts=1, shared=False)
    assert decide.after(Work("x"), exceptions.ActorDiedError()).kind == "worker"


@pytest.mark.parametrize(("tries", "longest_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (5000, 30.0)])
def test_pauses_double_up_to_half_a_minute_and_are_shortened_by_chance(tries, longest_s):
    pauses = {retries.pause_s(tries) for _ in range(50)}
    assert longest_s / 2 <= min(pauses) < max(pauses) <= longest_s


def test_an_attempt_starts_after_its_pause(clock):
    decide, _ = rules()
    assert decide.after(replace(Work("x"), tries=2), ValueError()).ready_at == 1002.0


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("one\ntwo"), "ValueError: one"), (MemoryError(), "MemoryError: "), (OSError(5, "io"), "OSError: [Errno 5] io")],
)  # fmt: skip
def test_words_are_one_line(error, said):
    assert words(error) == said
