"""The same nightshift on driver and workers: two checkouts in one run would label by two programs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.errors import UsageError
from pipeline.libraries import library_versions

LIBRARIES = ("torch", "torchvision")
PACKAGES = ("jobs", "pipeline", "cluster")


def code_root() -> str:
    """Return where this process imports nightshift from."""
    return str(Path(pipeline.__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Program:
    """What a process labels with: where it imports nightshift from, and the versions of what decides about labels."""

    root: str
    versions: tuple[tuple[str, str | None], ...]


def program() -> Program:
    """Return this process's own."""
    return Program(code_root(), tuple(library_versions(LIBRARIES).items()))


def refuse_other(there: Program, where: str = "the workers") -> None:
    """Raise UsageError when a worker runs another program than this process: its labels would be another model's."""
    here = program()
    if _package(here.root) != _package(there.root):
        raise UsageError(
            f"{where} import nightshift from {there.root}, this process from {here.root}; start the command from {there.root}, "
            "or install this checkout on the cluster"
        )
    for (name, mine), (_, other) in zip(here.versions, there.versions, strict=True):
        if mine != other and mine is not None:  # who only drives may do without
            raise UsageError(
                f"{where}: {name} is {other or 'missing'} there and {mine} here, and no two versions label alike; run the same "
                "image on every node (docs/cluster.md). `nightshift doctor --address` shows which nodes differ"
            )


def _package(root: str) -> str:
    """Return what tells one checkout from another: of one that came with a submitted job its digest, wherever a node unpacks it."""
    name = Path(root).name
    return name if name.startswith("_ray_pkg_") else root


def code_digest() -> str:
    """Return 12 hex digits that tell this nightshift's code from any other."""
    root, sha = Path(code_root()), hashlib.sha256()
    for path in sorted(path for name in PACKAGES for path in (root / name).glob("*.py")):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]
