"""Versions of what is installed, without importing it."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def library_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the installed versions, None for what is not installed: submitting, for one, needs no torch."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
