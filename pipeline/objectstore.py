"""S3, GCS, Azure, HTTP and memory as Storage, through obstore (Rust object_store).

Each request is made once and asked again by our own loop, which knows what a lost answer means. Only the pages of a
listing are asked again by obstore, which knows the page's token; what it leaves, we resume after the last name.
"""

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote

import obstore
from obstore import exceptions as failures
from obstore.store import MemoryStore, from_url

from pipeline.answers import RefusedForNowError, UnspellableKeyError, exhausted, translated
from pipeline.errors import AlreadyExistsError, ConfigError, NotFoundError, TransientError
from pipeline.oddkeys import names_in
from pipeline.refusals import changed, first_line, printable, vanished
from pipeline.retrying import FIRST_PAUSE_S, LONGEST_PAUSE_S, Trial, retried
from pipeline.settings import StorageSettings
from pipeline.storage import Entry, join, open_storage, patience_of, scheme_of

Result = TypeVar("Result")
PAGE = 1000  # entries that a listing hands over at once: the page of most stores
_memory: dict[str, MemoryStore] = {}


@lru_cache
def _slots(max_connections: int) -> threading.BoundedSemaphore:
    """Return the one semaphore that all requests of this process pass."""
    return threading.BoundedSemaphore(max_connections)


class ObjectStorage:
    """A prefix of a bucket. Every write is one PUT, which readers see whole or not at all."""

    def __init__(self, url: str, settings: StorageSettings) -> None:
        self.url, self._settings = url, settings
        self._store, self._lister = _connect(url, settings, 0), _connect(url, settings, settings.max_retries)
        self._slots, self._patience = _slots(settings.max_connections), patience_of(settings)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Travel as what was asked for: every process has one client per folder."""
        return open_storage, (self.url, self._settings)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Storage. The order is the store's: by name, byte for byte, on S3, GCS and Azure."""
        trial, last, by_name = Trial(self._patience), "", True
        while True:
            try:
                for page in self._pages(prefix, last):
                    trial.progressed()
                    for meta in page:
                        by_name, last = by_name and meta["path"] > last, meta["path"]
                        if not last.rsplit("/", 1)[-1].startswith("."):
                            yield self._entry(meta)
                return
            except TransientError as error:
                if exhausted(error) or not by_name:  # without an order nobody knows what is still to come
                    raise
                trial.failed(error)
            except UnspellableKeyError as error:
                yield from self._list_around(prefix, last, error)
                return

    def _list_around(self, prefix: str, after: str, error: UnspellableKeyError) -> Iterator[Entry]:
        """List what comes after the name `after`, folder by folder, so that a key nobody can read hides nothing else."""
        folders: Sequence[str]
        entries: Sequence[Entry]
        try:
            found = self._ask(prefix, lambda: obstore.list_with_delimiter(self._store, prefix or None))
            folders, entries = found["common_prefixes"], [self._entry(meta) for meta in found["objects"]]
        except UnspellableKeyError:  # this folder itself has such a key
            if scheme_of(self.url) not in ("s3", "s3a") or self._settings.profile or self._settings.requester_pays:
                raise error from None
            logging.getLogger("nightshift").warning(
                f"{error}; it is left out, other objects there are listed one by one"
            )
            folders, entries = self._one_by_one(join(self.url, prefix), prefix)
        for entry in entries:
            if entry.path > after and not entry.path.rsplit("/", 1)[-1].startswith("."):
                yield entry
        for folder in folders:
            if f"{folder}0" > after:  # 0 follows the slash: not everything in the folder stands before
                yield from (entry for entry in self.list(folder) if entry.path > after)

    def _one_by_one(self, location: str, prefix: str) -> tuple[Sequence[str], Sequence[Entry]]:
        """Return the folders and objects directly in a folder whose listing obstore cannot read."""
        try:
            folders, names = names_in(location, self._settings)
        except OSError as error:
            raise TransientError(f"{printable(location)}: {first_line(error)}") from error
        with ThreadPoolExecutor(16) as pool:
            entries = pool.map(self._stat_if_there, [f"{prefix}/{name}".lstrip("/") for name in names])
            return [f"{prefix}/{name}".lstrip("/") for name in folders], [entry for entry in entries if entry]

    def _stat_if_there(self, path: str) -> Entry | None:
        try:
            return self.stat(path)
        except (NotFoundError, UnspellableKeyError):
            return None

    def _pages(self, prefix: str, after: str) -> Iterator[Sequence[Any]]:
        """Yield what is listed after the name `after`, some entries at a time."""
        location = join(self.url, prefix)
        with translated(location):
            stream = iter(obstore.list(self._lister, prefix or None, offset=after or None, chunk_size=PAGE))
        while True:
            with self._slots, translated(location):
                page = next(stream, None)
            if page is None:
                return
            yield page

    def stat(self, path: str) -> Entry:
        """See Storage."""
        return self._entry(self._ask(path, lambda: obstore.head(self._store, path)))

    def read(self, path: str, version: str | None = None) -> bytes:
        """See Storage. One request: a body that is not `version` is not even sent."""
        return self._get(path, version)

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """See Storage. Every later range request carries If-Match, so one handle never mixes two versions."""
        try:
            found = self.stat(path)
        except NotFoundError as error:
            raise (error if version is None else vanished(join(self.url, path))) from error
        if version is not None and found.version != version:
            raise changed(join(self.url, path))
        return cast(BinaryIO, _RangeReader(found, self._get))

    def _get(self, path: str, version: str | None, span: tuple[int, int] | None = None) -> bytes:
        """Read an object, or the bytes [start, end) of it."""
        options: dict[str, Any] = {"range": span} if span else {}
        if version and version.startswith('"'):  # a weak etag matches nothing
            options["if_match"] = version

        def get() -> tuple[Any, bytes]:
            result = obstore.get(self._store, path, options=options)
            return result.meta, bytes(result.bytes())

        try:
            meta, data = self._ask(path, get)
        except NotFoundError as error:
            raise (error if version is None else vanished(join(self.url, path))) from error
        if version is not None and self._entry(meta).version != version:
            raise changed(join(self.url, path))
        expected = span[1] - span[0] if span else meta["size"]
        if len(data) != expected:
            raise TransientError(f"{printable(join(self.url, path))}: {len(data)} bytes came, expected {expected}")
        return data

    def write(self, path: str, data: bytes) -> Entry:
        """See Storage. A store that answers without an etag leaves the version empty: no listing shows it so."""
        result = self._ask(path, lambda: obstore.put(self._store, path, data, use_multipart=False))
        return Entry(path, len(data), self._version(result["e_tag"]))

    def create(self, path: str, data: bytes) -> None:
        """See Storage: a conditional PUT (If-None-Match)."""
        unanswered = False

        def put() -> None:
            nonlocal unanswered
            try:
                with translated(join(self.url, path)):
                    obstore.put(self._store, path, data, mode="create", use_multipart=False)
            except TransientError as error:
                unanswered = unanswered or not isinstance(error, RefusedForNowError)
                raise

        try:
            self._ask(path, put)
        except AlreadyExistsError:
            # An earlier attempt may have gone through without an answer: then what is there is ours.
            if not unanswered or self.read(path) != data:
                raise

    def delete(self, path: str) -> None:
        """See Storage."""

        def delete() -> None:
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

        self._ask(path, delete)

    def _ask(self, path: str, request: Callable[[], Result]) -> Result:
        """Return the store's answer to one request, asked again while it has none."""
        location = join(self.url, path)

        def attempt() -> Result:
            with self._slots, translated(location):
                return request()

        return retried(attempt, self._patience)

    def _entry(self, meta: Any) -> Entry:
        """Name the version by the etag as HTTP spells it: Azure leaves the quotes out in listings, and only there."""
        version = self._version(meta["e_tag"]) or meta["last_modified"].isoformat()
        return Entry(meta["path"], meta["size"], version, meta["last_modified"])

    def _version(self, etag: str | None) -> str:
        if etag and not etag.startswith(('"', "W/")) and not isinstance(self._store, MemoryStore):
            return f'"{etag}"'
        return etag or ""


