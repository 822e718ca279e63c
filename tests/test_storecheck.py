import pytest

from pipeline.errors import StorageError
from pipeline.storecheck import check_store


class Wrong:
    """A store with one fault, in front of a real one."""

    def __init__(self, store, **faults) -> None:
        self._store, self.url = store, store.url
        vars(self).update(faults)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_store_that_works_is_left_as_it_was(night):
    check_store(night.store)
    assert list(night.store.list()) == []


def test_store_that_overwrites_create_only_objects_fails(night):
    with pytest.raises(StorageError, match="overwrote a create-only object; publishing is not safe there"):
        check_store(Wrong(night.store, create=night.store.write))
    assert list(night.store.list()) == []


def test_store_that_returns_something_else_fails(night):
    with pytest.raises(StorageError, match="does not return what was written"):
        check_store(Wrong(night.store, read=lambda path: b"cached"))
    assert list(night.store.list()) == []
