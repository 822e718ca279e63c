"""Measure labelling against the peers: whole process against whole process, the same photos, the same weights, in turn.

    make bench                                            # everything, three runs: hours
    .venv/bin/python benchmarks/labelling.py --runs 1 --models mobilenet_v2 --peers ray_data_tuned

Each run labels the same photos with nightshift (`nightshift nightly`: plan, label, ledger, publication, report) and then with
each peer of ../shared/peers, unchanged; the ratio is taken within a run. Ours starts with an empty data set each time; compiled
models and the agreement gate's result are in the store's cache after the first night, which is reported by itself (`cold`).
Every measurement is a line of JSON in --log, so that a table can be made from runs of several days. Nothing is asserted.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torchvision
import yaml
from limits import limits
from photos import make_photos
from processes import Finished, timed
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
CLASSES = SHARED / "data" / "weights" / "imagenet_classes.json"
PRETRAINED = SHARED / "data" / "weights" / "mobilenet_v2_imagenet.safetensors"
MODELS = ("mobilenet_v2", "resnet18")
PEERS = ("ray_data_tuned", "daft_docs", "ray_data_docs")
TARGETS = {
    "mobilenet_v2": {"ray_data_docs": 12.0, "ray_data_tuned": 4.0, "daft_docs": 7.0},
    "resnet18": {"ray_data_docs": 6.0, "ray_data_tuned": 2.3, "daft_docs": 3.0},
}


class Bench:
    """A folder with photos, a store with both models, and the log of what was measured."""

    def __init__(self, folder: Path, log: Path, num_images: int) -> None:
        self.folder, self.num_images, self._log = folder, num_images, log
        print(f"making {num_images:,} photos of flowers5", flush=True)
        make_photos(SHARED / "data" / "flowers5", folder / "photos", num_images)

    def adopt(self, model: str) -> None:
        """Put a model into the store: part of setting up, not of a night."""
        self._nightshift("train", model, f"{model}-setup")

    def ours(self, model: str, night: str, watch: bool = False, labellers: int | None = None) -> float:
        """Label all photos as a data set that the store has never seen; return the wall seconds."""
        extra = [] if labellers is None else ["--set", f"label.max_workers={labellers}"]
        done = self._nightshift("nightly", model, night, *extra, watch=watch)
        record = json.loads(done.out.splitlines()[-1])
        if record["labelled"] != self.num_images:
            sys.exit(f"nightshift labelled {record['labelled']} of {self.num_images} images:\n{done.err[-2000:]}")
        ledger = sorted(
            (self.folder / "store" / "ledger" / night).rglob("*.json"), key=lambda path: path.stat().st_mtime
        )
        used = json.loads(ledger[-1].read_text())["used"]
        self.log(
            tool="nightshift", model=model, night=night, seconds=round(done.seconds, 2), peaks_mb=done.peaks_mb,
            steady_images_per_s=_steady(ledger), stages=record["stages"], labellers=labellers,
            engine=[used.get("engine"), used.get("precision")],
        )  # fmt: skip
        return done.seconds

    def peer(self, name: str, model: str, run: int) -> float:
        """Run one peer on the same photos and weights; return the wall seconds."""
        weights = str(PRETRAINED) if model == "mobilenet_v2" else "-"
        output = self.folder / f"{name}-{model}-{run}"
        script = SHARED / "peers" / f"{name}.py"
        done = timed(
            [sys.executable, str(script), model, weights, str(self.folder / "photos"), str(output)], self.folder
        )
        if done.code:
            sys.exit(f"{name} failed:\n{done.err[-2000:]}")
        said = json.loads(done.out.splitlines()[-1])
        self.log(
            tool=name, model=model, seconds=round(done.seconds, 2), said=said, agreement=self._agreement(output, model)
        )
        return done.seconds

    def _agreement(self, output: Path, model: str) -> float:
        """Return the share of photos to which a peer's class is also ours, of the last night that labelled with this model."""
        labels = sorted((self.folder / "store" / "labels").glob(f"{model}-run*"), key=lambda path: path.stat().st_mtime)
        if not labels:
            return float("nan")
        ours = pq.read_table(labels[-1], columns=["image_id", "class_index"]).to_pydict()
        theirs = pq.read_table(output, columns=["image_id", "label"]).to_pydict()
        known = dict(zip(ours["image_id"], ours["class_index"], strict=True))
        same = sum(known[key] == value for key, value in zip(theirs["image_id"], theirs["label"], strict=True))
        return round(same / self.num_images, 4)

    def _nightshift(self, command: str, model: str, night: str, *arguments: str, watch: bool = False) -> Finished:
        config = self.folder / f"{night}.yaml"
        config.write_text(yaml.safe_dump(_config(self.folder, model, night)))
        line = [str(Path(sys.executable).parent / "nightshift"), command, str(config), "--json", *arguments]
        done = timed(line, self.folder, watch)
        if done.code:
            sys.exit(f"{' '.join(line)} ended with {done.code}:\n{done.err[-3000:]}")
        return done

    def log(self, **values: Any) -> None:
        """Print a measurement and keep it."""
        line = json.dumps({"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "images": self.num_images, **values})
        print(line, flush=True)
        with self._log.open("a") as file:
            file.write(line + "\n")


def _config(folder: Path, model: str, night: str) -> dict[str, Any]:
    return {
        "store": str(folder / "store"),
        "input": {"url": str(folder / "photos"), "name": night, "image_column": "image", "id_column": "image_id"},
        "model": {"name": model, "builder": model, "weights": str(_weights(folder, model)), "classes": str(CLASSES)},
        "train": {"mode": "none"},
    }


def _weights(folder: Path, model: str) -> Path:
    """Return real weights, or those that the peers make from the seed 0."""
    if model == "mobilenet_v2":
        return PRETRAINED
    path = folder / f"{model}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(getattr(torchvision.models, model)().state_dict(), path)
    return path


def _steady(ledger: list[Path]) -> float | None:
    """Return images per second between the first and the last commit: without start and end of the process."""
    times = [path.stat().st_mtime for path in ledger]
    images = sum(row[0] for path in ledger[1:] for row in json.loads(path.read_text())["segments"].values())
    return round(images / (times[-1] - times[0]), 1) if len(times) > 1 else None


def measure(bench: Bench, models: list[str], peers: list[str], runs: int) -> None:
    """Run everything in turn and print the ratios and their medians."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for model in models:
        bench.adopt(model)
        bench.ours(model, f"{model}-cold")
        found = limits(str(bench.folder / "store"), model, bench.folder / "photos")
        bench.log(tool="limits", model=model, **found)
    for run in range(runs):
        for model in models:
            ours = bench.ours(model, f"{model}-run{run}")
            for peer in peers:
                theirs = bench.peer(peer, model, run)
                ratios.setdefault((model, peer), []).append(theirs / ours)
                print(f"run {run}: {model} against {peer}: {theirs / ours:.2f}", flush=True)
    for (model, peer), values in ratios.items():
        target, median = TARGETS[model][peer], statistics.median(values)
        print(f"{model:<14} {peer:<16} median {median:5.2f} of {len(values)} run(s), target {target:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--log", type=Path, default=Path("bench.jsonl"), help="lines are appended (default: ./bench.jsonl)"
    )
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"the real photos and the peers are not there ({SHARED})")
    print(f"{platform.platform()}, {platform.processor()}, Python {platform.python_version()}")
    subprocess.run(["lscpu"], check=False, stdout=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as name:
        measure(Bench(Path(name), options.log.absolute(), options.images), options.models, options.peers, options.runs)


if __name__ == "__main__":
    main()
