"""Whether a store does what everything leans on: what is written is read, and a name is created once."""

import uuid

from pipeline.errors import AlreadyExistsError, StorageError
from pipeline.storage import Storage


def check_store(store: Storage) -> None:
    """Write, read, create twice and delete one small object; StorageError when that goes otherwise than it must."""
    name = f"doctor/{uuid.uuid4().hex}.txt"
    store.create(name, b"nightshift")
    try:
        if store.read(name) != b"nightshift":
            raise StorageError(f"{store.url} does not return what was written; check what lies between")
        _refuses_second(store, name)
    finally:
        store.delete(name)


def _refuses_second(store: Storage, name: str) -> None:
    try:
        store.create(name, b"again")
    except AlreadyExistsError:
        return
    raise StorageError(
        f"{store.url} overwrote a create-only object; publishing is not safe there: use a store with conditional PUT"
    )
