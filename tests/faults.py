"""The faults of test_faults.py: each breaks something at a chosen moment of a run and says what it did.

A fault is a function of a `Stage`: a small input, a store, a standing cluster and a source of chance. It starts one run or
several, breaks something, and returns what it did in words; the comparison with a clean run is not its business.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from test_chaos import wait_until

from cluster.dispatch import TURN_S

FAULTS: dict[str, Callable[[Any], str]] = {}


def fault(name: str) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Enter a function into the list of faults."""

    def enter(function: Callable[[Any], str]) -> Callable[[Any], str]:
        FAULTS[name] = function
        return function

    return enter


def send(pid: int, number: int) -> bool:
    """Send a signal; say whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def held(stage: Any, job: Any) -> Iterator[list[int]]:
    """Stop the labellers of a run at a moment of chance, between its first commits and its last; they go on after the block."""
    done = stage.chance.randrange(1, stage.num_shards // 2)
    wait_until(lambda: stage.committed() >= done or job.ended(), f"{done} commits; the run said {job.last_words}")
    stopped = [pid for pid in stage.ground.all_labellers() if send(pid, signal.SIGSTOP)]
    try:
        assert not job.ended(), f"the run ended before anything could happen to it: {job.last_words}"
        assert stopped, "nobody labels"
        yield stopped
    finally:
        for pid in stopped:
            send(pid, signal.SIGCONT)


def works_alone(stage: Any, job: Any, node: int, stopped: list[int]) -> int:
    """Let nobody but a node's labellers work until they have committed three shards; return how many labellers there are.

    Those that are stopped hold the shards that they have, and commit nothing.
    """

    def others_stopped() -> None:
        theirs = stage.ground.labellers(node)
        stopped.extend(pid for pid in stage.ground.all_labellers() if pid not in theirs and send(pid, signal.SIGSTOP))

    def committed_by_them() -> bool:
        others_stopped()
        for pid in stage.ground.labellers(node):
            send(pid, signal.SIGCONT)
        return stage.committed() >= before + 3 or job.ended()

    others_stopped()
    time.sleep(0.5)  # a write that the kernel had begun ends all the same
    before = stage.committed()
    assert before < stage.num_shards - 6, "too little is left for this fault"
    wait_until(committed_by_them, f"three shards of the node: {job.last_words}")
    theirs = stage.ground.labellers(node)
    assert not job.ended(), f"the run ended first: {job.last_words}"
    assert theirs, "the node has no labeller"
    return len(theirs)


# ---- Processes


@fault("driver killed (-9)")
def kill_driver(stage: Any) -> str:
    job = stage.start("first")
    with held(stage, job):
        done = stage.committed()
        os.kill(job.process.pid, signal.SIGKILL)
        job.wait()
    assert stage.finish() == 0
    assert stage.record("again")["skipped"] >= done * stage.images_per_shard, "what was committed is not done again"
    return f"after {done} of {stage.num_shards} shards"


@fault("driver SIGTERM")
def terminate_driver(stage: Any) -> str:
    job = stage.start("first")
    with held(stage, job):
        done = stage.committed()
        job.process.terminate()
    assert job.wait() == 5, job.last_words
    assert stage.record("first")["exit_code"] == 5
    assert stage.finish() == 0
    return f"after {done} of {stage.num_shards} shards; exit 5"


@fault("labeller killed (-9)")
def kill_labeller(stage: Any) -> str:
    job = stage.start("first")
    with held(stage, job) as labellers:
        victim = stage.chance.choice(labellers)
        os.kill(victim, signal.SIGKILL)
    stage.ends_well(job)
    retries = stage.record("first")["retries"]
    assert retries.get("worker"), "it held a shard"
    return f"1 of {len(labellers)}; retries {retries}"


@fault("labeller frozen")
def freeze_labeller(stage: Any) -> str:
    # The loop may wait for TURN_S before it looks at its clock: a shorter stop may end unseen.
    job, seconds = stage.start("first", "--set", "label.stall_s=1"), stage.chance.uniform(TURN_S + 2, TURN_S + 5)
    with held(stage, job) as labellers:
        time.sleep(seconds)
    stage.ends_well(job)
    assert "nothing was finished for" in job.said, "a stall is said"
    return f"{len(labellers)} labellers for {seconds:.1f} s, which the run said"


@fault("two runs at once")
def two_at_once(stage: Any) -> str:
    first = stage.start("first")
    time.sleep(stage.chance.uniform(0, 2))
    second = stage.start("second")
    for job in (first, second):
        stage.ends_well(job)
    records = [stage.record(name) for name in ("first", "second")]
    assert sum(record["labelled"] for record in records) > stage.num_shards * stage.images_per_shard, "no overlap"
    return f"labelled {records[0]['labelled']} and {records[1]['labelled']}, skipped {records[0]['skipped']} and {records[1]['skipped']}"


# ---- Nodes


@fault("node killed")
def kill_node(stage: Any) -> str:
    """While its labellers, who alone work, hold shards."""
    extra = stage.ground.add(1)
    job = stage.start("first", "--set", "label.max_workers=3")
    try:
        with held(stage, job) as stopped:
            theirs = works_alone(stage, job, extra, stopped)
            for pid in stage.ground.labellers(extra):
                send(pid, signal.SIGSTOP)
    finally:
        stage.ground.kill(extra)
    stage.ends_well(job)
    retries = stage.record("first")["retries"]
    assert retries.get("worker"), "they held shards"
    return f"with {theirs} labellers; retries {retries}"


@fault("node added")
def add_node(stage: Any) -> str:
    """Its labeller works while all others are stopped: nobody else can have committed what was committed meanwhile."""
    job = stage.start("first", "--set", "label.max_workers=3")
    with held(stage, job) as stopped:
        before, extra = stage.committed(), stage.ground.add(1)
        try:
            theirs = works_alone(stage, job, extra, stopped)
            done = stage.committed()
        except BaseException:
            stage.ground.kill(extra)
            raise
    stage.ends_well(job)
    stage.ground.kill(extra)
    return f"after {before} commits; its {theirs} labellers alone made {done - before} while the others were stopped"


# ---- Storage, behind the proxy


def misbehaving(stage: Any, kind: str, share: float = 0.1) -> str:
    with stage.behind(share, (kind,)) as proxy:
        stage.ends_well(stage.start("first"))
    assert proxy.faults[kind], "nothing happened"
    return f"{proxy.faults[kind]} of {proxy.requests.total()} requests"


for _name, _kind, _share in (
    ("storage: 500", "error", 0.2),
    ("storage: SlowDown", "slow_down", 0.2),
    ("storage: reset", "reset", 0.2),
    ("storage: hang", "hang", 0.04),
    ("storage: short body", "cut", 0.2),
    ("storage: swallowed answer", "swallow", 0.2),
):
    FAULTS[_name] = lambda stage, kind=_kind, share=_share: misbehaving(stage, kind, share)


@fault("storage: away")
def store_away(stage: Any) -> str:
    """The first time for two minutes, as long as a failover takes; then for some seconds."""
    seconds = 120.0 if stage.turn == 0 else stage.chance.uniform(2, 6)
    with stage.behind(0) as proxy:
        job = stage.start("first")
        calls = stage.chance.randrange(20, 80)
        wait_until(lambda: proxy.requests.total() >= calls or job.ended(), f"{calls} requests: {job.last_words}")
        with proxy.away():
            time.sleep(seconds)
        assert proxy.faults["away"], "nobody asked meanwhile"
        stage.ends_well(job)
    return f"{seconds:.0f} s, {proxy.faults['away']} requests refused"


@fault("disk full")
def fill_disk(stage: Any) -> str:
    with small_disk(stage.folder / "store", stage.chance.randrange(200, 400)) as grow:
        stage.furnish()
        job = stage.start("first")
        wait_until(
            lambda: os.statvfs(stage.folder / "store").f_bavail == 0 or job.ended(), f"a full disk: {job.last_words}"
        )
        done = stage.committed()
        time.sleep(1)
        assert not job.ended(), f"it has ten minutes for space to be made: {job.last_words}"
        grow()
        stage.ends_well(job)
        stage.keep_rows()
        retries = stage.record("first")["retries"]
    return f"after {done} of {stage.num_shards} shards; space was made; retries {retries}"


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Callable[[], object]]:
    """Mount a file system of so many kB over a folder; call what is yielded to make it large."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, f"size={size_kb}k", "tmpfs", str(folder)], check=False, capture_output=True).returncode:
        raise Impossible("no file system can be mounted here")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Impossible(Exception):
    """This machine does not allow the fault."""


