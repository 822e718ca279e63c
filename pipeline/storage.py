"""Files and object stores behind one small protocol: list, read one version, write whole, create once.

A name is written whole or not at all, and `create` has exactly one winner on every store; commits are built on these two.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from pipeline.errors import AlreadyExistsError, ConfigError, NotFoundError, SourceChangedError, StorageError
from pipeline.settings import StorageSettings

OBJECT_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "memory")


@dataclass(frozen=True)
class Entry:
    """One stored object: path relative to its storage, and what identifies its present content.

    `version` is the etag on object stores and the modification time in nanoseconds (hex) on file systems.
    """

    path: str
    size_bytes: int
    version: str

    @property
    def identity(self) -> tuple[str, int, str]:
        """Path, size and version: another identity is another file."""
        return self.path, self.size_bytes, self.version


class Storage(Protocol):
    """A folder of objects, wherever it is. Paths are relative, with forward slashes."""

    url: str

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield everything below the folder `prefix`, recursively; nothing when it does not exist."""

    def stat(self, path: str) -> Entry:
        """Describe one object; NotFoundError without it."""

    def read(self, path: str, version: str | None = None) -> bytes:
        """Read a whole object; SourceChangedError when it is not `version` (any, when None)."""

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """Open for random reads; SourceChangedError as in `read`."""

    def write(self, path: str, data: bytes) -> None:
        """Replace an object atomically and durably."""

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not exist yet; AlreadyExistsError for all but one of several writers."""

    def delete(self, path: str) -> None:
        """Remove an object; no error when it is gone already."""


def join(url: str, path: str) -> str:
    """Return the full location of `path` below `url`."""
    return f"{url.rstrip('/')}/{path.lstrip('/')}" if path else url


def scheme_of(url: str) -> str:
    """Return the URL's scheme, `file` for a plain path."""
    scheme = urlsplit(url).scheme
    return scheme if len(scheme) > 1 else "file"  # one letter is a Windows drive


def absolute_url(url: str) -> str:
    """Make a relative path absolute, so that it means the same in every process; URLs stay as they are."""
    if scheme_of(url) != "file":
        return url.rstrip("/")
    return str(Path(url.removeprefix("file://")).expanduser().absolute())


@lru_cache(maxsize=64)
def open_storage(url: str, settings: StorageSettings) -> Storage:
    """Open the folder at `url`. Nothing is contacted yet; one client per process and folder.

    Raises
    ------
    ConfigError
        When the scheme is none of ours.
    """
    scheme = scheme_of(url)
    if scheme == "file":
        return FileStorage(absolute_url(url))
    if scheme not in OBJECT_SCHEMES:
        known = ", ".join(f"{name}://" for name in OBJECT_SCHEMES)
        raise ConfigError(f"unknown storage scheme {scheme}:// in {url}; expected a local path or one of {known}")
    from pipeline.objectstore import ObjectStorage

    return ObjectStorage(url, settings)


class FileStorage:
    """A folder of a POSIX file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(url)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Walk in name order; dot names are skipped, links are followed, a cycle of links is entered once."""
        yield from self._walk(self._root / prefix, set())

    def _walk(self, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Entry]:
        with _translated(folder):
            try:
                inode = folder.stat()
            except FileNotFoundError:
                return
            if (inode.st_dev, inode.st_ino) in seen:
                return
            seen.add((inode.st_dev, inode.st_ino))
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        for child in children:
            if child.name.startswith("."):
                continue
            if child.is_dir():
                yield from self._walk(Path(child.path), seen)
            elif child.is_file():
                yield _entry(Path(child.path).relative_to(self._root).as_posix(), child.stat())

    def stat(self, path: str) -> Entry:
        """See Storage."""
        with _translated(self._root / path):
            return _entry(path, (self._root / path).stat())

    def read(self, path: str, version: str | None = None) -> bytes:
        """See Storage."""
        with self.open(path, version) as file, _translated(self._root / path):
            return file.read()

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """See Storage."""
        with _translated(self._root / path):
            file = (self._root / path).open("rb")
            found = _entry(path, os.fstat(file.fileno()))
        if version is not None and found.version != version:
            file.close()
            raise changed(join(self.url, path))
        return file

    def write(self, path: str, data: bytes) -> None:
        """Write under a temporary name, fsync, rename."""
        with _translated(self._root / path):
            temporary = self._write_temporary(path, data)
            temporary.replace(self._root / path)
            _sync_folder(temporary.parent)

    def create(self, path: str, data: bytes) -> None:
        """Write under a temporary name, then hard-link it: the link fails when the name is taken."""
        with _translated(self._root / path):
            temporary = self._write_temporary(path, data)
            try:
                (self._root / path).hardlink_to(temporary)
            finally:
                temporary.unlink()
            _sync_folder(temporary.parent)

    def _write_temporary(self, path: str, data: bytes) -> Path:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def delete(self, path: str) -> None:
        """See Storage."""
        with _translated(self._root / path):
            (self._root / path).unlink(missing_ok=True)


def changed(location: str) -> SourceChangedError:
    """Return the error for an object that is not the planned version."""
    return SourceChangedError(
        f"{location} changed since it was planned; `nightshift plan` or `nightly` takes the new version"
    )


def _entry(path: str, stat: os.stat_result) -> Entry:
    return Entry(path, stat.st_size, f"{stat.st_mtime_ns:x}")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive power loss, where the system lets a folder be opened."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _translated:
    """Turn the operating system's errors into ours, with the path in the message."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileExistsError):
            raise AlreadyExistsError(f"{self.path} exists already") from error
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{self.path} does not exist") from error
        if isinstance(error, OSError):
            raise StorageError(
                f"{self.path}: {error.strerror}; check the path, its permissions and the free space"
            ) from error
