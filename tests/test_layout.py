"""The architecture, executable: who may import whom, how large things may get, and that configs and docs are true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Dependency order: each module imports only what stands before it.
LOWER = [
    "errors",
    "deadlines",
    "section",
    "settings",
    "judgesettings",
    "checksettings",
    "kubesettings",
    "kuberay",
    "presets",
    "augmentsettings",
    "trainsettings",
    "tunesettings",
    "counts",
    "retrying",
    "refusals",
    "processors",
    "libraries",
    "allocator",
    "storage",
    "answers",
    "oddkeys",
    "objectstore",
    "storecheck",
    "planned",
    "documents",
    "layout",
    "tables",
    "schema",
    "partitions",
    "predicates",
    "shards",
    "selection",
    "plans",
    "lease",
    "sources",
    "columns",
    "locations",
    "splits",
    "pages",
    "rowgroups",
    "rows",
    "judged",
    "classes",
    "truths",
    "intervals",
    "precisions",
    "thresholds",
    "temperature",
    "weightsource",
    "registry",
    "looks",
    "slices",
    "promotion",
    "rollup",
    "ledger",
    "nights",
    "holds",
    "duplicates",
    "compaction",
    "publication",
    "review",
    "deltaschema",
    "deltatable",
    "coverage",
    "cleaning",
    "lanes",
    "balance",
    "patience",
    "budget",
    "tasks",
    "overfitting",
    "examples",
    "folds",
    "trials",
    "page",
]
UPPER = [
    "images",
    "transforms",
    "fastjpeg",
    "distortions",
    "augmentation",
    "batches",
    "results",
    "networks",
    "heads",
    "zoo",
    "convolutions",
    "sizes",
    "logits",
    "manifest",
    "bundle",
    "published",
    "pretrained",
    "cost",
    "catalog",
    "scatter",
    "adoption",
    "engine",
    "torchengine",
    "openvinoengine",
    "agreement",
    "enginecache",
    "calibration",
    "workshop",
    "engines",
    "pace",
    "labelling",
    "sureness",
    "metrics",
    "labelsums",
    "evaluation",
    "corruptions",
    "robustsums",
    "probing",
    "features",
    "loading",
    "checkpoints",
    "pulse",
    "prefetch",
    "seat",
    "stops",
    "trainstate",
    "schedules",
    "optimizers",
    "losses",
    "mixing",
    "sanity",
    "stepping",
    "averages",
    "keeping",
    "validation",
    "training",
    "curves",
    "fitting",
    "rehearsal",
    "gallery",
    "digits",
]
CLUSTER = [
    "resources",
    "checkout",
    "headwatch",
    "session",
    "createjob",
    "dashboard",
    "submission",
    "stall",
    "retries",
    "nodes",
    "dispatch",
    "workers",
    "footers",
    "early",
    "planner",
    "labeller",
    "workergroup",
    "slowranks",
    "trainer",
    "rehearser",
    "tuner",
]
JOBS = [
    "commandline",
    "config",
    "console",
    "tally",
    "closing",
    "notify",
    "runs",
    "plan",
    "survey",
    "preparation",
    "crossing",
    "train",
    "tune",
    "figures",
    "evaluate",
    "robustness",
    "promote",
    "rollback",
    "limits",
    "overlap",
    "shift",
    "gate",
    "settle",
    "label",
    "approve",
    "reject",
    "estimate",
    "history",
    "report",
    "ahead",
    "nightly",
    "clean",
    "photo",
    "labels",
    "status",
    "parcel",
    "following",
    "submit",
    "submitted",
    "kube",
    "roundcall",
    "doctor",
    "models",
    "demo",
    "cli",
    "__main__",
]
ORDER = {"pipeline": LOWER + UPPER, "cluster": CLUSTER, "jobs": JOBS}
# Modules that two others need at first use only, so the import stands inside a function.
LATE = {("storage", "objectstore")}


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).glob("*.py") if path.stem != "__init__")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ALL = [(package, path) for package in ORDER for path in sources(package)]
IDS = [f"{package}.{path.stem}" for package, path in ALL]


def test_every_module_has_its_place_in_the_order():
    for package, order in ORDER.items():
        assert {path.stem for path in sources(package)} == set(order)


@pytest.mark.parametrize(("package", "path"), ALL, ids=IDS)
def test_arrows_point_only_down(package, path):
    names = [f"{p}.{stem}" for p, order in ORDER.items() for stem in order]
    own = names.index(f"{package}.{path.stem}")
    for name in imports(path):
        if name in names and (path.stem, name.split(".")[1]) not in LATE:
            assert names.index(name) < own, f"{package}/{path.name} imports {name}, which stands after it"


@pytest.mark.parametrize(("package", "path"), ALL, ids=IDS)
def test_heavy_libraries_stay_where_they_belong(package, path):
    roots = {name.split(".")[0] for name in imports(path)}
    top_level = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    if package != "cluster":
        assert not roots & {"ray"}, "ray is imported in cluster/ only"
    if package == "pipeline" and path.stem in LOWER:
        assert not roots & {"torch", "torchvision", "PIL"}
    if package == "jobs":
        assert not top_level & {"torch", "torchvision", "ray"}


def test_stems_are_unique_and_no_stdlib_names():
    stems = [path.stem for _, path in ALL if path.stem != "__main__"]
    assert len(stems) == len(set(stems))
    assert not set(stems) & set(sys.stdlib_module_names)


@pytest.mark.parametrize(("package", "path"), ALL, ids=IDS)
def test_modules_and_functions_stay_small(package, path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name} is too long"


@pytest.mark.parametrize(("package", "path"), ALL, ids=IDS)
def test_every_module_says_what_it_is_for(package, path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def loaded_after(statement: str, *modules: str) -> list[str]:
    code = f"{statement}; import sys; print([m for m in {modules!r} if m in sys.modules])"
    return ast.literal_eval(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    )


def test_the_command_line_parses_without_torch_or_ray():
    assert (
        loaded_after(
            "import jobs.cli, jobs.commandline; jobs.commandline.build_parser()", "torch", "ray", "pydantic", "pyarrow"
        )
        == []
    )


def test_planning_and_submitting_need_no_torch():
    statement = "import cluster.planner, cluster.labeller, pipeline.publication, jobs.label, jobs.train, jobs.nightly"
    assert loaded_after(statement, "torch", "torchvision", "PIL") == []


def test_decoding_needs_no_torch():
    assert loaded_after("import pipeline.batches, pipeline.results", "torch", "torchvision", "ray") == []


def test_pipeline_needs_no_ray():
    statement = "import pipeline.fitting, pipeline.labelling, pipeline.evaluation, pipeline.gallery"
    assert loaded_after(statement, "ray") == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_valid(path, monkeypatch):
    from jobs.config import read_config

    monkeypatch.setenv("NIGHTSHIFT_BUCKET", "photos")
    assert read_config(str(path)).dataset


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def commands_in_documents() -> list[str]:
    found = []
    for path in documents():
        for line in re.findall(r"^(?:\s{4,}|[$] )?(nightshift [^#\n`]+)", path.read_text(), re.MULTILINE):
            found.append(re.split(r"\s{2,}|&&|\||>", line.strip())[0].strip())
    return sorted(set(found))


def test_the_readme_shows_commands():
    assert len(commands_in_documents()) > 5


@pytest.mark.parametrize("command", commands_in_documents())
def test_commands_in_documents_parse(command):
    from jobs.commandline import parse

    options = parse(command.split()[1:])
    config = getattr(options, "config", None)
    assert config is None or config == "CONFIG" or (ROOT / config).exists()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


def test_no_document_names_a_registry_host():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in tracked if name.endswith("uv.lock")]
