"""What the machine could do at most: bare forward pass F and bare decode-and-resize D, all cores busy, images/s together.

    .venv/bin/python benchmarks/limits.py STORE MODEL PHOTOS      # a store that has labelled with MODEL before

As many one-thread processes as there are cores do the same thing at the same time, as the labellers do. A shared pool of
cores that does both for every image can at best do 1 / (1/F + 1/D).
"""

import argparse
import json
import multiprocessing
import os
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter

import pyarrow.parquet as pq

from pipeline.batches import decoder
from pipeline.engines import open_engine
from pipeline.labelling import decode_photos
from pipeline.manifest import read_manifest
from pipeline.registry import resolve
from pipeline.rows import Row
from pipeline.settings import LabelSettings, StorageSettings
from pipeline.storage import open_storage
from pipeline.workshop import this_node

MAX_PIXELS, NUM_PHOTOS, BATCH, SECONDS = 100_000_000, 256, 64, 8.0


def measure(together, results, store: str, model: str, photos: list[bytes]) -> None:
    """One process: open what the labellers open, then do either thing for some seconds beside the others."""
    os.environ["OMP_NUM_THREADS"] = "1"
    storage = open_storage(store, StorageSettings())
    manifest = read_manifest(storage, model, resolve(storage, model, None))
    transforms = manifest.architecture.transforms
    decode = partial(decode_photos, transforms, MAX_PIXELS)
    engine, choice = open_engine(storage, manifest, LabelSettings(), this_node(1), decode, lambda: iter(photos))
    pixels = decode(photos[:BATCH], choice.exact_decoding)
    decode_row = decoder(transforms, MAX_PIXELS, choice.exact_decoding)
    rows = cycle([Row("", "", "", 0, photo) for photo in photos])
    engine(pixels)
    together.wait()
    forward = _rate(lambda: engine(pixels), BATCH)
    together.wait()
    decoded = _rate(lambda: decode_row(next(rows)), 1)
    results.put((forward, decoded, choice.said))


def _rate(work, num_images: int) -> float:
    started, done = perf_counter(), 0
    while (seconds := perf_counter() - started) < SECONDS:
        work()
        done += num_images
    return done / seconds


def limits(store: str, model: str, photos: Path) -> dict[str, float | str]:
    """Return F, D and the limit for a pool of cores that is shared by both, images/s of all cores."""
    path = sorted(photos.glob("*.parquet"))[0]
    table = pq.ParquetFile(path).read_row_groups([0, 1, 2], columns=["image"]).slice(0, NUM_PHOTOS)
    encoded = table["image"].to_pylist()
    context, cores = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    together, results = context.Barrier(cores), context.Queue()
    arguments = (together, results, store, model, encoded)
    processes = [context.Process(target=measure, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    forward, decoded = sum(f for f, _, _ in found), sum(d for _, d, _ in found)
    return {
        "engine": found[0][2], "forward": round(forward, 1), "decode": round(decoded, 1),
        "limit": round(1 / (1 / forward + 1 / decoded), 1),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    options = parser.parse_args()
    print(json.dumps(limits(options.store, options.model, options.photos)))
