"""Planning and labelling at once: of an input that takes long to list, the first files are labelled while the rest is listed."""

from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING

from jobs.console import say, stage
from jobs.label import ask, covered, label_plan, open_shards, task_of
from jobs.plan import bring_up_to_date, note_plan
from jobs.runs import Run
from jobs.shift import Shift
from pipeline.coverage import Coverage
from pipeline.errors import NightshiftError
from pipeline.plans import Plan
from pipeline.shards import Shard

if TYPE_CHECKING:
    from cluster.planner import Look

LEAVE_S = 10.0  # a listing that is not waited for any more ends with its next file, if there is one


def plan_and_label(run: Run, version: str) -> None:
    """Bring the plan up to date, label what is open, publish."""
    shift, earlier = Shift(run), None
    with PlanUnderWay(run) as planning:
        if planning.begin():
            say("the listing takes its time: what it has found so far is labelled while it goes on")
            earlier = _label_ahead(run, planning, version, shift)
        plan = planning.plan()
    label_plan(run, plan, version, shift=shift, earlier=earlier)


def _label_ahead(run: Run, planning: "PlanUnderWay", version: str, shift: Shift) -> Coverage | None:
    """Label while the plan is being made, then what else it holds; return what was covered when it was made."""
    # Nothing is planned ahead that depends on the whole input, so the generation does not either.
    nothing = Plan(run.config.dataset, 0, ())
    asked, earlier = ask(run, nothing, version), None
    # What left the input and came back is new to the plan and labelled long since: the plan's coverage decides about it.
    committed = {entry.path for entry in run.store.list(asked.ledger())}

    def shards() -> Iterator[Shard | None]:
        nonlocal earlier
        drawn, images = set(), 0
        for shard in planning.shards():
            if shard is None:
                yield None
            elif asked.ledger(shard.id) not in committed and shift.limits.allow(images):
                drawn.add(shard.id)
                images += shard.num_images
                yield shard
        try:
            plan = planning.plan()
        except NightshiftError:
            return  # what is in flight ends first; then the plan is asked for again, and raises it
        earlier = covered(run, plan, version)
        rest = [shard for shard in open_shards(run, plan, earlier) if shard.id not in drawn]
        shift.expect(images + sum(shard.num_images for shard in rest))
        for shard in rest:
            if shift.limits.allow(images):
                images += shard.num_images
                yield shard

    shift.label(shards(), task_of(run, nothing, asked, version))
    return earlier


class PlanUnderWay:
    """The plan of a run while a thread lists the input. Leaving the block ends a listing that nobody waits for any more."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parts: SimpleQueue[Sequence[Shard]] = SimpleQueue()  # an empty one at the end
        self._first: Sequence[Shard] = ()
        self._found: Look | None = None
        self._made: tuple[Plan, bool] | None = None
        self._error: Exception | None = None
        self._noted, self._stop = False, Event()
        self._thread = Thread(target=self._work, name="planner", daemon=True)

    def __enter__(self) -> "PlanUnderWay":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(LEAVE_S)

    def begin(self) -> bool:
        """Wait until there are shards to label while the plan is being made, or the plan is there; say whether there are."""
        with stage("plan", None, "files") as self._progress:
            self._first = self._parts.get()
            if not self._first:
                self._finish()
        return bool(self._first)

    def shards(self) -> Iterator[Shard | None]:
        """Yield the shards that are kept before the plan is made, None when there is none at the moment."""
        part: Sequence[Shard] | None = self._first
        while part is None or part:
            yield from part or (None,)
            try:
                part = self._parts.get_nowait()
            except Empty:
                part = None

    def plan(self) -> Plan:
        """Return the plan when it is made; raises what its planner raised."""
        plan, new = self._finish()
        if not self._noted:
            note_plan(self._run, plan, new, self._progress.seconds)
            self._noted = True
        return plan

    def _finish(self) -> tuple[Plan, bool]:
        self._thread.join()
        if self._error:
            raise self._error
        if self._made is None:  # in the main thread, which may start a session
            self._made = bring_up_to_date(self._run, self._progress.advance, self._found)
        return self._made

    def _work(self) -> None:
        from cluster.planner import look

        run, config = self._run, self._run.config
        try:
            found = look(
                run.store, config.input, config.storage, config.label.columns, self._parts.put, self._stop.is_set
            )
            if found.early:
                self._made = bring_up_to_date(run, lambda files: None, found)
            self._found = found
        except Exception as error:  # whoever asks for the plan gets it
            self._error = error
        finally:
            self._parts.put(())
