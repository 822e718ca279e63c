"""Measure planning and reading the ledger as the input grows: seconds and memory, for Parquet files and for loose images.

    .venv/bin/python benchmarks/scale.py                 # a tenth, then the whole: 1,000,000 images in 10,000 files; 200,000 loose files
    .venv/bin/python benchmarks/scale.py --share 0.01    # a hundredth of it, to try

The images are a few bytes each: planning reads listings and footers, never an image. Each size is planned three times: from
nothing, again with nothing new, and again after one new file; beside it stands how many shards, each one label file, the
files became. Then a second night reads the ledger of 4,000 shards, by one read each and by their roll-up. Last, a night labels some
photos of an input that takes long to list (links to a thousand photos; needs ../shared): when the first shard is committed,
and when the listing has ended. Nothing is asserted.
"""

import argparse
import json
import os
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from photos import make_photos
from processes import timed

from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, commit, read_ledger, roll_up
from pipeline.plans import read_plan
from pipeline.settings import StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.storage import open_storage
from pipeline.tables import Written

TABLE_FILES, ROWS_PER_FILE, LOOSE_FILES, LOOSE_PER_FOLDER = 10_000, 100, 200_000, 1_000
COMMITTED_SHARDS, IMAGES_PER_SHARD = 4_000, 256
LINKS, PHOTOS, LABELLED = 1_000_000, 1_000, 2_000
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


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
    planned = read_plan(open_storage(str(folder / "store"), StorageSettings()), source.name)
    assert planned
    shards = f"{planned.details['files']:,} files are {len(planned.shards):,} shards"
    took = f"{done.seconds:7.1f} s whole process, {stages} s, {done.peaks_mb} MB"
    print(f"{source.name:<16} {what:<12} {took}; {shards}", flush=True)


def second_night(folder: Path, num_shards: int) -> None:
    """Commit so many shards, then read their ledger without a roll-up, write one, and read by it."""
    store, asked = open_storage(str(folder / "ledger-store"), StorageSettings()), Generation("many", "model", "0")
    segments = (Segment(f"{n:07d}.jpg", 12, "1", 0, 1, 1) for n in range(num_shards * IMAGES_PER_SHARD))
    shards = [Shard(tuple(next(segments) for _ in range(IMAGES_PER_SHARD))) for _ in range(num_shards)]
    for shard in shards:
        labels = Written(asked.labels(shard.id, "one"), IMAGES_PER_SHARD, 10_000, "0" * 64)
        commit(store, asked, LedgerEntry(shard.id, "one", {s.key: [1, 1, 0] for s in shard.segments}, labels, None))
    pa.array([0])  # the first call imports pandas where there is one, which is not what is measured here
    what = f"{num_shards:,} ledger entries of {IMAGES_PER_SHARD} images"
    entries = measured(f"{what}, read one by one", lambda: read_ledger(store, asked, shards))
    measured(f"{what}, rolled up", lambda: roll_up(store, asked, entries))
    measured(f"{what}, read by their roll-up", lambda: read_ledger(store, asked, shards))
    print(f"{what}: the roll-up has {store.stat(asked.rollup()).size_bytes / 2**20:.1f} MB", flush=True)


def label_ahead(folder: Path, num_links: int) -> None:
    """Label the first photos of a long listing, and print when the first shard was there and when the plan was."""
    source, store = folder / f"links-{num_links}", folder / "ahead-store"
    make_photos(SHARED / "flowers5", folder / "photos", PHOTOS)
    table = pq.read_table(folder / "photos", columns=["image"])
    for number in range(num_links):
        place = source / f"{number // LOOSE_PER_FOLDER:04d}"
        if number % LOOSE_PER_FOLDER == 0:
            place.mkdir(parents=True)
        if number < PHOTOS:
            (place / f"{number:07d}.jpg").write_bytes(table["image"][number].as_py())
        else:
            os.link(source / "0000" / f"{number % PHOTOS:07d}.jpg", place / f"{number:07d}.jpg")
    weights = SHARED / "weights"
    model = {
        "name": "mobilenet_v2",
        "builder": "mobilenet_v2",
        "weights": str(weights / "mobilenet_v2_imagenet.safetensors"),
    }
    document = {
        "store": str(store), "input": {"url": str(source)}, "train": {"mode": "none"}, "label": {"max_images": LABELLED},
        "model": {**model, "classes": str(weights / "imagenet_classes.json")},
    }  # fmt: skip
    before = {**document, "input": {"url": str(folder / "photos"), "image_column": "image", "id_column": "image_id"}}
    for command, what in (
        ("train", before),
        ("nightly", before),
        ("nightly", document),
    ):  # a first night chooses the engine
        config = folder / "ahead.yaml"
        config.write_text(yaml.safe_dump(what))
        started = time()
        done = timed(
            [str(Path(sys.executable).parent / "nightshift"), command, str(config), "--json"], folder, watch=True
        )
        if done.code not in (0, 5):
            sys.exit(done.err[-2000:])
    committed = [path.stat().st_mtime - started for path in (store / "ledger" / source.name).rglob("*.json")]
    planned = max(path.stat().st_mtime - started for path in (store / "plans" / source.name).rglob("plan.json"))
    parts = len(list((store / "plans" / source.name).rglob("*.parquet")))
    print(
        f"{num_links:,} files: first shard committed after {min(committed):.1f} s, {len(committed)} shards after {max(committed):.1f} s, "
        f"plan complete after {planned:.1f} s ({parts} parts), whole process {done.seconds:.1f} s, {done.peaks_mb} MB",
        flush=True,
    )


def measured(what: str, action: Callable[[], Any]) -> Any:
    """Print what an action takes, and return what it does; its peak of Python objects is that of a second go."""
    started = perf_counter()
    result = action()
    seconds = perf_counter() - started
    tracemalloc.start()
    action()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{what}: {seconds:.2f} s, {peak_bytes / 2**20:.0f} MB", flush=True)
    return result


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
            second_night(folder / f"ledger-{share}", max(1, int(COMMITTED_SHARDS * share)))
        if SHARED.is_dir():
            label_ahead(folder, max(PHOTOS, int(LINKS * options.share)))
        else:
            print(f"no night of a long listing: the photos are not there ({SHARED})")


if __name__ == "__main__":
    main()
