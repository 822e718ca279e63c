"""`submit`, `jobs`, `logs` and `stop`: refusals in this process, and whole jobs on a real head from an environment without torch."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import lacking, published, write_config
from heads import Head
from test_chaos import wait_until

from cluster import submission
from jobs import submit as module
from jobs.cli import main
from jobs.submit import address_of, refuse_local_paths
from pipeline.errors import AlreadyExistsError, ConfigError, UsageError
from pipeline.storage import open_storage

ROOT = Path(__file__).resolve().parent.parent
S3 = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture
def remote(night):
    """A config that names buckets only."""
    source = {"url": "s3://photos/incoming", "image_column": "image"}
    return night.config(store="s3://photos/store", input=source, storage={"region": "us-east-1"})


@pytest.mark.parametrize(
    ("given", "configured", "environment", "expected"),
    [
        ("http://a:1", "http://b:2", "http://c:3", "http://a:1"),
        (None, "http://b:2", "http://c:3", "http://b:2"),
        (None, "auto", "http://c:3", "http://c:3"),
        (None, "head:6379", "http://c:3", "http://c:3"),
        (None, None, "http://c:3", "http://c:3"),
    ],
)
def test_the_nearest_address_counts(night, monkeypatch, given, configured, environment, expected):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", environment)
    assert address_of(given, night.config(cluster={"address": configured})) == expected


def test_without_an_address_nothing_is_guessed(night, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="which cluster"):
        address_of(None, night.config(cluster={"address": "auto"}))
    with pytest.raises(UsageError, match=r"RAY_API_SERVER_ADDRESS$"):
        address_of(None)


def test_every_local_path_is_refused_in_words(night, tmp_path):
    local = night.config(
        store=str(tmp_path / "store"),
        input={"allowed_prefixes": ["s3://photos", str(tmp_path / "photos")]},
        model={"weights": str(tmp_path / "weights.safetensors"), "classes": str(tmp_path / "classes.json")},
    )
    with pytest.raises(ConfigError) as raised:
        refuse_local_paths(local, "night.yaml")
    lines = str(raised.value).splitlines()
    keys = ["store", "input.url", "model.weights", "model.classes", "input.allowed_prefixes.1"]
    assert [line.split(": ")[1] for line in lines] == keys
    assert all("is a path of this machine" in line and "cluster.shared_paths" in line for line in lines)


def test_paths_that_every_node_mounts_are_taken_and_neighbours_are_not(night, tmp_path):
    mounted = night.config(store=f"{tmp_path}/store", cluster={"shared_paths": [str(tmp_path)]})
    refuse_local_paths(mounted, "night.yaml")
    for beside in (f"{tmp_path}-other/store", f"{tmp_path}/../store"):
        config = night.config(store=beside, cluster={"shared_paths": [str(tmp_path)]})
        with pytest.raises(ConfigError, match="store is a path of this machine"):
            refuse_local_paths(config, "night.yaml")


@pytest.mark.parametrize(
    "weights", ["DEFAULT", "IMAGENET1K_V1", "flowers@production", "https://host/weights.safetensors"]
)
def test_weights_by_name_or_url_are_no_paths(remote, weights):
    refuse_local_paths(remote.model_copy(update={"model": remote.model.model_copy(update={"weights": weights})}), "c")


class FakeApi:
    """A cluster's jobs in a dictionary. `race` is what another client submits just before this one."""

    def __init__(self):
        self.jobs, self.submitted, self.race, self.fails = {}, [], None, None
        self.ray_version = module.library_versions(["ray"])["ray"]

    def __call__(self, address):
        self.address = address
        return self

    def list(self):
        return list(self.jobs.values())

    def submit(self, job_id, entry, package, environment, about, said):
        if self.race:
            self.put(job_id, self.race, about["digest"])
            self.race = None
        if job_id in self.jobs:
            raise AlreadyExistsError("already there")
        assert package.exists()
        self.submitted.append((job_id, entry, environment))
        self.put(job_id, "RUNNING", about.get("digest"), about)
        if self.fails:
            raise self.fails

    def put(self, job_id, status, digest, about=None):
        about = about or {"digest": digest, "command": "nightly"}
        self.jobs[job_id] = submission.Job(job_id, status, None, "", 1.0, None, about)


