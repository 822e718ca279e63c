"""`nightshift rollback`: make the version production that was so before."""

from jobs.console import say
from jobs.runs import Run, utc_now
from pipeline.errors import UsageError
from pipeline.promotion import point_to, pointer, version_before
from pipeline.registry import resolve


def work(run: Run) -> None:
    """Move the pointer back; asked again, further back."""
    model = run.config.model
    number, current = pointer(run.store, model.name)
    before = version_before(run.store, model.name)
    if before is None:
        raise UsageError(
            f"{model.name}@{current['version']} is the first version that was production: nothing is before it"
        )
    restores, version = before
    resolve(run.store, model.model_copy(update={"version": version}))  # it may have been cleaned away
    document = {
        "version": version, "at": utc_now(), "reason": f"rollback from {current['version']}", "restores": restores,
        "instead_of": current["version"],
    }  # fmt: skip
    point_to(run.store, model.name, document, number)
    run.note(model=f"{model.name}@{version}", promotion={"from": current["version"], "to": version, "objections": []})
    say(f"{model.name}@{version} is production again: it labels from now on")
