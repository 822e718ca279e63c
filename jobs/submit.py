"""`nightshift submit COMMAND CONFIG`: the same command on a cluster, started over HTTP and followed from here."""

import hashlib
import json
import os
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.config import Config, read_config
from jobs.console import say
from jobs.following import watch
from jobs.parcel import CONFIG, EXCLUDES, Parcel, pack
from jobs.runs import STOPPED
from pipeline.errors import AlreadyExistsError, ConfigError, UsageError
from pipeline.libraries import library_versions
from pipeline.refusals import printable
from pipeline.settings import is_dashboard
from pipeline.storage import scheme_of
from pipeline.weightsource import Location, weight_source

if TYPE_CHECKING:
    from cluster.submission import Job, JobsApi

SECRET = re.compile(
    r"secret|token|passw|credential|_key\b|_key_|apikey|sas\b|connection_string|webhook|database_url", re.IGNORECASE
)
MOST_RACES, RACE_S = 5, 1.0


def submit(options: Any) -> int:
    """Submit one command and return its exit code, or 0 at once with --no-wait."""
    overrides = [*options.overrides, *([f"date={options.date}"] if options.date else [])]
    config = read_config(options.config, overrides)
    address = address_of(options.address, config)
    refuse_local_paths(config, options.config)
    environment = _environment(options.env)
    if options.id is not None:
        check_id(options.id)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "auto"})})
    what = Submission(
        options.job, _entry(options), config, tuple(options.along), environment, _about(options, config, environment)
    )

    from cluster.submission import JobsApi

    api = JobsApi(address)
    _compare_ray(api)
    try:
        job_id, started = _start(api, options.id, what)
    except KeyboardInterrupt:  # the names of the jobs that may have been started are said above
        say(
            f"stopped while submitting; `nightshift jobs --address {printable(address)}` shows whether the job was started"
        )
        return STOPPED
    if options.no_wait:
        print(json.dumps({"job": job_id, "started": started}) if options.json else job_id)
        return 0
    return watch(api, job_id, options.json)


@dataclass(frozen=True)
class Submission:
    """What is submitted: command line, config, modules and environment of one's own, and what the cluster remembers of it."""

    command: str
    entry: str
    config: Config | None
    along: tuple[str, ...]
    environment: dict[str, str]
    about: dict[str, str]

    def send(self, api: "JobsApi", job_id: str) -> None:
        """Start it as the job of this id; AlreadyExistsError when there is one."""
        with tempfile.TemporaryDirectory(prefix="nightshift-") as folder:
            parcel = pack(self.config, self.along, Path(folder) / "nightshift.zip")
            _announce(parcel, api.address, self.entry, self.environment)
            say(f"job       {job_id}")
            api.submit(job_id, self.entry, parcel.path, self.environment, self.about, say)

    def send_anew(self, api: "JobsApi") -> str:
        """Start it under a name that nothing else has, and return that."""
        job_id = f"{self.command}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        with suppress(AlreadyExistsError):  # it is ours: an answer got lost on its way, and the job was asked for again
            self.send(api, job_id)
        return job_id


def examine_cluster(config: Config | None, address: str, as_json: bool) -> int:
    """Let `doctor` run as a job on the cluster, and return its exit code."""
    if config:
        refuse_local_paths(config, "the config")
    words = ["doctor", *([CONFIG] if config else []), "--address", "auto", *(["--json"] if as_json else [])]
    about = {"command": "doctor", "dataset": printable(config.dataset) if config else "-"}
    from cluster.submission import JobsApi

    api = JobsApi(address)
    _compare_ray(api)
    what = Submission("doctor", f"exec python -m jobs {shlex.join(words)}", config, (), {}, about)
    return watch(api, what.send_anew(api), as_json)


def address_of(given: str | None, config: Config | None = None) -> str:
    """Return the dashboard's URL: as given, from the config, from the environment; UsageError when nobody says."""
    configured = config.cluster.address if config else None  # or the address to join from a node of the cluster
    address = given or (configured if is_dashboard(configured) else None) or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise UsageError(
            "which cluster? Give --address with the URL of its dashboard, such as http://head:8265, or set RAY_API_SERVER_ADDRESS"
            + (", or cluster.address in the config" if config else "")
        )
    return address