@pytest.fixture
def fake(monkeypatch):
    """Stand in for the cluster."""
    api = FakeApi()
    monkeypatch.setattr(submission, "JobsApi", api)
    return api


@pytest.fixture
def run(remote, tmp_path, capsys):
    """Run `submit nightly` on the fake cluster without waiting: exit code, the printed answer, what was said."""

    def run(*arguments, config=remote):
        path = write_config(tmp_path / "night.yaml", config)
        code = main(
            ["submit", "nightly", str(path), "--address", "http://head:8265", "--no-wait", "--json", *arguments]
        )
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err

    return run


def test_what_is_sent_and_started_is_said(fake, run):
    code, answer, said = run("--run-id", "night-1", "--", "--dry-run")
    assert (code, answer) == (0, {"job": answer["job"], "started": True})
    assert re.fullmatch(r"nightly-\d{8}T\d{6}-[0-9a-f]{6}", answer["job"])
    entry = "exec python -m jobs nightly submitted.yaml --dry-run --json --run-id night-1"
    assert fake.submitted == [(answer["job"], entry, {})]
    assert entry in said
    assert re.search(r"sending +\d+ files, [\d.]+ MB \([\d.]+ MB zipped\) to http://head:8265; never sent: ", said)


def test_options_of_the_command_are_checked_here(fake, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--", "--no-such-option")
    assert stopped.value.code == 2
    assert fake.submitted == []


def test_a_second_submission_of_an_id_starts_nothing_while_the_first_lasts_or_when_it_succeeded(fake, run):
    assert run("--id", "night")[1] == {"job": "night", "started": True}
    for status in ("PENDING", "RUNNING", "SUCCEEDED"):
        fake.put("night", status, fake.jobs["night"].about["digest"])
        code, answer, said = run("--id", "night")
        assert (code, answer) == (0, {"job": "night", "started": False})
        assert f"job night is {status.lower()} already; nothing is started" in said
    assert len(fake.submitted) == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_job_that_failed_is_started_again_under_the_next_name(fake, run, status):
    run("--id", "night")
    for number in (2, 3):
        name = "night" if number == 2 else f"night.{number - 1}"
        fake.put(name, status, fake.jobs[name].about["digest"])
        assert run("--id", "night")[1] == {"job": f"night.{number}", "started": True}
    assert run("--id", "night")[1] == {"job": "night.3", "started": False}


def test_who_loses_the_race_for_an_id_follows_the_winner(fake, run):
    fake.race = "RUNNING"
    assert run("--id", "night")[1] == {"job": "night", "started": False}
    assert fake.submitted == []


def test_a_job_that_runs_is_found_also_where_an_earlier_attempt_was_deleted(fake, run):
    run("--id", "night")
    fake.put("night", "FAILED", fake.jobs["night"].about["digest"])
    run("--id", "night")
    del fake.jobs["night"]
    assert run("--id", "night")[1] == {"job": "night.2", "started": False}
    fake.put("night.2", "FAILED", fake.jobs["night.2"].about["digest"])
    assert run("--id", "night")[1] == {"job": "night.3", "started": True}


def test_a_job_is_the_same_however_it_is_watched_and_a_mended_config_may_try_again(fake, run):
    run("--id", "night", "--run-id", "first")
    assert run("--id", "night", "--run-id", "second")[1]["started"] is False
    fake.put("night", "FAILED", "another digest")
    assert run("--id", "night", "--set", "label.top_k=2")[1] == {"job": "night.2", "started": True}


def test_a_name_that_somebody_elses_job_has_is_given_up(fake, run, monkeypatch):
    monkeypatch.setattr(module, "RACE_S", 0.0)
    monkeypatch.setattr(fake, "list", list)
    fake.put("night", "RUNNING", "")
    code, answer, _ = run("--id", "night")
    assert code == 2
    assert "nightshift did not submit" in answer["outcome"]


def test_ctrl_c_while_submitting_says_that_the_job_may_have_started(fake, remote, tmp_path, capsys):
    fake.fails = KeyboardInterrupt()
    path = write_config(tmp_path / "night.yaml", remote)
    assert main(["submit", "nightly", str(path), "--address", "http://head:8265"]) == 5
    said = capsys.readouterr().err
    assert "`nightshift jobs --address http://head:8265` shows whether the job was started" in said
    assert f"job       {next(iter(fake.jobs))}" in said


def test_an_answer_that_got_lost_is_no_failure(fake, run, monkeypatch):
    fake.race = "RUNNING"  # the first of two requests for the same job
    code, answer, _ = run()
    assert (code, answer["started"]) == (0, True)


def test_signatures_in_the_inputs_address_are_not_remembered(fake, run):
    run("--set", "input.url=https://host/x/photos.csv?X-Amz-Signature=abc", "--set", "input.image_column=null",
        "--set", "input.uri_column=uri")  # fmt: skip
    (job,) = fake.jobs.values()
    assert "abc" not in str(job.about)
    assert job.about["dataset"] == "photos.csv"


def test_an_id_that_names_another_job_is_refused(fake, run, remote):
    run("--id", "night")
    code, answer, _ = run("--id", "night", "--set", "label.top_k=3")
    assert code == 2
    assert "has a job of this name with another command or config (nightly, running)" in answer["outcome"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "-x", "x" * 101])
