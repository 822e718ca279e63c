"""What happens to clusters at night, done to one: a run completes with the rows of an undisturbed one, or says how to go on."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import lacking
from grounds import Ground, kill
from test_chaos import below, wait_until
from test_nodes import NUM_SHARDS, check, ground, scene, start

pytestmark = pytest.mark.chaos
__all__ = ["ground", "scene"]  # fixtures
MINUTE_S = 60


def in_the_middle(scene, job):
    """Wait until a run has committed some shards."""
    scene.wait_for_commits(3, job)
    assert not job.ended(), job.last_words
    assert scene.committed() < NUM_SHARDS // 2, "the run was too fast for this test"


def test_a_driver_that_is_frozen_for_a_minute_goes_on(scene, ground, tmp_path):
    ground.add(1)
    job = start(scene, ground, tmp_path, "night")
    in_the_middle(scene, job)
    os.kill(job.process.pid, signal.SIGSTOP)
    time.sleep(MINUTE_S)
    frozen = scene.committed()
    os.kill(job.process.pid, signal.SIGCONT)
    check(scene, job, "night")
    assert frozen < NUM_SHARDS


@contextlib.contextmanager
def cut_off(address):
    """Drop every packet to an address of this machine while the block runs."""
    route = ["blackhole", f"{address}/32", "table", "local"]
    subprocess.run(["ip", "route", "add", *route], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", *route], check=True)


def test_a_node_that_is_cut_off_for_a_minute_costs_no_row(scene, tmp_path, ground):
    """Its labellers go on meanwhile, and write to the store what others label too."""
    if os.getuid() or not shutil.which("ip"):
        lacking("the right to change routes (root, and the program ip)")
    near = ground.add(1)
    far = ground.add(1, node_ip_address="127.0.0.3")
    job = start(scene, ground, tmp_path, "night")
    wait_until(lambda: (ground.labellers(near) and ground.labellers(far)) or job.ended(), "both nodes' labellers")
    in_the_middle(scene, job)
    with cut_off("127.0.0.3"):
        time.sleep(MINUTE_S)
    check(scene, job, "night")


def test_a_node_that_is_frozen_for_a_minute_costs_no_row(scene, ground, tmp_path):
    nodes = [ground.add(1), ground.add(1)]
    job = start(scene, ground, tmp_path, "night")
    wait_until(lambda: all(map(ground.labellers, nodes)) or job.ended(), "both nodes' labellers")
    in_the_middle(scene, job)
    family = [ground.raylet(nodes[1]), *below(ground.raylet(nodes[1]))]
    for pid in family:
        kill(pid, signal.SIGSTOP)
    time.sleep(MINUTE_S)
    for pid in family:
        kill(pid, signal.SIGCONT)
    check(scene, job, "night")


FILLING = """
import sys, time, ray
import numpy as np
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address=sys.argv[1], logging_level="ERROR")
@ray.remote(num_cpus=0)
class Filler:
    def fill(self):
        self.held = [ray.put(np.zeros(8_000_000, np.uint8)) for _ in range(9)]
        return len(self.held)
filler = Filler.options(scheduling_strategy=NodeAffinitySchedulingStrategy(sys.argv[2], soft=False)).remote()
print("full", ray.get(filler.fill.remote()), flush=True)
time.sleep(600)
"""


def test_a_node_whose_object_store_is_full_goes_on(scene, ground, tmp_path):
    node = ground.add(1)
    filling = subprocess.Popen(
        [sys.executable, "-c", FILLING, ground.address, ground.ids[node]], stdout=subprocess.PIPE, text=True
    )
    try:
        assert filling.stdout.readline().strip() == "full 9", "72 of 80 MB are held"
        job = start(scene, ground, tmp_path, "night")
        check(scene, job, "night")
    finally:
        filling.kill()
        filling.communicate()


def test_a_head_that_dies_and_comes_back_with_its_memory_is_waited_for(scene, tmp_path, monkeypatch, ground):
    """Ray keeps the control service's state in a folder: what KubeRay's fault tolerance is with Redis."""
    ground.close()
    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "gcs"))
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "60")
    (tmp_path / "gcs").mkdir()
    lasting = Ground(tmp_path / "lasting.log")
    try:
        lasting.add(1)
        job = start(scene, lasting, tmp_path, "night")
        in_the_middle(scene, job)
        lasting.behead(10)
        assert "does not answer" in job.said
        check(scene, job, "night")
        assert "answers again" in job.said
    finally:
        lasting.close()


def drain(ground, number, seconds):
    """Give the notice that a cloud gives before it takes a machine away."""
    command = [
        "drain-node", "--address", ground.address, "--node-id", ground.ids[number], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot", "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    program = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_preemption_notice_empties_the_node_before_it_goes(scene, ground, tmp_path):
    nodes = [ground.add(1), ground.add(1)]
    job = start(scene, ground, tmp_path, "night", "--set", "label.attempts=1")
    wait_until(lambda: all(map(ground.labellers, nodes)) or job.ended(), "both nodes' labellers")
    in_the_middle(scene, job)
    drain(ground, nodes[0], 120)
    wait_until(lambda: "is to be taken away" in job.said or job.ended(), "the notice")
    wait_until(lambda: not ground.labellers(nodes[0]) or job.ended(), "the labeller's end")
    ground.kill(nodes[0])
    record = check(scene, job, "night")
    assert record["failed_shards"] == 0


def test_a_shard_that_does_not_end_in_time_is_handed_back(scene, ground, tmp_path):
    leaving = ground.add(1)
    job = start(scene, ground, tmp_path, "night", "--set", "label.attempts=1")
    in_the_middle(scene, job)
    (held,) = ground.labellers(leaving)
    kill(held, signal.SIGSTOP)  # it ends nothing any more
    ground.add(1)
    drain(ground, leaving, 120)
    record = check(scene, job, "night")
    assert record["retries"].get("worker"), "what it held was begun anew elsewhere"


def test_a_node_with_another_torch_is_refused_in_words(scene, ground, tmp_path):
    (tmp_path / "other/torch-1.13.0.dist-info").mkdir(parents=True)
    (tmp_path / "other/torch-1.13.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 1.13.0\n"
    )
    ground.add(1, env_vars={"PYTHONPATH": str(tmp_path / "other")})
    job = start(scene, ground, tmp_path, "night")
    assert job.wait() == 2, job.last_words
    said = " ".join(job.said.split())
    assert "torch is 1.13.0 there and" in said
    assert "run the same image on every node" in said
    assert scene.committed() == 0
