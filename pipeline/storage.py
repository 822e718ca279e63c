"""Files and object stores behind one small protocol: list, read one version, write whole, create once.

A name is written whole or not at all, and `create` has exactly one winner on every store; commits are built on these two.
"""

import errno
import io
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from pipeline.errors import AlreadyExistsError, ConfigError, NotFoundError, StorageError
from pipeline.refusals import BRIEF, changed, file_error, printable, vanished
from pipeline.retrying import Patience, retried
from pipeline.settings import StorageSettings

Result = TypeVar("Result")

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*")
OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https", "memory")


@dataclass(frozen=True, slots=True)  # an input may have millions
class Entry:
    """One stored object: path relative to its storage, and what identifies its present content.

    `version` is the etag on object stores and the modification time in nanoseconds (hex) on file systems. `modified_at`
    is by the store's clock, and never part of what a file is.
    """

    path: str
    size_bytes: int
    version: str
    modified_at: datetime | None = field(default=None, compare=False)

    @property
    def identity(self) -> tuple[str, int, str]:
        """Path, size and version: another identity is another file."""
        return self.path, self.size_bytes, self.version


class Storage(Protocol):
    """A folder of objects, wherever it is. Paths are relative, with forward slashes.

    Every operation is tried again while the store cannot answer, and raises TransientError when it still cannot after
    `storage.max_retries` or `storage.retry_s`.
    """

    url: str

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield everything below the folder `prefix`, recursively; nothing when it does not exist."""

    def stat(self, path: str) -> Entry:
        """Describe one object; NotFoundError without it."""

    def read(self, path: str, version: str | None = None) -> bytes:
        """Read a whole object; SourceChangedError when it is gone or not `version` (any, when None)."""

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """Open for random reads of one version; SourceChangedError as in `read`, and in reads after a change."""

    def write(self, path: str, data: bytes) -> Entry:
        """Replace an object atomically and durably; return it as a listing shows it until someone else writes it."""

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


def patience_of(settings: StorageSettings) -> Patience:
    """Return how long one operation is tried."""
    return Patience(settings.max_retries, settings.retry_s)


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
        return FileStorage(absolute_url(url), patience_of(settings))
    if scheme not in OBJECT_SCHEMES:
        known = ", ".join(f"{name}://" for name in OBJECT_SCHEMES)
        raise ConfigError(
            f"unknown storage scheme {scheme}:// in {printable(url)}; expected a local path or one of {known}"
        )
    from pipeline.objectstore import ObjectStorage

    return ObjectStorage(url, settings)


class FileStorage:
    """A folder of a POSIX file system."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url = url
        self._root, self._patience = Path(url), patience or patience_of(StorageSettings())

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Walk in the order of paths; dot names are skipped, links are followed, but not round in a circle."""
        yield from self._walk(self._root / prefix, frozenset())

    def _walk(self, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
        """Walk one folder; `above` are the folders that it lies in: a link back to one of them is a cycle."""
        inode = self._ask(folder, lambda: _stat(folder))
        if not inode or not stat.S_ISDIR(inode.st_mode) or (inode.st_dev, inode.st_ino) in above:
            return
        above |= {(inode.st_dev, inode.st_ino)}
        children = self._ask(folder, lambda: sorted(os.scandir(folder), key=_place))
        for child in children:
            found = None if child.name.startswith(".") else self._ask(Path(child.path), partial(_stat, child))
            if found and stat.S_ISDIR(found.st_mode):
                yield from self._walk(Path(child.path), above)
            elif found and stat.S_ISREG(found.st_mode):
                yield _entry(Path(child.path).relative_to(self._root).as_posix(), found)

    def stat(self, path: str) -> Entry:
        """See Storage."""
        location = self._root / path
        found = self._ask(location, location.stat)
        _check_regular(location, found)
        return _entry(path, found)

    def read(self, path: str, version: str | None = None) -> bytes:
        """See Storage."""
        with self.open(path, version) as file:
            return file.read()

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """See Storage."""
        location = self._root / path
        try:  # not blocking: a named pipe's writer may never come
            descriptor = self._ask(location, lambda: os.open(location, os.O_RDONLY | os.O_NONBLOCK))
        except NotFoundError as error:
            raise (error if version is None else vanished(str(location))) from error
        try:
            found = os.fstat(descriptor)
            _check_regular(location, found)
            if version is not None and _entry(path, found).version != version:
                raise changed(str(location))
        except StorageError:
            os.close(descriptor)
            raise
        return cast(BinaryIO, io.BufferedReader(_VersionReader(descriptor, found, location, self._ask), 1 << 16))

    def write(self, path: str, data: bytes) -> Entry:
        """Write under a temporary name, fsync, rename."""
        return self._ask(self._root / path, lambda: self._write(path, data))

    def _write(self, path: str, data: bytes) -> Entry:
        temporary = self._write_temporary(path, data)
        found = temporary.stat()  # which the rename keeps; what has the name after it may be another writer's
        temporary.replace(self._root / path)
        _sync_folder(temporary.parent)
        return _entry(path, found)

    def create(self, path: str, data: bytes) -> None:
        """Write under a temporary name, then hard-link it: the link fails when the name is taken."""
        self._ask(self._root / path, lambda: self._create(path, data))

    def _create(self, path: str, data: bytes) -> None:
        target, temporary = self._root / path, self._write_temporary(path, data)
        try:
            target.hardlink_to(temporary)
        except FileExistsError as error:
            # A network file system may have made the link, lost the answer and been asked again.
            if not target.samefile(temporary):
                raise AlreadyExistsError(f"{target} exists already") from error
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
        self._ask(self._root / path, lambda: (self._root / path).unlink(missing_ok=True))

    def _ask(self, location: Path, action: Callable[[], Result]) -> Result:
        """Return what the operating system answers, asked again where a moment may help; its errors become ours."""

        def attempt() -> Result:
            try:
                return action()
            except OSError as error:
                if error.errno in BRIEF:
                    raise file_error(str(location), error) from error
                raise

        try:
            return retried(attempt, self._patience)
        except OSError as error:
            raise file_error(str(location), error) from error


class _VersionReader(io.FileIO):
    """An open file that is read as it was when it was opened, or not at all: nothing else sees a file rewritten in place.

    The check stands after each read: what was read before the file changed is what was planned.
    """

    def __init__(self, descriptor: int, found: os.stat_result, location: Path, ask: Callable[..., Any]) -> None:
        super().__init__(descriptor)
        self._found, self._location, self._ask = found, location, ask

    def readinto(self, buffer: Any) -> int:
        count: int = self._checked(lambda: io.FileIO.readinto(self, buffer))
        return count

    def readall(self) -> bytes:
        data: bytes = self._checked(lambda: io.FileIO.readall(self))
        return data

    def _checked(self, read: Callable[[], Any]) -> Any:
        result = self._ask(self._location, read)
        now = os.fstat(self.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise changed(str(self._location))
        return result


def _entry(path: str, found: os.stat_result) -> Entry:
    modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
    return Entry(path, found.st_size, f"{found.st_mtime_ns:x}", modified_at)


def _stat(child: "os.DirEntry[str] | Path") -> os.stat_result | None:
    """Describe what a name leads to; None for a file deleted since its folder was read, and for links to nothing."""
    try:
        return child.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    return None


def _place(child: "os.DirEntry[str]") -> str:
    """Return what sorts the children of a folder as the paths of all that lies below them sort."""
    try:
        return f"{child.name}/" if child.is_dir() else child.name
    except OSError:  # a link round in a circle
        return child.name


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