# ---- The input and the labels


@fault("input file changed during the run")
def change_input(stage: Any) -> str:
    return _with_input(stage, lambda number: stage.write(number, changed=True))


@fault("input file deleted during the run")
def delete_input(stage: Any) -> str:
    return _with_input(stage, lambda number: stage.file(number).unlink())


def _with_input(stage: Any, act: Callable[[int], object]) -> str:
    number = stage.chance.randrange(stage.num_files)
    job = stage.start("first")
    with held(stage, job):
        act(number)
    assert job.wait() in (0, 3), job.last_words
    record = stage.record("first")
    if (
        number >= stage.num_files * 3 // 4
    ):  # not before half of the shards were done; an early file may have been labelled
        assert record["failed_shards"], "its shards were open"
    if job.process.returncode == 3:
        assert {failure["kind"] for failure in record["failures"]} == {"changed"}, record["failures"]
    assert stage.finish() == 0
    return f"file {number} of {stage.num_files}; {record['failed_shards']} shards failed as changed, the next night took it as it is"


@fault("garbage image in the input")
def garbage_image(stage: Any) -> str:
    number = stage.chance.randrange(stage.num_files)
    kind = stage.chance.choice(("noise", "empty", "null", "truncated"))
    stage.write(number, garbage=kind)
    stage.ends_well(stage.start("first"))
    assert stage.record("first")["quarantined"] == 1
    return f"{kind}, in file {number}: quarantined, alone"


