"""Kubernetes manifests of a night: plain documents in, plain documents out. Nothing here talks to a cluster.

Kinds and fields are those of KubeRay's CRDs as of August 2026 (RayJob, RayCronJob: ray.io/v1) and of Kubernetes 1.37.
"""

import json
import math
import re
from typing import Any

from pipeline.kubesettings import GroupSettings, KubernetesSettings

Manifest = dict[str, Any]
FOLDER, CONFIG = "/etc/nightshift", "night.yaml"
LABELS = {"app.kubernetes.io/name": "nightshift", "app.kubernetes.io/managed-by": "nightshift"}
KEPT_S = 3600  # a finished job's pods, to be looked at
TRIES = 1  # more of the job, with a cluster of its own: it does what is missing
LATE_S = 3600  # a night that could not start for so long waits for the next one
NOT_ROOT = {
    "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
NO_MORE_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def name_of(dataset: str) -> str:
    """Return the name of a data set's objects: what Kubernetes takes of it."""
    plain = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")[:30].strip("-")
    return f"nightshift-{plain or 'night'}"


def config_map(name: str, settings: KubernetesSettings, config: str, others: dict[str, str] | None = None) -> Manifest:
    """Return the ConfigMap that holds the config as it is written."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(name, settings),
        "data": {CONFIG: config, **(others or {})},
    }  # fmt: skip


def ray_job(
    name: str, settings: KubernetesSettings, entrypoint: str, ray_version: str, generate: bool = False
) -> Manifest:
    """Return the RayJob of one night; with `generate` Kubernetes finds it a name of its own."""
    metadata = _metadata(name, settings)
    if generate:
        metadata["generateName"] = f"{metadata.pop('name')}-"
    return {
        "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata,
        "spec": _job(name, settings, entrypoint, ray_version),
    }  # fmt: skip


def ray_cron_job(name: str, settings: KubernetesSettings, entrypoint: str, ray_version: str) -> Manifest:
    """Return the schedule as KubeRay knows it (operator 1.6 or newer)."""
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": _metadata(name, settings),
        "spec": {
            "schedule": settings.schedule, "timeZone": settings.time_zone, "suspend": False,
            "jobTemplate": _job(name, settings, entrypoint, ray_version),
        },
    }  # fmt: skip


def cron_job(name: str, settings: KubernetesSettings) -> list[Manifest]:
    """Return a plain CronJob that creates the RayJob in `rayjob.json` of the ConfigMap, and the right to do only that."""
    account = f"{name}-creator"
    rule = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    bound = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}
    container = {
        "name": "create", "image": settings.image,
        "command": ["python", "-m", "cluster.createjob", f"{FOLDER}/rayjob.json"],
        "resources": _resources(1, 1, request_cpu="100m"), "securityContext": NO_MORE_RIGHTS, "volumeMounts": [_mount()],
    }  # fmt: skip
    pod = {
        "serviceAccountName": account, "restartPolicy": "Never", "securityContext": NOT_ROOT, "containers": [container],
        "volumes": [_volume(name)],
    }  # fmt: skip
    schedule = {
        "schedule": settings.schedule, "timeZone": settings.time_zone, "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": LATE_S, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": {"backoffLimit": 2, "activeDeadlineSeconds": 600, "template": {"spec": pod}}},
    }  # fmt: skip
    metadata, ours = _metadata(name, settings), _metadata(account, settings)
    rights = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": ours},
        {"apiVersion": rights, "kind": "Role", "metadata": ours, "rules": [rule]},
        {"apiVersion": rights, "kind": "RoleBinding", "metadata": ours, "roleRef": bound, "subjects": [subject]},
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": schedule},
    ]


def rendered(job: Manifest) -> str:
    """Return a RayJob as `cluster.createjob` sends it."""
    return json.dumps(job, indent=1)


def _metadata(name: str, settings: KubernetesSettings) -> Manifest:
    return {"name": name, "namespace": settings.namespace, "labels": dict(LABELS)}


def _job(name: str, settings: KubernetesSettings, entrypoint: str, ray_version: str) -> Manifest:
    submitter = {
        "name": "ray-job-submitter", "image": settings.image, "resources": _resources(1, 1, request_cpu="200m"),
        "securityContext": NO_MORE_RIGHTS,
    }  # fmt: skip
    return {
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_S,
        "activeDeadlineSeconds": math.ceil(settings.hours * 3600),
        "backoffLimit": TRIES,
        "submitterPodTemplate": {
            "spec": {"restartPolicy": "Never", "securityContext": NOT_ROOT, "containers": [submitter]}
        },
        "rayClusterSpec": _cluster(name, settings, ray_version),
    }


def _cluster(name: str, settings: KubernetesSettings, ray_version: str) -> Manifest:
    secret = {"secretName": settings.token_secret} if settings.token_secret else {}
    return {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token", **secret},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 120, "securityContext": NO_MORE_RIGHTS,
            "resources": _resources(1, 1, request_cpu="200m"),
        },
        "headGroupSpec": {
            # No work on the head: what runs there dies with all the rest when memory runs out.
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod(name, settings, "ray-head", settings.head_cpus, settings.head_memory_gb, 0, {}),
        },
        "workerGroupSpecs": _groups(name, settings),
    }  # fmt: skip


def _groups(name: str, settings: KubernetesSettings) -> list[Manifest]:
    """Return the groups of workers: of each kind one on spot nodes, which comes first, and one on any other."""
    found = []
    for kind, group in (("gpu", settings.gpu_workers), ("cpu", settings.cpu_workers)):
        if group and settings.spot_selector:
            found.append(_group(name, settings, f"{kind}-spot", kind, group, settings.spot_selector, 10))
        if group:
            found.append(_group(name, settings, kind, kind, group, {}, 0))
    return found


def _group(
    name: str, settings: KubernetesSettings, called: str, kind: str, group: GroupSettings, selector: dict[str, str], priority: int
) -> Manifest:  # fmt: skip
    least = 0 if selector else group.min  # spot nodes may not be there
    return {
        "groupName": called,
        "labels": {"nightshift": kind},
        "priority": priority,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": group.max,
        "rayStartParams": {},
        "template": _pod(name, settings, "ray-worker", group.cpus, group.memory_gb, group.gpus, selector),
    }


def _pod(
    name: str, settings: KubernetesSettings, called: str, cpus: int, memory_gb: int, gpus: int, selector: dict[str, str]
) -> Manifest:  # fmt: skip
    container: Manifest = {
        "name": called, "image": settings.image, "resources": _resources(cpus, memory_gb, gpus),
        "securityContext": NO_MORE_RIGHTS, "volumeMounts": [_mount()],
        "env": [{"name": key, "value": value} for key, value in sorted(settings.environment.items())],
    }  # fmt: skip
    if settings.env_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.env_secret}}]
    spec: Manifest = {"securityContext": NOT_ROOT, "containers": [container], "volumes": [_volume(name)]}
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    tainted = [*selector, *(["nvidia.com/gpu"] if gpus else [])]
    if selector:
        spec["nodeSelector"] = dict(selector)
    if tainted:
        spec["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tainted]
    return {"metadata": {"labels": dict(LABELS)}, "spec": spec}


def _resources(cpus: int, memory_gb: int, gpus: int = 0, request_cpu: str | None = None) -> Manifest:
    limits: dict[str, str] = {
        "cpu": str(cpus),
        "memory": f"{memory_gb}Gi",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    return {"requests": {**limits, "cpu": request_cpu or str(cpus)}, "limits": limits}


def _mount() -> Manifest:
    return {"name": "config", "mountPath": FOLDER, "readOnly": True}


def _volume(name: str) -> Manifest:
    return {"name": "config", "configMap": {"name": name}}