class _RangeReader(io.RawIOBase):
    """Random access to one version of an object. Each read is one request: Parquet readers know what they need."""

    def __init__(self, entry: Entry, get: Callable[[str, str, tuple[int, int]], bytes]) -> None:
        self._entry, self._get, self._position = entry, get, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start, end = self._position, self._entry.size_bytes
        if size is not None and size >= 0:
            end = min(start + size, end)
        if start >= end:
            return b""
        data = self._get(self._entry.path, self._entry.version, (start, end))
        self._position = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _connect(url: str, settings: StorageSettings, max_retries: int) -> Any:
    """Make a client that asks again by itself up to `max_retries` times; nothing is contacted yet."""
    scheme = scheme_of(url)
    if scheme == "memory":
        return _memory.setdefault(url, MemoryStore())
    timeout = timedelta(seconds=settings.timeout_s)
    client: dict[str, Any] = {"timeout": timeout, "connect_timeout": timedelta(seconds=min(10, settings.timeout_s))}
    endpoint = settings.endpoint or ""
    if endpoint.startswith("http://") or scheme == "http":
        client["allow_http"] = True
    backoff = {"init_backoff": timedelta(seconds=FIRST_PAUSE_S), "max_backoff": timedelta(seconds=LONGEST_PAUSE_S)}
    limit = timedelta(seconds=settings.retry_s)
    retry: dict[str, Any] = {"max_retries": max_retries, "retry_timeout": limit, "backoff": backoff}
    options = _s3_options(settings) if scheme in ("s3", "s3a") else _other_options(scheme, settings)
    scheme, _, path = url.partition("://")
    # from_url takes its argument as a URL, where %, # and ? have a meaning; in ours they are part of the key.
    safe = "/%:@" if scheme_of(url) in ("http", "https") else "/:@"
    try:
        return from_url(f"{scheme}://{quote(path, safe)}", client_options=client, retry_config=retry, **options)
    except (failures.BaseError, ValueError) as error:
        raise ConfigError(
            f"{printable(url)} names no place in an object store ({first_line(error)}); expected a bucket or container and "
            "a prefix, such as s3://bucket/folder"
        ) from error


def _s3_options(settings: StorageSettings) -> dict[str, Any]:
    """Translate the storage section; keys left out come from the AWS_* environment or the platform."""
    config = {
        "endpoint": settings.endpoint,
        "region": settings.region,
        "skip_signature": settings.anonymous or None,
        "request_payer": settings.requester_pays or None,
    }
    options: dict[str, Any] = {"config": {key: value for key, value in config.items() if value is not None}}
    if settings.profile:
        try:
            import boto3
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError as error:
            raise ConfigError("storage.profile needs the package boto3; install it, or use AWS_* variables") from error
        options["credential_provider"] = Boto3CredentialProvider(boto3.Session(profile_name=settings.profile))
    return options


def _other_options(scheme: str, settings: StorageSettings) -> dict[str, Any]:
    """Translate what other stores have in common with S3; the rest of their settings comes from their environment."""
    endpoint = {"gs": "base_url", "az": "endpoint", "abfs": "endpoint", "abfss": "endpoint"}.get(scheme)
    if not endpoint:  # plain HTTP has none of this
        return {}
    config = {endpoint: settings.endpoint, "skip_signature": settings.anonymous or None}
    return {"config": {key: value for key, value in config.items() if value is not None}}