@fault("label file damaged between runs")
def damage_labels(stage: Any) -> str:
    assert stage.finish("first") == 0
    victim = stage.chance.choice(sorted((stage.folder / "store" / "labels").rglob("*.parquet")))
    data, how = victim.read_bytes(), stage.chance.choice(("truncated", "emptied", "deleted", "lengthened"))
    victim.unlink()  # a new file, as who restores a backup makes: a published one is read-only by custom
    if how != "deleted":
        victim.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "lengthened": data + b"more"}[how])
    assert stage.finish() == 0
    again = stage.record("again")["images_in"]
    assert again == stage.images_per_shard, f"{again} images were labelled again"
    return f"{how}; its {again} images were labelled again, no other"


@fault("ledger entry damaged between runs")
def damage_ledger(stage: Any) -> str:
    assert stage.finish("first") == 0
    victim = stage.chance.choice(sorted((stage.folder / "store" / "ledger").rglob("*.json")))
    data, how = victim.read_bytes(), stage.chance.choice(("truncated", "emptied", "deleted", "garbage"))
    victim.unlink()
    if how != "deleted":
        victim.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "garbage": b"\xff" * len(data)}[how])
        assert stage.finish("refused") != 0, "what is not readable may be anything: the night names it and stops"
        victim.unlink()
    assert stage.finish() == 0
    again = stage.record("again")["images_in"]
    assert again == stage.images_per_shard, f"{again} images were labelled again"
    return (
        f"{how}{'' if how == 'deleted' else ': refused by name, then deleted'}; its {again} images were labelled again"
    )


# ---- The engine and the model


@fault("memory runs out in a labeller")
def starve_labeller(stage: Any) -> str:
    """A limit on its address space where the forward pass of one image fits and that of a whole batch does not."""
    stage.cut_by_file(40)
    stage.version = stage.promote_another("linear", size_px=1024)
    stage.set_label(exact=True, batch_size=stage.images_per_shard)
    # A whole batch holds two tensors of 96 MB at its worst moment. One of them may be there whenever one looks.
    job, spare_mb = stage.start("first"), stage.chance.randrange(60, 85)
    with held(stage, job) as labellers:
        pass
    (victim,), seen, done = labellers, [], stage.committed()
    while stage.committed() < done + 4 and not job.ended():  # between two forward passes it is at its smallest
        seen.append(address_space(victim))
    used = min(seen)
    before = resource.prlimit(victim, resource.RLIMIT_AS, (used + (spare_mb << 20), resource.RLIM_INFINITY))
    done = stage.committed() + 2  # so many may be past their forward pass
    wait_until(lambda: stage.committed() >= done + 4 or job.ended(), f"commits in spite of it: {job.last_words}")
    assert not job.ended(), job.last_words
    resource.prlimit(victim, resource.RLIMIT_AS, before)
    stage.ends_well(job)
    retries = stage.record("first")["retries"]
    assert set(retries) == {"memory"}, f"the labeller lives on: {retries}"
    assert retries["memory"] >= 4, "what was committed under the limit was halved before"
    return f"{spare_mb} MB to spare; committed with half the batch; retries {retries}"


def address_space(pid: int) -> int:
    """Return the bytes of a process's address space now, after a moment."""
    time.sleep(0.01)
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[0]) * resource.getpagesize()


@fault("production pointer moves during the run")
def move_pointer(stage: Any) -> str:
    job = stage.start("first")
    with held(stage, job):
        stage.promote_another()
    stage.ends_well(job)
    assert stage.record("first")["model"] == f"tiny@{stage.version}", "the run keeps its bundle"
    return "the run kept its bundle"


def damaged(kind: str, picture: bytes) -> bytes | None:
    """Return what stands in the place of a picture."""
    return {"noise": b"\x89PNG" + bytes(200), "empty": b"", "null": None, "truncated": picture[: len(picture) // 2]}[
        kind
    ]


def binary(values: list[bytes | None]) -> pa.Array:
    """Return pictures as a column."""
    return pa.array(values, pa.binary())
