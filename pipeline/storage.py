"""Files and object stores behind one small protocol: list, read one version, write whole, create once.

A name is written whole or not at all, and `create` has exactly one winner on every store; commits are built on these two.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConfigError,
    NightshiftError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from pipeline.settings import StorageSettings

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*")
# What may pass: full disks, too many open files, network file systems that lose their server for a while.
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "EDQUOT", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "ESTALE", "ETIMEDOUT",
        "EREMOTEIO", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENOLINK",
    )
    if hasattr(errno, name)
)  # fmt: skip
OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https", "memory")


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
    scheme, separator, _ = url.partition("://")  # a colon alone may stand in a file's name
    return scheme.lower() if separator and _SCHEME.fullmatch(scheme) else "file"


def absolute_url(url: str) -> str:
    """Make a relative path absolute, so that it means the same in every process; URLs stay as they are."""
    if scheme_of(url) != "file":
        return url if url.endswith("://") else url.rstrip("/")
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
        """Walk in name order; dot names are skipped, links are followed, but not round in a circle."""
        yield from self._walk(self._root / prefix, frozenset())

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Walk one folder; `above` are the folders that it lies in: a link back to one of them is a cycle."""
        with _translated(folder):
            try:
                inode = folder.stat()
            except (FileNotFoundError, NotADirectoryError):
                return
            if not stat.S_ISDIR(inode.st_mode) or (inode.st_dev, inode.st_ino) in above:
                return
            above |= {(inode.st_dev, inode.st_ino)}
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        for child in children:
            found = None if child.name.startswith(".") else _stat(child)
            if found and stat.S_ISDIR(found.st_mode):
                yield from self._walk(Path(child.path), above)
            elif found and stat.S_ISREG(found.st_mode):
                yield _entry(Path(child.path).relative_to(self._root).as_posix(), found)

    def stat(self, path: str) -> Entry:
        """See Storage."""
        with _translated(self._root / path):
            found = (self._root / path).stat()
        _check_regular(self._root / path, found)
        return _entry(path, found)

    def read(self, path: str, version: str | None = None) -> bytes:
        """See Storage."""
        with self.open(path, version) as file, _translated(self._root / path):
            return file.read()

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """See Storage."""
        location = self._root / path
        with _translated(location):
            descriptor = os.open(location, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe's writer may never come
        try:
            found = os.fstat(descriptor)
            _check_regular(location, found)
            if version is not None and _entry(path, found).version != version:
                raise changed(join(self.url, path))
        except StorageError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

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
            except FileExistsError as error:
                raise AlreadyExistsError(f"{self._root / path} exists already") from error
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


def _entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, f"{found.st_mtime_ns:x}")


def _stat(child: os.DirEntry[str]) -> os.stat_result | None:
    """Describe what a name leads to; None for a file deleted since its folder was read, and for links to nothing."""
    with _translated(Path(child.path)):
        try:
            return child.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
    return None


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotFoundError(f"{path} is no file (a folder, pipe or device); expected a file")


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
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{self.path} does not exist") from error
        if isinstance(error, OSError):
            raise _kind_of(error)(
                f"{self.path}: {error.strerror}; check the path, its permissions and the free space"
            ) from error


def _kind_of(error: OSError) -> type[NightshiftError]:
    if isinstance(error, PermissionError):
        return AccessDeniedError
    return TransientError if error.errno in PASSING else StorageError
