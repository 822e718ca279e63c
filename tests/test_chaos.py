"""The real command line with a real Ray session, killed and interrupted. Short by default; `make chaos SEEDS=n` does more."""

import contextlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import published, write_config

from pipeline.ledger import read_ledger
from pipeline.plans import read_plan
from pipeline.publication import read_view
from pipeline.registry import generation

ROOT = Path(__file__).resolve().parent.parent
# Each of these has a Ray session of its own and takes half a minute; the many faults are those of test_faults.py.
SEEDS = min(4, int(os.environ.get("NIGHTSHIFT_CHAOS_SEEDS", "4")))
NUM_SHARDS, IMAGES_PER_SHARD = 60, 3
PATIENCE_S = 120.0
# Gives the new session its terminal, and Ctrl-C its meaning, which a test run in the background lacks.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "jobs", *sys.argv[1:]])
"""


def wait_until(condition, what):
    """Poll until the condition holds, and return what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.02)
    return found


def processes():
    """Return (parent's id, command line) of every process, by id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z":
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = int(stat[1]), command
    return found


def below(pid):
    """Return the command lines of a process's descendants, by id."""
    everything, found, parents = processes(), {}, {pid}
    while parents:
        children = {child for child, (parent, _) in everything.items() if parent in parents}
        found |= {child: everything[child][1] for child in children}
        parents = children
    return found


