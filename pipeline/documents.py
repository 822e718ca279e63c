"""JSON documents, digests of what they say, and numbered pointers: the highest number that exists is the present one."""

import hashlib
import json
from typing import Any

from pipeline.errors import AlreadyExistsError, NotFoundError, StorageError
from pipeline.refusals import printable
from pipeline.storage import Storage, join

Document = dict[str, Any]


def encode(document: Document) -> bytes:
    """Return the document as UTF-8 JSON with sorted keys: equal documents give equal bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of a JSON value."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def read_document(storage: Storage, path: str, version: str | None = None) -> Document:
    """Read a JSON object, of one version if it is given; StorageError when it is not one."""
    try:
        document = json.loads(storage.read(path, version))
    except ValueError as error:
        raise StorageError(
            f"{printable(join(storage.url, path))} is not valid JSON ({error}); restore or delete it"
        ) from error
    if not isinstance(document, dict):
        raise StorageError(f"{printable(join(storage.url, path))} holds no JSON object; restore or delete it")
    return document


def find_document(storage: Storage, path: str) -> Document | None:
    """Read a JSON object, None when there is no such file."""
    try:
        return read_document(storage, path)
    except NotFoundError:
        return None


def newest(storage: Storage, folder: str) -> tuple[int, Document] | None:
    """Return the present number and document of a pointer folder, None when it has none yet."""
    numbers = [number for entry in storage.list(folder) if (number := _number(entry.path)) is not None]
    if not numbers:
        return None
    return max(numbers), read_document(storage, f"{folder}/{max(numbers)}.json")


def advance(storage: Storage, folder: str, document: Document, after: int) -> int:
    """Point to a new document as number `after + 1`.

    Raises
    ------
    AlreadyExistsError
        When another writer took that number: read the newest and decide again.
    """
    number = after + 1
    try:
        storage.create(f"{folder}/{number}.json", encode({**document, "n": number}))
    except AlreadyExistsError as error:
        raise AlreadyExistsError(f"{folder}/{number}.json was written by another run at the same time") from error
    return number


def _number(path: str) -> int | None:
    stem = path.rsplit("/", 1)[-1].removesuffix(".json")
    return int(stem) if stem.isdigit() else None
