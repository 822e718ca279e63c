"""Labelling and training on a cluster of several nodes, real raylets on this machine, some of which die and others join."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import write_config
from grounds import Ground, kill
from test_chaos import Job, Scene, below, wait_until

from jobs.config import Config
from pipeline.settings import ClusterSettings

# Who has lost the head looks for it so many seconds before it ends; Ray's default is a minute.
SHORT_FAREWELL = ("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
NUM_SHARDS = 240  # so many that a run still goes on when a test on a busy machine has seen its first commits


@pytest.fixture
def ground(tmp_path, monkeypatch):
    """An empty cluster: a head that does no work. Its processes and the commands share a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-this-test-alone-0123456789")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(*SHORT_FAREWELL)
    made = Ground(tmp_path / "cluster.log")
    yield made
    made.close()


@pytest.fixture
def scene(night, tmp_path):
    made = Scene(night, tmp_path, NUM_SHARDS)
    yield made
    for job in made.jobs:
        job.close()


def start(scene, ground, tmp_path, run_id, *options):
    """Start `nightshift label` on the cluster."""
    config = scene.config.model_copy(update={"cluster": ClusterSettings(address=ground.address)})
    job = Job(write_config(tmp_path / f"{run_id}.yaml", config), run_id, "--set", "label.stall_s=4", *options)
    scene.jobs.append(job)
    return job


def check(scene, job, run_id):
    """The run ended well, and its rows are those of a run that nothing happened to."""
    assert job.wait() == 0, job.last_words
    record = scene.record(run_id)
    assert (record["images_in"] + record["skipped"], record["failed_shards"]) == (len(scene.expected), 0)
    scene.check_complete()
    if table := os.environ.get("NIGHTSHIFT_CHAOS_TABLE"):
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
        told = {key: record[key] for key in ("seconds", "images_in", "skipped", "labelled", "retries")}
        with Path(table).open("a") as lines:
            print(json.dumps({"fault": name, "rows_equal": len(scene.expected), **told}), file=lines)
    return record


def check_farewell(job):
    """Ray ends the process, with exit code 1; what the run said before tells what to do."""
    assert job.wait() == 1, job.last_words
    assert "does not answer" in job.said, job.last_words
    assert "the same command" in job.said, job.last_words


def frozen_labeller(scene, ground, node, job):
    """Wait for a node's labeller to work, stop its process in the middle of it, and return its id."""
    scene.wait_for_commits(3, job)
    (pid,) = ground.labellers(node)
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_node_that_joins_gets_work_and_that_of_one_that_vanishes_goes_elsewhere(scene, ground, tmp_path):
    first = ground.add(1)
    job = start(scene, ground, tmp_path, "night")
    frozen_labeller(scene, ground, first, job)
    before = scene.committed()
    assert before < NUM_SHARDS - 2, "the run was too fast for this test"
    second = ground.add(1)
    wait_until(lambda: scene.committed() >= NUM_SHARDS - 2 or job.ended(), f"the new node's work: {job.last_words}")
    assert not job.ended(), "what the first node holds cannot be done"
    assert ground.labellers(second)
    ground.kill(first)
    check(scene, job, "night")


@pytest.mark.chaos
def test_when_the_last_node_is_gone_the_run_waits_loudly_for_another(scene, ground, tmp_path):
    first = ground.add(1)
    job = start(scene, ground, tmp_path, "night")
    frozen_labeller(scene, ground, first, job)
    ground.kill(first)
    wait_until(lambda: "0 workers run and 1 wait for a place" in job.said or job.ended(), f"a word: {job.last_words}")
    assert not job.ended(), job.last_words
    ground.add(1)
    check(scene, job, "night")


@pytest.mark.chaos
def test_nodes_that_come_and_go_all_the_time(scene, ground, tmp_path):
    """Each node is killed while its labeller holds shards; the innocent shards have all their attempts left."""
    nodes = [ground.add(1), ground.add(1)]
    job = start(scene, ground, tmp_path, "night", "--set", "label.attempts=1")
    for _ in range(3):
        done = scene.committed()
        wait_until(lambda done=done: scene.committed() >= min(done + 5, NUM_SHARDS) or job.ended(), "progress")
        nodes.append(ground.add(1))
        ground.kill(nodes.pop(0))
    check(scene, job, "night")


