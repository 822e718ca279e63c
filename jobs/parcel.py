"""What `submit` sends to the cluster: nightshift's three packages, the resolved config, and what the user names. Nothing else."""

import datetime
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from cluster.checkout import PACKAGES, code_root
from jobs.config import Config, read_config
from pipeline.errors import ConfigError, UsageError
from pipeline.settings import ClusterSettings

CONFIG = "submitted.yaml"
# What stays here, by its name. Hidden files hold environments, histories and secrets.
EXCLUDES = (".*", "__pycache__", "*.pyc", "*.pem", "*.key")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry: the same files make the same package, which Ray then sends once


@dataclass(frozen=True)
class Parcel:
    """A zip file, and what it holds: sizes in bytes by path."""

    path: Path
    sizes: dict[str, int]

    @property
    def summary(self) -> str:
        """How much it is."""
        return f"{len(self.sizes)} files, {sum(self.sizes.values()) / 1e6:.1f} MB ({self.path.stat().st_size / 1e6:.1f} MB zipped)"


def pack(config: Config | None, along: Sequence[str], to: Path) -> Parcel:
    """Write the package as a zip file.

    Parameters
    ----------
    along : Sequence[str]
        Files and folders of the user's own; each stands at the top, where `import` finds it.

    Raises
    ------
    UsageError
        When something is missing, stands twice, or all of it is more than `cluster.max_upload_mb`.
    """
    try:
        files = _code()
        files |= _along(along, {Path(name).parts[0] for name in files})
        sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
        _check_size(sizes, (config.cluster if config else ClusterSettings()).max_upload_mb)
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sizes:
                _add(archive, name, files[name].read_bytes())
            if config:
                document = _document(config, to.with_name(CONFIG))
                sizes[CONFIG] = len(document)
                _add(archive, CONFIG, document)
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be sent to the cluster ({error.strerror})") from error
    return Parcel(to, sizes)


def _document(config: Config, at: Path) -> bytes:
    """Return the config as it will be read there, which is tried here: every value must arrive as what it is."""
    at.write_text(yaml.safe_dump(_plain(config.model_dump()), sort_keys=False))
    try:
        same = read_config(str(at)) == config
    except ConfigError as error:
        raise UsageError(f"the config cannot be sent as it is: {error}") from error
    if not same:
        raise UsageError("the config cannot be sent as it is: a value in it would be another one when it is read again")
    return at.read_bytes()


def _plain(value: Any) -> Any:
    """Return a value of the kinds that YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float | datetime.date) else str(value)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, content)


def _code() -> dict[str, Path]:
    """Return the files of this nightshift."""
    root = Path(code_root())
    return {str(path.relative_to(root)): path for name in PACKAGES for path in _files(root / name)}


def _along(paths: Sequence[str], taken: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for given in paths:
        top = Path(given).resolve()
        if not top.exists():
            raise UsageError(f"--with {given}: does not exist; give a module or a folder of your own")
        if top.name in taken:
            raise UsageError(f"--with {given}: there is a {top.name} already in what is sent; rename it")
        taken.add(top.name)
        found |= {str(path.relative_to(top.parent)): path for path in (_files(top) if top.is_dir() else [top])}
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in EXCLUDES):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _check_size(sizes: dict[str, int], most_mb: float) -> None:
    total = sum(sizes.values()) / 1e6
    if total > most_mb:
        tops: dict[str, int] = {}
        for name, size in sizes.items():
            tops[Path(name).parts[0]] = tops.get(Path(name).parts[0], 0) + size
        largest = sorted(tops, key=lambda name: tops[name], reverse=True)[:3]
        listed = ", ".join(f"{name} {tops[name] / 1e6:.1f} MB" for name in largest)
        raise UsageError(
            f"{total:.1f} MB would be sent to the cluster, and cluster.max_upload_mb is {most_mb:g} (largest: {listed}); leave data "
            f"out of what --with names, or raise it. Never sent: {', '.join(EXCLUDES)}"
        )
