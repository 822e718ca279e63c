"""S3, GCS, Azure, HTTP and memory as Storage, through obstore (Rust object_store), which retries and limits by itself."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO, cast
from urllib.parse import quote

import obstore
from obstore import exceptions as failures
from obstore.store import MemoryStore, from_url

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConfigError,
    NightshiftError,
    NotFoundError,
    StorageError,
    TransientError,
)
from pipeline.settings import StorageSettings
from pipeline.storage import Entry, changed, join, scheme_of

PASSING_REFUSALS = (408, 409, 425, 429)  # HTTP: timeout, conflict, too early, too many requests
_memory: dict[str, MemoryStore] = {}


class ObjectStorage:
    """A prefix of a bucket. Every write is one PUT, which readers see whole or not at all."""

    def __init__(self, url: str, settings: StorageSettings) -> None:
        self.url = url
        self._store = _connect(url, settings)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Storage. The order is the store's."""
        with _translated(join(self.url, prefix)):
            for batch in obstore.list(self._store, prefix or None):
                for meta in batch:
                    if not meta["path"].rsplit("/", 1)[-1].startswith("."):
                        yield _entry(meta)

    def stat(self, path: str) -> Entry:
        """See Storage."""
        with _translated(join(self.url, path)):
            return _entry(obstore.head(self._store, path))

    def read(self, path: str, version: str | None = None) -> bytes:
        """See Storage."""
        with _translated(join(self.url, path)):
            result = obstore.get(self._store, path)
            found, data = _entry(result.meta), bytes(result.bytes())
        if version is not None and found.version != version:
            raise changed(join(self.url, path))
        return data

    def open(self, path: str, version: str | None = None) -> BinaryIO:
        """See Storage. Every later range request carries If-Match, so one handle never mixes two versions."""
        found = self.stat(path)
        if version is not None and found.version != version:
            raise changed(join(self.url, path))
        return cast(BinaryIO, io.BufferedReader(_RangeReader(self._store, self.url, found), buffer_size=1 << 16))

    def write(self, path: str, data: bytes) -> None:
        """See Storage."""
        with _translated(join(self.url, path)):
            obstore.put(self._store, path, data, use_multipart=False)

    def create(self, path: str, data: bytes) -> None:
        """See Storage: a conditional PUT (If-None-Match)."""
        with _translated(join(self.url, path)):
            obstore.put(self._store, path, data, mode="create", use_multipart=False)

    def delete(self, path: str) -> None:
        """See Storage."""
        with _translated(join(self.url, path)):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return


class _RangeReader(io.RawIOBase):
    """Random access to one version of an object."""

    def __init__(self, store: Any, url: str, entry: Entry) -> None:
        self._store, self._url, self._entry, self._position = store, url, entry, 0

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

    def readinto(self, buffer: Any) -> int:
        start = self._position
        end = min(start + len(buffer), self._entry.size_bytes)
        if start >= end:
            return 0
        options: dict[str, Any] = {"range": (start, end)}
        if self._entry.version.startswith('"'):
            options["if_match"] = self._entry.version
        with _translated(join(self._url, self._entry.path)):
            data = obstore.get(self._store, self._entry.path, options=options).bytes()
        buffer[: len(data)] = memoryview(data)
        self._position += len(data)
        return len(data)


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())


def _connect(url: str, settings: StorageSettings) -> Any:
    scheme = scheme_of(url)
    if scheme == "memory":
        return _memory.setdefault(url, MemoryStore())
    timeout = timedelta(seconds=settings.timeout_s)
    client: dict[str, Any] = {"timeout": timeout, "connect_timeout": timedelta(seconds=min(10, settings.timeout_s))}
    endpoint = settings.endpoint or ""
    if endpoint.startswith("http://") or scheme == "http":
        client["allow_http"] = True
    retry: dict[str, Any] = {"max_retries": settings.max_retries, "retry_timeout": timeout * (settings.max_retries + 1)}
    options = _s3_options(settings) if scheme in ("s3", "s3a") else _other_options(scheme, settings)
    scheme, _, path = url.partition("://")
    # from_url takes its argument as a URL, where %, # and ? have a meaning; in ours they are part of the key.
    safe = "/%:@" if scheme_of(url) in ("http", "https") else "/:@"
    try:
        return from_url(f"{scheme}://{quote(path, safe)}", client_options=client, retry_config=retry, **options)
    except (failures.BaseError, ValueError) as error:
        raise ConfigError(
            f"{url} names no place in an object store ({_first_line(error)}); expected a bucket or container and "
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
    azure = scheme in ("az", "abfs", "abfss")
    config = {"endpoint": settings.endpoint if azure else None, "skip_signature": settings.anonymous or None}
    known = {key: value for key, value in config.items() if value is not None and (azure or scheme == "gs")}
    return {"config": known} if known else {}


@contextmanager
def _translated(location: str) -> Iterator[None]:
    """Turn obstore's errors into ours, with the location in the message."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{location} does not exist") from error
    except failures.AlreadyExistsError as error:
        raise AlreadyExistsError(f"{location} exists already") from error
    except failures.PreconditionError as error:
        raise changed(location) from error
    except (failures.PermissionDeniedError, failures.UnauthenticatedError, PermissionError) as error:
        raise _denied(location) from error
    except failures.GenericError as error:
        raise _generic(location, error) from error
    except (failures.BaseError, ValueError) as error:  # ValueError: a key that object_store cannot spell, such as a//b
        raise StorageError(f"{location}: {_first_line(error)}; use another name, or another store") from error


def _generic(location: str, error: Exception) -> NightshiftError:
    """Tell the refusals that obstore (as of 0.12) calls generic, among them all of LIST, from what may pass."""
    words = str(error)
    status = re.search(r"status code: (\d{3})", words)
    code = int(status[1]) if status else 0
    refused = 400 <= code < 500 and code not in PASSING_REFUSALS and "RequestTimeout" not in words
    if "/latest/api/token" in words or "/latest/meta-data" in words:  # where object_store asks when it was given none
        return (StorageError if refused else TransientError)(
            f"{location}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or run where the platform "
            "gives them), or storage.anonymous for a public bucket"
        )
    if code in (401, 403):
        return _denied(location)
    if code == 404:
        return NotFoundError(f"{location} does not exist: check the bucket's name")
    if code in (301, 307) or "incorrectly configured region" in words:
        return StorageError(f"{location}: the bucket is in another region; set storage.region to its own")
    if refused:
        return StorageError(f"{location}: {_first_line(error)}; check the storage section and the URL")
    return TransientError(f"{location}: {_first_line(error)}")


def _denied(location: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"{location}: access denied; check the credentials in the environment and the bucket's policy"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
