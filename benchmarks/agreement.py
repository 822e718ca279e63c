"""Compare every engine and precision with the reference on real photos: labels, probabilities, images/s.

    .venv/bin/python benchmarks/agreement.py [--photos 300] [--threads 2]

Real mobilenet_v2 weights on imagenet_sample100 and on photos of flowers5 (which shows agreement, not accuracy: its flowers
are no classes of ImageNet). The reference is Pillow and torch fp32; the others are measured with either decoder. Rates are
bare forward passes of 64 images. Nothing is asserted: what it prints belongs into RESULTS.md with the hardware and the date.
"""

import argparse
import os
import platform
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
WEIGHTS = SHARED / "data" / "weights"
DATA = {"imagenet_sample100": 100, "flowers5": None}
MAX_PIXELS = 100_000_000
CPU = ("torch fp32", "torch bf16", "openvino fp32", "openvino bf16")
GPU = ("torch fp32", "torch bf16", "torch fp16", "torch bf16 cuda graph", "torch fp16 cuda graph")


def photos_of(name: str, count: int) -> list[bytes]:
    """Return photos that are spread over a data set."""
    images = pq.read_table(SHARED / "data" / name, columns=["image"])["image"].to_pylist()
    data = [image["bytes"] if isinstance(image, dict) else image for image in images]
    return data[:: max(1, len(data) // count)][:count]


def open_workshop(folder: str, threads: int) -> Any:
    from pipeline.adoption import adopt
    from pipeline.enginecache import EngineCache
    from pipeline.manifest import read_manifest
    from pipeline.settings import ModelSettings, StorageSettings
    from pipeline.storage import open_storage
    from pipeline.workshop import Workshop, this_node

    store, storage = open_storage(folder, StorageSettings()), StorageSettings()
    weights, classes = WEIGHTS / "mobilenet_v2_imagenet.safetensors", WEIGHTS / "imagenet_classes.json"
    model = ModelSettings(name="stock", builder="mobilenet_v2", weights=str(weights), classes=str(classes))
    manifest = read_manifest(store, "stock", adopt(store, model, storage))
    return manifest, Workshop(store, EngineCache(store), manifest, this_node(threads), 64)


def candidates(gpu: str | None) -> list[Any]:
    from pipeline.workshop import Candidate

    return [Candidate(*name.split(" ", 2)) for name in (GPU if gpu else CPU)]


def compare(manifest: Any, shop: Any, name: str, count: int) -> None:
    """Print one line per engine and decoder for one data set."""
    from pipeline.agreement import measure
    from pipeline.engines import images_per_s
    from pipeline.labelling import decode_photos
    from pipeline.workshop import Candidate

    decode = partial(decode_photos, manifest.architecture.transforms, MAX_PIXELS, photos_of(name, count))
    exact, fast = decode(True), decode(False)
    expected = shop.reference_answers(exact)
    reference = images_per_s(shop.open(Candidate("reference", "fp32")), exact, 64)
    print(f"\n{name}, {len(exact)} photos; the reference (Pillow, torch fp32): {reference:.0f} images/s")
    print(f"{'engine':<24}{'images/s':>10}{'decoding':>10}{'same top-1':>12}{'|difference|':>14}")
    for candidate in candidates(shop.node.gpu):
        try:
            engine = shop.open(candidate)
        except Exception as error:  # a table with one line less is still a table
            print(f"{candidate!s:<24} {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            continue
        rate = images_per_s(engine, exact, 64)
        for kind, pixels in (("exact", exact), ("fast", fast)):
            answers = np.concatenate([engine(pixels[start : start + 64]) for start in range(0, len(pixels), 64)])
            found = measure(expected, answers, manifest.meaning)
            print(f"{candidate!s:<24}{rate:>10.0f}{kind:>10}{found.top1:>12.4f}{found.difference:>14.5f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=300, help="of flowers5 (default 300)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine (default: all CPUs)")
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"the photos and weights are not there ({SHARED})")
    import torch

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="nightshift-agreement-") as folder:
        manifest, shop = open_workshop(folder, options.threads)
        print(f"{platform.platform()}, {shop.node.gpu or shop.node.processor}, {options.threads} threads, mobilenet_v2")
        for name, count in DATA.items():
            compare(manifest, shop, name, count or options.photos)


if __name__ == "__main__":
    main()