def refuse_local_paths(config: Config, path: str) -> None:
    """Raise ConfigError for every path that means another place, or nothing, on the nodes of a cluster."""
    weights = config.model.weights
    named = {
        "store": config.store,
        "input.url": config.input.url,
        "model.weights": weights if isinstance(weight_source(weights), Location) else None,
        "model.classes": config.model.classes,
        **{f"input.allowed_prefixes.{i}": prefix for i, prefix in enumerate(config.input.allowed_prefixes)},
    }
    shared = [Path(os.path.normpath(folder)) for folder in config.cluster.shared_paths]
    lines = [
        f"{path}: {key}: {printable(value)} is a path of this machine, and the work is done by others; give a URL such as "
        "s3://bucket/folder, or, if every node mounts it at this place, name it in cluster.shared_paths"
        for key, value in named.items()
        if value
        and scheme_of(value) == "file"
        and not any(Path(os.path.normpath(value)).is_relative_to(folder) for folder in shared)
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _start(api: "JobsApi", name: str | None, what: Submission) -> tuple[str, bool]:
    """Start the job, or find the one of the same `--id` that runs or has succeeded; return its id and whether it is new."""
    if name is None:
        return what.send_anew(api), True
    for _ in range(MOST_RACES):
        job_id, there = _attempt(api, name, what.about)
        if there:
            say(f"job {there.id} is {there.status.lower()} already; nothing is started")
            return there.id, False
        try:
            what.send(api, job_id)
            return job_id, True
        except AlreadyExistsError:  # somebody else was quicker, or an answer got lost on its way: look again
            time.sleep(RACE_S)
    raise UsageError(
        f"--id {name}: the cluster has a job of this name that nightshift did not submit; choose another id"
    )


def _attempt(api: "JobsApi", name: str, about: dict[str, str]) -> tuple[str, "Job | None"]:
    """Return the id to submit under, or the job to follow instead.

    Ray takes an id once. So `--id night` is the name of a row of attempts, night, night.2, night.3, ..., of which one runs at
    a time, and none after one has succeeded.
    """
    attempts = {
        int(found[1] or 1): job
        for job in api.list()
        if (found := re.fullmatch(rf"{re.escape(name)}(?:\.(\d+))?", job.id))
    }
    jobs = list(attempts.values())
    for job in [job for job in jobs if job.lasts] or [job for job in jobs if job.status == "SUCCEEDED"]:
        if job.about.get("digest") != about["digest"]:
            raise UsageError(
                f"--id {name}: the cluster has a job of this name with another command or config "
                f"({job.about.get('command')}, {job.status.lower()}); choose another id"
            )
        return job.id, job
    number = max(attempts, default=0) + 1
    return name if number == 1 else f"{name}.{number}", None


def _entry(options: Any) -> str:
    """Return the command line of the job; `exec`, so that `stop` reaches nightshift and not a shell before it."""
    words = ["python", "-m", "jobs", options.job, CONFIG, *options.behind]
    words += ["--json"] if options.json else []
    words += ["--run-id", options.run_id] if options.run_id else []
    return "exec " + shlex.join(words)


def _about(options: Any, config: Config, environment: dict[str, str]) -> dict[str, str]:
    """Return what the cluster remembers of a job: for people, and to know it again, however it is watched."""
    asked = json.dumps(
        [options.job, options.behind, config.model_dump(mode="json"), sorted(environment.items())], sort_keys=True
    )
    return {
        "command": options.job,
        "dataset": config.dataset.partition("?")[0],
        "config": Path(options.config).name,
        "digest": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "version": str(library_versions(["nightshift"])["nightshift"]),
    }


def _environment(given: Sequence[str]) -> dict[str, str]:
    """Return the job's own variables; UsageError when one is not set here."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--env {name}: expected NAME or NAME=VALUE")
        if not equals and name not in os.environ:
            raise UsageError(
                f"--env {name}: the environment has no variable {name}; export it first, or give NAME=VALUE"
            )
        if SECRET.search(name):
            say(
                f"warning: --env {name}: whoever may open the cluster's dashboard can read it; give secrets to the cluster's "
                "nodes instead"
            )
        found[name] = value if equals else os.environ[name]
    return found


def check_id(job_id: str) -> None:
    """Raise UsageError for what can be no job's id."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.\d{1,4})?", job_id):
        raise UsageError(
            f"{job_id!r} is no id of a job: expected up to 100 letters, digits, dashes and underscores, such as night-2026-11-24"
        )


def _compare_ray(api: "JobsApi") -> None:
    here = library_versions(["ray"])["ray"]
    if api.ray_version != here:
        say(
            f"warning: the cluster runs Ray {api.ray_version}, and this nightshift was tested with {here}; "
            "`nightshift doctor --address` compares everything"
        )


def _announce(parcel: Parcel, address: str, entry: str, environment: dict[str, str]) -> None:
    say(f"sending   {parcel.summary} to {printable(address)}; never sent: {', '.join(EXCLUDES)}")
    say(f"command   {entry}" + (f"   with {', '.join(environment)} from here" if environment else ""))