@pytest.mark.chaos
def test_the_head_is_killed_and_the_same_command_on_a_new_cluster_goes_on(scene, ground, tmp_path, monkeypatch):
    first = ground.add(1)
    job = start(scene, ground, tmp_path, "killed")
    frozen_labeller(scene, ground, first, job)
    done = scene.committed()
    ground.kill(ground.head)
    check_farewell(job)
    ground.close()
    again = Ground(tmp_path / "again.log")
    try:
        again.add(1)
        record = check(scene, start(scene, again, tmp_path, "again"), "again")
    finally:
        again.close()
    assert record["skipped"] >= done


@pytest.mark.chaos
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
def test_a_session_of_ones_own_that_loses_its_head_ends_and_is_resumed(scene, process, monkeypatch):
    monkeypatch.setenv(*SHORT_FAREWELL)
    job = scene.start("killed", workers=2)
    scene.wait_for_commits(3, job)
    family = below(job.process.pid)
    (pid,) = (pid for pid, command in family.items() if f"/{process} " in command)
    wait_until(
        lambda: len(job.workers()) == 2 or job.ended(), "both labellers: one that comes later would label everything"
    )
    assert not job.ended(), "the run was too fast for this test"
    for worker in job.workers():
        kill(worker, signal.SIGSTOP)
    kill(pid, signal.SIGKILL)
    if process == "gcs_server":
        check_farewell(job)
    else:
        assert job.wait() == 1, job.last_words
        assert "no machine of the Ray session is alive" in scene.record("killed")["outcome"]
    for left in family:
        kill(left, signal.SIGKILL)
    again = scene.start("again")
    check(scene, again, "again")


EPOCHS = 150


@pytest.fixture
def training(tmp_path, class_folders):
    """Return a function that starts a training of 150 epochs, 5 steps each, in a store of its own."""
    images, jobs = class_folders(tmp_path / "images"), []

    def start(name, workers, address=None):
        config = Config.model_validate({
            "store": str(tmp_path / name),
            "input": {"url": str(images), "shard_images": 10},
            "model": {"name": "tiny", "builder": "linear", "transforms": {"resize_px": 9, "crop_px": 8}},
            "train": {"mode": "scratch", "epochs": EPOCHS, "batch_size": 8, "workers": workers, "checkpoint_steps": 5},
            "cluster": {"address": address, "num_cpus": None if address else 2},
        })  # fmt: skip
        jobs.append(Job(write_config(tmp_path / f"{name}.yaml", config), name, command="train"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


def trained(store):
    """Return the result of the store's only training."""
    (path,) = Path(store).glob("trainings/*/result.json")
    return json.loads(path.read_text())


def kill_when_trained_a_little(ground, number, store, job):
    wait_until(
        lambda: list(Path(store).glob("trainings/*/step-*.json")) or job.ended(), f"a checkpoint: {job.last_words}"
    )
    ground.kill(number)
    assert not job.ended(), "the training was too fast for this test"
    assert not list(Path(store).glob("trainings/*/result.json"))


@pytest.mark.chaos
def test_a_training_that_loses_a_node_goes_on_with_fewer_workers(training, ground, tmp_path):
    nodes = [ground.add(1), ground.add(1)]
    job = training("hurt", {"min": 1, "max": 2}, ground.address)
    kill_when_trained_a_little(ground, nodes[1], tmp_path / "hurt", job)
    assert job.wait() == 0, job.last_words
    assert "training starts again from its last checkpoint (1 of 2)" in " ".join(job.said.split())
    result = trained(tmp_path / "hurt")
    assert result["workers"] == 1
    assert training("whole", 1).wait() == 0
    losses = [[record["train_loss"] for record in each["history"]] for each in (result, trained(tmp_path / "whole"))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert len(losses[0]) == EPOCHS


@pytest.mark.chaos
def test_a_training_that_loses_a_node_waits_for_another_and_seals_the_same_weights(training, ground, tmp_path):
    nodes = [ground.add(1), ground.add(1)]
    job = training("hurt", 2, ground.address)
    kill_when_trained_a_little(ground, nodes[1], tmp_path / "hurt", job)
    ground.add(1)
    assert job.wait() == 0, job.last_words
    assert training("whole", 2).wait() == 0
    assert trained(tmp_path / "hurt")["version"] == trained(tmp_path / "whole")["version"]
