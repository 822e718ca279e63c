"""The image and what pins it: no Docker here, so the Dockerfile is read, and its constraints are resolved for real."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PINS = {
    pin.name: str(pin.specifier).removeprefix("==")
    for pin in map(Requirement, CONSTRAINTS.splitlines())
    if pin.marker is None or pin.marker.evaluate()
}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned_as_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for name, group in project["optional-dependencies"].items() if name != "bench" for each in group]
    for requirement in [*project["dependencies"], *extras]:
        name, exact = name_of(requirement), re.search(r"==([\w.]+)", requirement)
        assert name in PINS, f"{name} is missing: make constraints"
        assert not exact or PINS[name] == exact[1], f"constraints.txt pins {name} {PINS[name]}: make constraints"


def test_this_environment_is_the_pinned_one():
    from importlib.metadata import PackageNotFoundError, version

    compared = 0
    for name, pinned in PINS.items():
        try:
            assert version(name) == pinned, name
            compared += 1
        except PackageNotFoundError:
            continue  # of another platform
    assert compared > 100


def test_constraints_name_no_host():
    assert not re.search(r"https?:|--index|@", CONSTRAINTS)


def test_a_submitting_machine_needs_only_what_is_pinned_and_no_torch():
    lines = (ROOT / "requirements-submit.txt").read_text().splitlines()
    names = {name_of(line) for line in lines if line and not line.startswith("#")}
    assert names <= set(PINS)
    assert not names & {"torch", "torchvision", "openvino", "pillow"}


@pytest.mark.parametrize(
    "wanted",
    [r"^FROM python:\$\{PYTHON\}$", r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", r"^USER 1000$", r"--only-binary :all:",
     r"--constraint constraints\.txt", r"^ARG TORCH_INDEX=$"],
)  # fmt: skip
def test_the_image_is_pinned_unprivileged_and_can_be_for_cpus_or_gpus(wanted):
    assert re.search(wanted, DOCKERFILE, re.MULTILINE)


def test_no_compiler_comes_into_the_image():
    assert not re.search(r"build-essential|gcc|g\+\+|clang|-dev\b", DOCKERFILE)
    after = DOCKERFILE[DOCKERFILE.index("USER 1000") :]
    assert "RUN" not in after


def test_the_image_takes_what_the_build_context_lets_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == allowed
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^{re.escape(name)}(/|$)", tracked, re.MULTILINE) for name in allowed)
