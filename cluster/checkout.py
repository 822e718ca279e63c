"""The same nightshift on driver and workers: two checkouts in one run would label by two programs."""

from pathlib import Path

import pipeline
from pipeline.errors import UsageError


def code_root() -> str:
    """Return where this process imports nightshift from."""
    return str(Path(pipeline.__file__).resolve().parent.parent)


def refuse_other(there: str) -> None:
    """Raise UsageError when a worker imports nightshift from elsewhere than this process."""
    here = code_root()
    if here != there:
        raise UsageError(
            f"the workers import nightshift from {there}, this process from {here}; start the command from {there}, or install "
            "this checkout on the cluster"
        )
