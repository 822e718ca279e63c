"""Hive partitions: `date=2026-11-24/country=de/x.parquet` gives all of its rows the columns date and country, as text."""

from collections.abc import Iterable
from urllib.parse import unquote

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # Hive, Spark and Arrow spell null so


def partitions_of(path: str) -> dict[str, str | None]:
    """Return the columns that the folders of a path spell, the outermost first."""
    found: dict[str, str | None] = {}
    for folder in partition_folders(path):
        name, _, value = folder.partition("=")
        found[unquote(name)] = None if value == NULL_PARTITION else unquote(value)
    return found


def partition_folders(path: str) -> tuple[str, ...]:
    """Return the folders of a path that spell a column: paths with the same ones lie in the same partition."""
    if "=" not in path:
        return ()
    return tuple(folder for folder in path.split("/")[:-1] if folder.find("=") > 0)


def partition_names(paths: Iterable[str]) -> frozenset[str]:
    """Return the names of all partition columns among paths."""
    folders = {folder for path in paths for folder in partition_folders(path)}
    return frozenset(unquote(folder.partition("=")[0]) for folder in folders)
