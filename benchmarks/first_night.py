"""Measure a first night as a newcomer has it: whole processes, real photos, real weights, a store that starts empty.

    .venv/bin/python benchmarks/first_night.py

Prints one line per command: exit code, wall seconds, what its record says. Nothing is asserted: what it prints belongs into
RESULTS.md with the hardware and the date. `labelling.py` compares with others.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SHOWN = (
    "images_in", "labelled", "quarantined", "skipped", "features_computed", "images_per_s", "evaluation", "model",
)  # fmt: skip
FAILED: list[str] = []


def nightshift(*arguments: str) -> None:
    """Run a command as its own process; print its wall seconds and its record, and note when it failed."""
    started = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments, "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = perf_counter() - started
    record = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    facts = {key: record[key] for key in SHOWN if record.get(key) not in (None, 0)}
    print(f"{' '.join(arguments[:2]):<42} exit {done.returncode} {seconds:7.1f} s  {json.dumps(facts)}", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        FAILED.append(" ".join(arguments))


def demo(folder: Path) -> None:
    nightshift("demo", "--folder", str(folder / "demo"))


def flowers(store: str) -> None:
    """The config of the README, every command once, then what a second night costs."""
    config = "configs/local.yaml"
    for command in ("plan", "train", "evaluate"):
        nightshift(command, config, "--set", store)
    nightshift("label", config, "--set", store)
    nightshift("report", config, "--set", store)
    nightshift("label", config, "--set", store)
    nightshift("train", config, "--set", store, "--again")


def stock(folder: Path, store: str) -> None:
    """A stock ImageNet classifier: adopted, judged, asked about one photo."""
    import pyarrow.parquet as pq

    config = "configs/stock.yaml"
    nightshift("train", config, "--set", store)
    nightshift("evaluate", config, "--set", store, "--split", "sample")
    nightshift("label", config, "--set", store)
    row = pq.read_table(SHARED / "data" / "imagenet_sample100").slice(3, 1).to_pylist()[0]
    photo = folder / f"{row['image_id']}.jpg"
    photo.write_bytes(row["image"])
    nightshift("label", config, "--set", store, "--image", str(photo))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as name:
        folder, store = Path(name), f"store={name}/store"
        demo(folder)
        if not SHARED.is_dir():
            sys.exit(f"the real photos are not there ({SHARED}): only the demo could be measured")
        flowers(store)
        stock(folder, store)
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
