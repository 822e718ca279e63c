"""`nightshift manifest COMMAND CONFIG`: print what `kubectl apply -f -` needs for nights on a cluster with KubeRay."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from jobs.config import Config, read_config
from jobs.console import say
from jobs.submit import refuse_local_paths
from pipeline.errors import ConfigError
from pipeline.kuberay import CONFIG, FOLDER, Manifest, config_map, cron_job, name_of, ray_cron_job, ray_job, rendered
from pipeline.libraries import library_versions


def show(options: Any) -> int:
    """Print the manifests: a schedule, or with --once one night."""
    text = Path(options.config).read_text(encoding="utf-8") if Path(options.config).is_file() else ""
    config = read_config(options.config, options.overrides)
    check(config, options.config, text)
    print(yaml.safe_dump_all(manifests(config, text, options), sort_keys=False, width=160), end="")
    return 0


def check(config: Config, path: str, text: str) -> None:
    """Raise ConfigError for what would fail in the cluster, at night."""
    refuse_local_paths(config, path)
    settings = config.kubernetes
    if not settings.image or not re.search(r"[^/](:[\w.-]+|@sha256:[0-9a-f]{64})$", settings.image):
        raise ConfigError(
            f"{path}: kubernetes.image: expected the image of the Dockerfile with a tag or digest, such as photos/nightshift:2026-11-27 "
            f"(it is {settings.image!r}): without one every night may get another"
        )
    missing = sorted(set(re.findall(r"\$\{(\w+)\}", text)) - {"date"} - set(settings.environment))
    if missing and not settings.env_secret:
        raise ConfigError(
            f"{path}: {', '.join(missing)}: the config names it as a variable, and the pods would not have it; give it in "
            "kubernetes.environment, or if it is secret in the Secret that kubernetes.env_secret names"
        )
    if config.label.deadline is None:
        say(
            f"note: without label.deadline a night that lasts longer than {settings.hours:g} hours is killed; the next one goes on"
        )


def manifests(config: Config, text: str, options: Any) -> list[Manifest]:
    """Return the documents in the order in which they are to be created."""
    settings, name, ray = config.kubernetes, name_of(config.dataset), str(library_versions(["ray"])["ray"])
    words = ["python", "-m", "jobs", options.job, f"{FOLDER}/{CONFIG}", "--set", "cluster.address=auto", "--json"]
    words += [word for override in options.overrides for word in ("--set", override)]
    entrypoint = shlex.join(words)
    if options.cronjob:
        created = rendered(ray_job(name, settings, entrypoint, ray, generate=True))
        return [config_map(name, settings, text, {"rayjob.json": created}), *cron_job(name, settings)]
    kind = ray_job if options.once else ray_cron_job
    return [config_map(name, settings, text), kind(name, settings, entrypoint, ray)]
