"""What the machine could do at most: bare forward pass F and bare decode-and-resize D, images/s of the whole machine.

    .venv/bin/python benchmarks/limits.py STORE MODEL PHOTOS      # a store that has labelled with MODEL before

As many one-thread processes as there are cores do the same thing at the same time, as the labellers do. A shared pool of
cores that does both for every image can at best do 1 / (1/F + 1/D). With a GPU the forward pass is that of one process
with the whole GPU while nothing else runs, decoding is that of all cores, and the limit is the slower of the two.
Beside it, on CPUs, stands the bare forward of torch as the peers use it: fp32, and bf16.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

MAX_PIXELS, NUM_PHOTOS, BATCH, SECONDS = 100_000_000, 256, 64, 8.0
TORCH = {"torch_fp32": ("reference", "fp32"), "torch_bf16": ("torch", "bf16")}


def measure(index: int, together: Any, exact: Any, results: Any, store: str, model: str, photos: list[bytes]) -> None:
    """One process: open what the labellers open, then do one thing after another for some seconds beside the others."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from pipeline.batches import decoder
    from pipeline.labelling import decode_photos
    from pipeline.manifest import read_manifest
    from pipeline.processors import has_gpu
    from pipeline.registry import resolve
    from pipeline.rows import Row
    from pipeline.settings import StorageSettings
    from pipeline.storage import open_storage

    storage = open_storage(store, StorageSettings())
    manifest = read_manifest(storage, model, resolve(storage, model, None))
    transforms = manifest.architecture.transforms
    found: dict[str, Any] = {}
    engines: dict[str, Callable[..., Any]] = {}
    if index == 0 or not has_gpu():  # the others only decode where a GPU predicts
        decode = partial(decode_photos, transforms, MAX_PIXELS)
        engines, choice = _engines(storage, manifest, decode, photos)
        exact.value, found["engine"] = choice.exact_decoding, choice.said
        pixels = decode(photos[:BATCH], choice.exact_decoding)
        for engine in engines.values():
            engine(pixels)
    for name in ("forward", *TORCH):
        together.wait()
        if name in engines:
            found[name] = _rate(partial(engines[name], pixels), BATCH)
    together.wait()
    decode_row = decoder(transforms, MAX_PIXELS, bool(exact.value))
    rows = cycle([Row("", "", "", 0, photo) for photo in photos])
    found["decode"] = _rate(lambda: decode_row(next(rows)), 1)
    results.put(found)


def _engines(storage: Any, manifest: Any, decode: Any, photos: list[bytes]) -> tuple[dict[str, Any], Any]:
    """Return the labellers' engine as `forward`, beside it torch as the peers use it, and the labellers' choice."""
    import torch

    from pipeline.enginecache import EngineCache
    from pipeline.engines import open_engine
    from pipeline.settings import LabelSettings
    from pipeline.workshop import Candidate, Workshop, this_node

    torch.set_num_threads(1)
    node = this_node(1)
    engine, choice = open_engine(storage, manifest, LabelSettings(), node, decode, lambda: iter(photos))
    engines: dict[str, Any] = {"forward": engine}
    if not node.gpu:
        shop = Workshop(storage, EngineCache(storage), manifest, node, BATCH)
        engines |= {name: shop.open(Candidate(*which)) for name, which in TORCH.items()}
    return engines, choice


def _rate(work: Callable[[], Any], num_images: int) -> float:
    started, done = perf_counter(), 0
    while (seconds := perf_counter() - started) < SECONDS:
        work()
        done += num_images
    return done / seconds


def limits(store: str, model: str, photos: Path) -> dict[str, Any]:
    """Return F, D, the limit and torch's own forward, images/s of the whole machine."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.processors import has_gpu

    file = pq.ParquetFile(sorted(photos.glob("*.parquet"))[0])
    groups = [file.read_row_group(group, columns=["image"]) for group in range(min(3, file.num_row_groups))]
    encoded = pa.concat_tables(groups).slice(0, NUM_PHOTOS)["image"].to_pylist()
    context, cores = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    together, results, exact = context.Barrier(cores), context.Queue(), context.Value("b", 0)
    processes = [
        context.Process(target=measure, args=(index, together, exact, results, store, model, encoded))
        for index in range(cores)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return summed(found, has_gpu())


def summed(found: list[dict[str, Any]], gpu: bool) -> dict[str, Any]:
    """Add up what the processes did at the same time, and say what follows for images that need both."""
    names = [name for name in ("forward", "decode", *TORCH) if any(name in one for one in found)]
    rates = {name: sum(one.get(name, 0.0) for one in found) for name in names}
    forward, decode = rates["forward"], rates["decode"]
    limit = min(forward, decode) if gpu else 1 / (1 / forward + 1 / decode)
    engine = next(one["engine"] for one in found if "engine" in one)
    rounded = {name: round(rate, 1) for name, rate in rates.items()}
    return {"engine": engine, **rounded, "limit": round(limit, 1), "gpu": gpu, "cores": len(found)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    options = parser.parse_args()
    print(json.dumps(limits(options.store, options.model, options.photos)))
