"""The log of measurements: lines of JSON, appended over as many calls as it takes; what it holds already is not measured again.

Every line says when, on which machine, at which commit, in which session (one call of a script) and with how many images
it was measured. Two lines may be compared as a pair when session, run, model and number of images are the same.
"""

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_LOG = ROOT / "build" / "bench.jsonl"
OURS = "nightshift"
Record = dict[str, Any]


class Log:
    """Where one session writes, and what all sessions before it have written."""

    def __init__(self, path: Path, **always: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        if path.exists() and path.read_text()[-1:] not in ("", "\n"):
            with path.open("a") as file:  # an interrupted call has cut its last line off
                file.write("\n")
        self.session = secrets.token_hex(4)
        self._always = {"session": self.session, "machine": machine(), "commit": commit(), **always}

    def write(self, **values: Any) -> Record:
        """Print a measurement and keep it."""
        record = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **self._always, **values}
        print(json.dumps({key: value for key, value in values.items() if key != "commits"}), flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def records(self) -> list[Record]:
        """Return all lines, of this session and of those before."""
        return read(self._path)

    def has(self, **values: Any) -> bool:
        """Say whether there is a line with all these values."""
        return any(selected(self.records(), **values))


def read(path: Path) -> list[Record]:
    """Return the lines of a log; a line that an interrupted call has cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def selected(records: Iterable[Record], **values: Any) -> list[Record]:
    """Return the lines that have all these values."""
    return [record for record in records if all(record.get(key) == value for key, value in values.items())]


def pairs(records: Iterable[Record], model: str, peer: str, images: int) -> list[tuple[int, float]]:
    """Return (run, their seconds / ours), for each run of each session in which both were measured."""
    kept = selected(records, model=model, images=images)
    ours = {(record["session"], record["run"]): record["seconds"] for record in kept if _is_run(record, OURS)}
    theirs = {(record["session"], record["run"]): record["seconds"] for record in kept if _is_run(record, peer)}
    return [(run, theirs[session, run] / ours[session, run]) for session, run in theirs if (session, run) in ours]


def missing(records: Iterable[Record], model: str, peers: Iterable[str], images: int, run: int) -> list[str]:
    """Return the tools that this run still needs: peers without a pair, and ours with them, or where it stands alone."""
    records, peers = list(records), list(peers)
    lacking = [peer for peer in peers if run not in dict(pairs(records, model, peer, images))]
    alone = not peers and not selected(records, tool=OURS, model=model, images=images, run=run)
    return [OURS, *lacking] if lacking or alone else []


def rotated(tools: list[str], run: int) -> list[str]:
    """Return the tools in the order of this run: each run begins with another one."""
    start = (run - 1) % len(tools) if tools else 0
    return tools[start:] + tools[:start]


def _is_run(record: Record, tool: str) -> bool:
    return record.get("tool") == tool and isinstance(record.get("run"), int)


def machine() -> str:
    """Describe the machine in a few words: processor, cores, GPU."""
    from pipeline.processors import cpu_info, cpu_name, has_gpu

    gpu = ""
    if has_gpu():
        import torch

        gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu_name(cpu_info())}, {os.cpu_count()} cores{gpu}, {platform.system()} {platform.release()}"


def commit() -> str:
    """Return the commit that is measured, with a + when the working tree differs from it; nothing outside git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()
