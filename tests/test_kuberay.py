"""Manifests against the real schemas: KubeRay's CRDs of shared/data, Kubernetes' own from kubernetes-validate."""

import copy
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import lacking

from jobs.cli import main
from pipeline.kuberay import name_of, ray_job
from pipeline.kubesettings import GroupSettings, KubernetesSettings

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "configs/kubernetes.yaml"
KUBERNETES = "1.37"
OPTIONS = {"raycronjob": [], "rayjob": ["--once"], "cronjob": ["--cronjob"]}


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    monkeypatch.setenv("NIGHTSHIFT_BUCKET", "photos")


@pytest.fixture(scope="module")
def crds(shared_data):
    """The schemas of KubeRay's kinds, closed: the API server drops what it does not know without a word."""
    found = {}
    for path in (shared_data / "schemas/kuberay").glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        version = next(each for each in document["spec"]["versions"] if each["name"] == "v1")
        found[document["spec"]["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    if set(found) != {"RayCluster", "RayJob", "RayCronJob"}:
        lacking("KubeRay's CRDs in shared/data/schemas/kuberay")
    return found


def closed(schema):
    """Return a schema that refuses unknown fields, as strict validation does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    return made


def check(document, crds):
    """Raise ValidationError for a document that its schema refuses."""
    if document["kind"] in crds:
        schema = copy.deepcopy(crds[document["kind"]])
        schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
        jsonschema.validate(document, schema)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def printed(capsys, *arguments):
    assert main(["manifest", "nightly", EXAMPLE, *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", OPTIONS)
def test_everything_that_is_printed_is_valid(capsys, crds, name):
    documents = list(yaml.safe_load_all(printed(capsys, *OPTIONS[name])))
    kinds = [document["kind"] for document in documents]
    assert (
        kinds
        == {
            "raycronjob": ["ConfigMap", "RayCronJob"],
            "rayjob": ["ConfigMap", "RayJob"],
            "cronjob": ["ConfigMap", "ServiceAccount", "Role", "RoleBinding", "CronJob"],
        }[name]
    )
    for document in documents:
        check(document, crds)
    if name == "cronjob":
        check(json.loads(documents[0]["data"]["rayjob.json"]), crds)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_examples_are_what_is_printed_today(capsys, name):
    assert (ROOT / f"configs/kubernetes/{name}.yaml").read_text() == printed(capsys, *OPTIONS[name])


def test_the_schemas_notice_what_is_wrong(capsys, crds):
    _, job = yaml.safe_load_all(printed(capsys, "--once"))
    for break_it in (
        lambda spec: spec.update(entryPoint="python"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="none"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"].update(nodeselector={}),
        lambda spec: spec.update(activeDeadlineSeconds="7h"),
    ):
        broken = copy.deepcopy(job)
        break_it(broken["spec"])
        with pytest.raises(jsonschema.ValidationError):
            check(broken, crds)
    *_, cron = yaml.safe_load_all(printed(capsys, "--cronjob"))
    cron["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(cron, crds)


def pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    workers = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    return [cluster["headGroupSpec"]["template"]["spec"], *workers, job["spec"]["submitterPodTemplate"]["spec"]]


def test_no_pod_is_root_or_may_become_it_and_all_ask_for_resources(capsys):
    _, job = yaml.safe_load_all(printed(capsys, "--once"))
    for pod in pods(job):
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 1000)
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            assert container["image"] == "photos/nightshift:2026-11-27"


def test_gpus_come_on_spot_nodes_first_and_on_others_when_there_are_none(capsys):
    _, job = yaml.safe_load_all(printed(capsys, "--once"))
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    found = {group["groupName"]: (group["priority"], group["template"]["spec"].get("nodeSelector")) for group in groups}
    spot = {"cloud.google.com/gke-spot": "true"}
    assert found == {"gpu-spot": (10, spot), "gpu": (0, None), "cpu-spot": (10, spot), "cpu": (0, None)}
    gpu = groups[0]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {each["key"] for each in gpu["tolerations"]} == {"cloud.google.com/gke-spot", "nvidia.com/gpu"}


def test_the_night_is_the_configs_own_with_its_times(capsys):
    config, cron = yaml.safe_load_all(printed(capsys, "--set", "label.top_k=3"))
    assert config["data"]["night.yaml"] == (ROOT / EXAMPLE).read_text(), "variables are resolved there"
    spec = cron["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 1 * * *", "Europe/Berlin")
    job = spec["jobTemplate"]
    assert job["activeDeadlineSeconds"] == 7 * 3600
    assert job["shutdownAfterJobFinishes"] is True
    assert job["entrypoint"] == (
        "python -m jobs nightly /etc/nightshift/night.yaml --set cluster.address=auto --json --set label.top_k=3"
    )
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_plain_schedule_forbids_overlap_and_may_create_jobs_only(capsys):
    _, _, role, _, cron = yaml.safe_load_all(printed(capsys, "--cronjob"))
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert (cron["spec"]["concurrencyPolicy"], cron["spec"]["timeZone"]) == ("Forbid", "Europe/Berlin")
    assert cron["spec"]["startingDeadlineSeconds"] > 0


def test_secrets_stand_there_by_name_only(capsys, monkeypatch):
    monkeypatch.setenv("NIGHTSHIFT_WEBHOOK", "https://hooks/planted")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    said = printed(capsys, "--cronjob", "--set", "notify.webhook_variable=NIGHTSHIFT_WEBHOOK", "--set",
                   "kubernetes.token_secret=ray-token")  # fmt: skip
    assert "planted" not in said
    assert "nightshift-env" in said
    job = json.loads(next(yaml.safe_load_all(said))["data"]["rayjob.json"])
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("kubernetes.schedule=61 1 * * *", "expected a cron expression of five fields, such as 0 1 * * * (Bad minute)"),
        ("kubernetes.schedule='@daily'", "expected a cron expression"),
        ("kubernetes.schedule=0 1 31 2 *", "expected a cron expression"),
        ("kubernetes.time_zone=Berlin", "expected a time zone by its name"),
        ("kubernetes.image=null", "kubernetes.image: expected the image of the Dockerfile with a tag or digest"),
        ("kubernetes.image=photos/nightshift", "without one every night may get another"),
        ("kubernetes.image=host:5000/nightshift", "without one every night may get another"),
        ("store=/mnt/store", "store: /mnt/store is a path of this machine"),
        ("kubernetes.env_secret=Not_A_Name", "kubernetes.env_secret"),
    ],
)
def test_what_would_fail_at_night_is_refused_now(capsys, change, words):
    assert main(["manifest", "nightly", EXAMPLE, "--set", change]) == 2
    assert words in capsys.readouterr().err


def test_a_variable_that_no_pod_would_have_is_refused(capsys):
    missing = ["--set", "kubernetes.environment={}", "--set", "kubernetes.env_secret=null"]
    assert main(["manifest", "nightly", EXAMPLE, *missing]) == 2
    assert "NIGHTSHIFT_BUCKET: the config names it as a variable" in capsys.readouterr().err


def test_a_night_without_a_deadline_of_its_own_is_pointed_out(capsys):
    assert main(["manifest", "nightly", EXAMPLE, "--set", "label.deadline=null"]) == 0
    assert "without label.deadline a night that lasts longer than 7 hours is killed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("photos", "nightshift-photos"), ("My Photos_2026", "nightshift-my-photos-2026"), ("***", "nightshift-night"),
     ("x" * 99, "nightshift-" + "x" * 30)],
)  # fmt: skip
def test_names_are_what_kubernetes_takes(dataset, expected):
    assert name_of(dataset) == expected


def test_a_cluster_of_cpus_alone_has_no_gpu_group():
    settings = KubernetesSettings(image="a:1", cpu_workers=GroupSettings(min=2))
    (group,) = ray_job("n", settings, "true", "2.60.0")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["minReplicas"], group["maxReplicas"]) == ("cpu", 2, 4)
    assert "nvidia.com/gpu" not in str(group)