def test_ids_are_names(fake, run, name):
    code, answer, _ = run(f"--id={name}")
    assert code == 2
    assert "is no id of a job" in answer["outcome"]


def test_the_environment_is_named_and_not_shown(fake, run, monkeypatch):
    monkeypatch.setenv("STAGE", "hidden-value")
    code, _, said = run("--env", "STAGE", "--env", "A=b=c")
    assert code == 0
    assert fake.submitted[0][2] == {"STAGE": "hidden-value", "A": "b=c"}
    assert "with STAGE, A from here" in said
    assert "hidden-value" not in said


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWD", "SLACK_WEBHOOK", "AZURE_STORAGE_CONNECTION_STRING"]
)
def test_secrets_in_the_environment_are_warned_of(fake, run, name):
    assert f"warning: --env {name}: whoever may open" in run("--env", f"{name}=x")[2]
    assert "warning" not in run("--env", "KEYBOARD=x")[2]


@pytest.mark.parametrize(("given", "words"), [("NOT_THERE", "has no variable NOT_THERE"), ("a-b=1", "expected NAME")])
def test_variables_that_are_missing_or_no_names_are_refused(fake, run, given, words):
    code, answer, _ = run("--env", given)
    assert code == 2
    assert words in answer["outcome"]


def test_another_ray_on_the_cluster_is_warned_of(fake, run):
    fake.ray_version = "2.55.0"
    assert "the cluster runs Ray 2.55.0" in run()[2]


def test_the_date_is_settled_here(fake, run, remote, monkeypatch):
    sent = []
    monkeypatch.setattr(module, "pack", lambda config, *rest: sent.append(config) or pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception):
        run("--date", "2026-11-24", "--set", "input.name=night-${date}")
    assert (str(sent[0].date), sent[0].input.name, sent[0].cluster.address) == (
        "2026-11-24",
        "night-2026-11-24",
        "auto",
    )


# From here on: a real head, over HTTP, with token authentication.


