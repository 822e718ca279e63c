"""`nightshift train`: adopt weights or train, seal a bundle, and make it production if there is none."""

from jobs.console import say
from jobs.runs import Run, utc_now
from pipeline.registry import promote_first


def work(run: Run, again: bool = False) -> None:
    """Train or adopt."""
    train_model(run, again)


def train_model(run: Run, again: bool = False) -> str:
    """Train or adopt; return the version."""
    if run.config.train.mode == "none":
        from pipeline.adoption import adopt

        version = adopt(run.store, run.config.model, run.config.storage)
        say(f"adopted {run.config.model.builder} as {run.config.model.name}@{version}")
    else:
        from jobs.fitting import fit

        version = fit(run, again)
    run.note(model=f"{run.config.model.name}@{version}")
    if promote_first(run.store, run.config.model.name, version, utc_now()):
        say(f"{run.config.model.name}@{version} is production: it labels from now on")
    return version
