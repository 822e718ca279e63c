"""`nightshift clean`: remove what is older than some days and no longer needed. Without --yes it only says what."""

import json
from collections.abc import Sequence

from jobs.config import Config
from jobs.console import say
from jobs.label import asked_of
from pipeline.cleaning import Found, Scope, cutoff, remove, superfluous
from pipeline.plans import read_plan
from pipeline.promotion import version_before
from pipeline.registry import production, versions
from pipeline.storage import Entry, Storage, scheme_of


def clean(config: Config, days: int, really: bool, with_models: bool, as_json: bool) -> int:
    """List what may go, as a table by kind, and delete it if that is asked for."""
    store = config.open_store()
    scope = _scope(config, store, days)
    found = superfluous(store, scope, with_models)
    if really:
        found = remove(store, scope, found)
    if as_json:
        kinds = {kind: {"files": len(entries), "bytes": _bytes(entries)} for kind, entries in found.items()}
        print(json.dumps({"command": "clean", "dataset": config.dataset, "removed": really, "kinds": kinds}))
    _say(found, really)
    if scheme_of(store.url) != "file":
        say(
            "nightshift writes each object by a single PUT, so it leaves no multipart uploads; those of other writers are "
            "ended by a lifecycle rule of the bucket (S3: AbortIncompleteMultipartUpload)"
        )
    return 0


def _scope(config: Config, store: Storage, days: int) -> Scope:
    """Return what the config asks for now: by its pinned version and by the production version."""
    name = config.model.name
    current = production(store, name)
    asked = {version for version in (current, config.model.version) if version}
    before = version_before(store, name) if current else None  # to which `rollback` goes
    plan = read_plan(store, config.dataset)
    there = asked & set(versions(store, name)) if plan else set()
    generations = {asked_of(config, plan, version) for version in there} if plan else set()
    return Scope(
        config.dataset,
        name,
        cutoff(days),
        frozenset(generations),
        frozenset(asked | ({before[1]} if before else set())),
    )


def _say(found: Found, really: bool) -> None:
    say(f"{'removed' if really else 'would be removed':<18}{'files':>9}{'MB':>12}")
    for kind, entries in found.items():
        say(f"  {kind:<16}{len(entries):>9,}{_bytes(entries) / 1e6:>12,.1f}")
    everything = [entry for entries in found.values() for entry in entries]
    say(f"  {'together':<16}{len(everything):>9,}{_bytes(everything) / 1e6:>12,.1f}")
    if everything and not really:
        say("nothing was removed; the same command with --yes does it")


def _bytes(entries: Sequence[Entry]) -> int:
    return sum(entry.size_bytes for entry in entries)