@pytest.fixture(scope="module")
def head():
    """A real Ray head of two CPUs whose nodes can read and write the S3 server."""
    head = Head(S3)
    yield head
    head.close()


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The `nightshift` of an environment made as requirements-submit.txt says: no torch, nothing of the checkout."""
    folder = tmp_path_factory.mktemp("light")
    source = folder / "checkout"
    source.mkdir()
    for name in ("jobs", "pipeline", "cluster"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python = folder / "venv/bin/python"
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    pip = (
        [uv, "pip", "install", "--quiet", "--python", str(python)]
        if Path(uv).exists()
        else [str(python), "-m", "pip", "install", "-q"]
    )
    for command in (
        [sys.executable, "-m", "venv", str(folder / "venv")],
        [*pip, "-c", str(ROOT / "constraints.txt"), "-r", str(ROOT / "requirements-submit.txt")],
        [*pip, "--no-deps", str(source)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lacking(f"an environment as requirements-submit.txt says: {done.stderr[-1000:]}")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    return python.parent / "nightshift"


@pytest.fixture
def client(light, head, tmp_path):
    """Return what starts the light environment's `nightshift`, with the cluster's token and no credentials of the store."""
    home = tmp_path / "home"
    home.mkdir()
    given = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "RAY_API_SERVER_ADDRESS": head.url,
        "RAY_AUTH_TOKEN": head.token,
    }

    def start(*arguments, **environment):
        return subprocess.Popen(
            [light, *map(str, arguments)], env=given | environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def call(*arguments, **environment):
        job = start(*arguments, **environment)
        out, said = job.communicate(timeout=300)
        assert head.token not in out + said
        return job.returncode, out, said

    call.start = start
    return call


@pytest.fixture
def night_on_s3(night, s3, tmp_path):
    """A config whose input, store and model lie on the S3 server: 60 pictures in 6 shards."""
    url, storage = s3
    night.store = open_storage(f"{url}/store", storage)
    data = open_storage(f"{url}/data", storage)
    data.write("a.parquet", night.write("a.parquet", range(60)).read_bytes())
    night.seal()
    config = night.config(
        input={"url": f"{url}/data", "shard_images": 10}, storage=storage.model_dump(), label={"max_workers": 1}
    )
    return config, write_config(tmp_path / "night.yaml", config)


def status(client, job_id):
    """Return how a job stands, None when the cluster does not know it."""
    listed = json.loads(client("jobs", "--json")[1])
    return next((job["status"] for job in listed if job["job"] == job_id), None)


def test_a_night_outlives_its_client_and_logs_picks_it_up(client, night_on_s3, night):
    config, path = night_on_s3
    command = ("submit", "nightly", path, "--id", "night", "--json", "--run-id", "night-1")
    watching = client.start(*command)
    wait_until(lambda: status(client, "night") == "running", "the job runs")
    watching.kill()
    watching.communicate()
    code, out, said = client("logs", "night", "--json")
    assert code == 0, said
    record = json.loads(out.splitlines()[-1])
    assert (record["run_id"], record["labelled"], record["exit_code"]) == ("night-1", 60, 0)
    assert "60 images in = 60 labelled + 0 quarantined" in said
    assert [row[0] for row in published(night.store, config.dataset)] == list(range(60))
    code, _, said = client(*command)  # as a scheduler does that tries again
    assert code == 0
    assert "job night is succeeded already; nothing is started" in said
    (job,) = json.loads(client("jobs", "--json")[1])
    assert (job["job"], job["status"], job["exit_code"], job["dataset"]) == ("night", "succeeded", 0, "data")


def test_stop_ends_a_job_as_ctrl_c_would(client, night_on_s3, night):
    watching = client.start("submit", "nightly", night_on_s3[1], "--id", "long", "--run-id", "long-1")
    wait_until(lambda: "plans" in str(list(night.store.list())), "the night has planned")
    code, _, said = client("stop", "long")
    assert (code, "job long: stopped" in said) == (0, True)
    out, said = watching.communicate(timeout=120)
    assert watching.returncode == 5, said
    assert "job long: stopped, exit code 5" in said
    assert json.loads(night.store.read("runs/long-1/run.json"))["exit_code"] == 5, out
    code, _, said = client("stop", "long")
    assert (code, "job long: stopped already" in said) == (0, True)


def test_a_night_that_is_refused_hands_its_exit_code_back(client, night_on_s3):
    code, out, said = client("submit", "nightly", night_on_s3[1], "--set", "model.name=unknown")
    assert (code, "unknown" in out) == (2, True), said
    assert "failed, exit code 2" in said


def test_a_wrong_token_and_a_silent_address_are_told_apart(client, head):
    code, _, said = client("jobs", RAY_AUTH_TOKEN="0" * 64)
    assert (code, "wants its cluster's token" in said) == (2, True)
    code, _, said = client("jobs", "--address", "http://127.0.0.1:9")
    assert (code, "no Ray dashboard answers at http://127.0.0.1:9" in said) == (1, True)
    code, _, said = client("logs", "nobody")
    assert (code, "knows no such job" in said) == (1, True)


def test_doctor_compares_every_node_and_reaches_the_store_from_each(client, night_on_s3, head):
    code, out, said = client("doctor", night_on_s3[1], "--address", head.url, "--json")
    assert code == 0, said
    here, there = (json.loads(line) for line in out.splitlines())
    assert "torch -" in here["libraries"]["found"]
    (node,) = (name for name in there if name.startswith("head "))
    assert "2 CPUs, 0 GPUs" in there[node]["found"]
    assert "GB object store" in there[node]["found"]
    assert set(there) == {"machine", "libraries", "known answer", "cluster", node, "store", "input"}
    assert all(check["ok"] for check in there.values())