class Job:
    """A command, `nightshift label` by default, of a test's own, on a terminal of its own."""

    def __init__(self, config, run_id, *options, command="label"):
        self._master, slave = pty.openpty()
        arguments = [sys.executable, "-c", ON_TERMINAL, command, str(config), "--run-id", run_id, *options]
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # EIO: nobody holds the other side any more
            while data := os.read(self._master, 1 << 16):
                self.said += data.decode(errors="replace")

    def press_ctrl_c(self):
        """As a person does: every process in the terminal's foreground gets SIGINT."""
        os.write(self._master, b"\x03")

    def ended(self):
        return self.process.poll() is not None

    @property
    def last_words(self):
        """The end of what it said, without bars and colours."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|━", "", self.said).splitlines()
        return "\n".join(line for line in plain if line.strip())[-2000:]

    def wait(self):
        """Return the exit code."""
        wait_until(self.ended, f"the end of the run, which said {self.last_words}")
        return self.process.returncode

    def workers(self):
        return [pid for pid, command in below(self.process.pid).items() if "ray::_Worker" in command]

    def close(self):
        """Leave nothing behind, whatever the test did."""
        left = below(self.process.pid)
        for pid in [self.process.pid, *left]:
            with contextlib.suppress(ProcessLookupError):
                if not (pid == self.process.pid and self.ended()):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(PATIENCE_S)
        os.close(self._master)


class Scene:
    """A store with many small open shards, what an uninterrupted run makes of them, and jobs that label them."""

    def __init__(self, night, folder, num_shards=NUM_SHARDS):
        self.night, self.jobs, self.num_shards = night, [], num_shards
        night.write("a.parquet", range(num_shards * IMAGES_PER_SHARD), rows_per_group=IMAGES_PER_SHARD)
        self.version = night.seal("lab_cnn")
        shards = {"shard_images": IMAGES_PER_SHARD}
        night.whole(night.config(input={**shards, "name": "expected"}), self.version)
        self.expected = published(night.store, "expected")
        # Runs work beside each other here: what a killed one left is taken up at once.
        self.config = night.config(input=shards, cluster={"num_cpus": 2}, label={"overlap": "work"})
        self._path = write_config(folder / "night.yaml", self.config)

    def start(self, run_id, workers=1, *options):
        job = Job(self._path, run_id, "--set", f"label.max_workers={workers}", *options)
        self.jobs.append(job)
        return job

    def committed(self):
        return len(list((Path(self.night.store.url) / "ledger/data").rglob("*.json")))

    def wait_for_commits(self, count, job):
        wait_until(lambda: self.committed() >= count or job.ended(), f"{count} commits; the run said {job.last_words}")

    def record(self, run_id):
        return json.loads(self.night.store.read(f"runs/{run_id}/run.json"))

    def check_complete(self, views=(1,)):
        plan = read_plan(self.night.store, "data")
        asked = generation("data", "tiny", self.version, self.config.input, self.config.label)
        ledger = read_ledger(self.night.store, asked, plan.shards)
        assert set(ledger) == {shard.id for shard in plan.shards}
        assert len(plan.shards) == self.num_shards
        assert published(self.night.store, "data") == self.expected
        assert read_view(self.night.store, "data").n in views


@pytest.fixture
def scene(night, tmp_path):
    made = Scene(night, tmp_path)
    yield made
    for job in made.jobs:
        job.close()


def kill_driver(scene, chance):
    """Kill -9 a run's driver at a random moment; return when nothing of it is left."""
    job = scene.start("killed")
    commits = chance.randrange(0, NUM_SHARDS * 3 // 4)
    if commits:
        scene.wait_for_commits(commits, job)
    else:
        wait_until(lambda: below(job.process.pid) or job.ended(), "the start")
        time.sleep(chance.uniform(0, 6))  # a moment that no condition names
    assert not job.ended(), f"the run ended before it was killed: {job.last_words}"
    family = below(job.process.pid)
    os.kill(job.process.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    wait_until(lambda: not set(family) & set(processes()), f"the end of what the driver had started: {family}")


def kill_worker(scene, chance):
    """Kill -9 one labeller at a random moment; return when the run has ended, well all the same."""
    job = scene.start("bereaved", workers=2)
    scene.wait_for_commits(chance.randrange(1, NUM_SHARDS // 2), job)
    victim = chance.choice(wait_until(lambda: job.workers() or (job.ended() and [None]), "a worker"))
    assert victim, f"the run ended before a worker could be killed: {job.last_words}"
    os.kill(victim, signal.SIGKILL)
    assert job.wait() == 0, job.last_words
    record = scene.record("bereaved")
    assert (record["images_in"], record["failed_shards"]) == (NUM_SHARDS * IMAGES_PER_SHARD, 0)


def finish_here(scene, nightshift):
    """Run the command again in this process, without Ray."""
    ended = nightshift(scene.config, "label")
    assert ended.code == 0, ended.said
    assert ended.record["images_in"] + ended.record["skipped"] == len(scene.expected)
    return ended.record


def finish_again(scene):
    job = scene.start("rerun")
    assert job.wait() == 0, job.last_words
    record = scene.record("rerun")
    assert record["images_in"] + record["skipped"] == len(scene.expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_driver_loses_nothing_and_leaves_nothing_running(scene, nightshift, local_ray, seed):
    kill_driver(scene, random.Random(seed))
    finish_here(scene, nightshift)
    scene.check_complete()


def test_a_killed_worker_loses_nothing(scene, nightshift, local_ray):
    kill_worker(scene, random.Random(2))
    assert finish_here(scene, nightshift)["images_in"] == 0
    scene.check_complete()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_at_any_moment_and_run_again(scene, seed):
    chance = random.Random(1000 + seed)
    (kill_worker if seed % 2 else kill_driver)(scene, chance)
    finish_again(scene)
    scene.check_complete()


def test_ctrl_c_stops_cleanly_and_a_second_one_does_no_harm(scene, nightshift, local_ray):
    job = scene.start("stopped")
    scene.wait_for_commits(5, job)
    family = below(job.process.pid)
    job.press_ctrl_c()
    wait_until(lambda: "images in" in job.said or job.ended(), "the stage to end")
    job.press_ctrl_c()
    assert job.wait() == 5, job.last_words
    check_stopped(scene, job, family)
    assert "Traceback" not in job.said
    finish_here(scene, nightshift)
    scene.check_complete()


@pytest.mark.chaos  # the parts of it are tested without processes in test_cli and test_session
def test_sigterm_stops_as_cleanly_as_ctrl_c(scene, nightshift, local_ray):
    job = scene.start("stopped")
    scene.wait_for_commits(5, job)
    family = below(job.process.pid)
    job.process.terminate()
    assert job.wait() == 5, job.last_words
    check_stopped(scene, job, family)
    finish_here(scene, nightshift)
    scene.check_complete()


def check_stopped(scene, job, family):
    """The run said how to continue, left its record, and nothing runs on."""
    assert "the same command continues it" in job.said
    record = scene.record("stopped")
    assert record["exit_code"] == 5
    assert 0 < record["images_in"] < len(scene.expected), "it tells how far it came"
    wait_until(lambda: not set(family) & set(processes()), f"the end of what the run had started: {family}")


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(SEEDS))
def test_ctrl_c_at_any_moment(scene, seed):
    job, chance = scene.start("stopped"), random.Random(2000 + seed)
    wait_until(lambda: below(job.process.pid) or job.ended(), "the start of the session")
    time.sleep(chance.uniform(0, 10))  # a moment that no condition names
    job.press_ctrl_c()
    assert job.wait() in (0, 5), job.last_words
    if job.process.returncode == 5:
        assert "the same command continues it" in job.said
        assert scene.record("stopped")["exit_code"] == 5
    finish_again(scene)
    scene.check_complete()


def test_two_runs_at_once_on_one_store_end_well(scene):
    jobs = [scene.start(f"twin-{number}") for number in range(2)]
    assert [job.wait() for job in jobs] == [0, 0], "\n".join(job.last_words for job in jobs)
    for number in range(2):
        record = scene.record(f"twin-{number}")
        assert record["images_in"] + record["skipped"] == len(scene.expected)
    scene.check_complete(views=(1, 2))  # each run may publish the files that it wrote; the rows are the same


def test_the_second_of_two_nights_waits_for_the_first_or_leaves(scene):
    first = scene.start("first", 1, "--set", "label.overlap=wait")
    scene.wait_for_commits(3, first)
    held = first.workers()
    for worker in held:
        os.kill(worker, signal.SIGSTOP)  # it lasts until the others have seen it
    leaves = scene.start("leaves", 1, "--set", "label.overlap=leave")
    waits = scene.start("waits", 1, "--set", "label.overlap=wait")
    assert leaves.wait() == 5, leaves.last_words
    wait_until(lambda: "waiting: run first on " in waits.said or waits.ended(), "a word of the second night")
    for worker in held:
        os.kill(worker, signal.SIGCONT)
    assert "run first on " in scene.record("leaves")["outcome"]
    assert scene.record("leaves")["images_in"] == 0
    assert [first.wait(), waits.wait()] == [0, 0], waits.last_words
    assert scene.record("first")["images_in"] == len(scene.expected)
    assert (scene.record("waits")["images_in"], scene.record("waits")["skipped"]) == (0, len(scene.expected))
    scene.check_complete()
    assert not [entry.path for entry in scene.night.store.list("leases")]
