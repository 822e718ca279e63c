"""Measure planning as the input grows: seconds and the driver's memory, for Parquet files and for loose images.

    .venv/bin/python benchmarks/scale.py                 # a tenth, then the whole: 1,000,000 images in 10,000 files; 200,000 loose files
    .venv/bin/python benchmarks/scale.py --share 0.01    # a hundredth of it, to try

The images are a few bytes each: planning reads listings and footers, never an image. Each size is planned three times: from
nothing, again with nothing new, and again after one new file. Nothing is asserted.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from processes import timed

TABLE_FILES, ROWS_PER_FILE, LOOSE_FILES, LOOSE_PER_FOLDER = 10_000, 100, 200_000, 1_000


def make_tables(folder: Path, first: int, last: int) -> None:
    """Write files [first, last) of 100 rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, last):
        ids = pa.array([f"{number:06d}-{row:03d}" for row in range(ROWS_PER_FILE)])
        images = pa.array([b"not an image"] * ROWS_PER_FILE, pa.binary())
        pq.write_table(pa.table({"image_id": ids, "image": images}), folder / f"part-{number:06d}.parquet")


def make_loose(folder: Path, first: int, last: int) -> None:
    """Write images [first, last), a thousand to a folder."""
    for number in range(first, last):
        place = folder / f"{number // LOOSE_PER_FOLDER:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.jpg").write_bytes(b"not an image")


def plan(folder: Path, source: Path, what: str) -> None:
    """Plan one input as a process of its own and print what it took."""
    columns = {"image_column": "image", "id_column": "image_id"} if "tables" in source.name else {}
    config = folder / f"{source.name}.yaml"
    config.write_text(yaml.safe_dump({"store": str(folder / "store"), "input": {"url": str(source), **columns}}))
    command = [str(Path(sys.executable).parent / "nightshift"), "plan", str(config), "--json"]
    done = timed(command, folder, watch=True)
    if done.code:
        sys.exit(done.err[-2000:])
    stages = {stage["name"]: stage["seconds"] for stage in json.loads(done.out.splitlines()[-1])["stages"]}
    print(
        f"{source.name:<16} {what:<12} {done.seconds:7.1f} s whole process, {stages} s, {done.peaks_mb} MB", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightshift-scale-") as name:
        folder = Path(name)
        for share in (options.share / 10, options.share):
            for make, kind, whole in ((make_tables, "tables", TABLE_FILES), (make_loose, "loose", LOOSE_FILES)):
                count = max(1, int(whole * share))
                source = folder / f"{kind}-{count}"
                make(source, 0, count)
                plan(folder, source, "first")
                plan(folder, source, "nothing new")
                make(source, count, count + 1)
                plan(folder, source, "one new file")


if __name__ == "__main__":
    main()
