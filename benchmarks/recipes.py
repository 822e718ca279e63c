"""What the recipes reach on real pictures, over three seeds: `.venv/bin/python benchmarks/recipes.py`, two hours on 2 cores.

    .venv/bin/python benchmarks/recipes.py --only head squeezenet --seeds 1 2 3     # minutes: cached features

Each training is `nightshift train` as a user calls it. A line of JSON each, then the mean with its 95 % interval by Student's t.
Of flowers5, which has no test split, validation is reported (250 photos, by the sealed weights); of CIFAR-10 its 2,000 test
images, judged by `nightshift evaluate`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 95 %, of so many values

COLUMNS = {"image_column": "image", "id_column": "image_id", "label_column": "label", "split_column": "split"}
FLOWERS, CIFAR = ({"url": str(DATA / name), **COLUMNS} for name in ("flowers5", "cifar10"))
MOBILENET, SQUEEZENET = (
    {"builder": name, "weights": str(DATA / f"weights/{name}_imagenet.safetensors")}
    for name in ("mobilenet_v2", "squeezenet1_1")
)
FINETUNE = {"preset": "finetune", "epochs": 5, "channels_last": True, "workers": 2}
FROM_NOTHING = {
    "mode": "scratch", "epochs": 10, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4,
    "schedule": "one_cycle", "label_smoothing": 0.1, "channels_last": True, "workers": 2,
    "augment": {"crop_area": [0.5, 1.0], "flip": "horizontal"},
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "head": {"input": FLOWERS, "model": MOBILENET, "train": {"preset": "transfer"}},
    "squeezenet": {"input": FLOWERS, "model": SQUEEZENET, "train": {"preset": "transfer"}},
    "finetune": {"input": FLOWERS, "model": MOBILENET, "train": FINETUNE},
    "linear": {
        "input": CIFAR,
        "model": {"builder": "linear"},
        "train": {"preset": "lab", "epochs": 15, "learning_rate": 1e-4},
    },
    "lab_cnn": {"input": CIFAR | {"size_px": 32}, "model": {"builder": "lab_cnn"}, "train": {"preset": "lab"}},
    "resnet18_cifar": {"input": CIFAR, "model": {"builder": "resnet18_cifar"}, "train": FROM_NOTHING},
}


def measure(folder: Path, recipe: str, seed: int) -> dict[str, Any]:
    """Train once; return the accuracy, the curves and how long it took."""
    store, config = folder / "store", folder / f"{recipe}-{seed}.json"  # JSON is YAML too
    chosen = RECIPES[recipe]
    model = chosen["model"] | {"name": f"{recipe}-{seed}"}
    config.write_text(json.dumps({**chosen, "model": model, "store": str(store), "seed": seed}))
    record = nightshift("train", config)
    bundle = store / "models" / record["model"].replace("@", "/")
    training = json.loads((bundle / "training.json").read_text())
    top1, images = training["history"][training["sealed_epoch"] - 1]["val_top1"], training["num_val"]
    if chosen["input"]["url"] == CIFAR["url"]:
        nightshift("evaluate", config)
        evaluation = json.loads((bundle / "evaluation.json").read_text())
        top1, images = evaluation["top1"], evaluation["num_images"]
    seconds = sum(stage["seconds"] for stage in record["stages"] if stage["name"] == "train")
    curve = [(epoch["train_top1"], epoch["val_top1"]) for epoch in training["history"]]
    return {"recipe": recipe, "seed": seed, "top1": top1, "images": images, "train_s": seconds, "curve": curve}


def nightshift(*arguments: Any) -> dict[str, Any]:
    """Run a command and return its record."""
    command = [sys.executable, "-m", "jobs", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nightshift {arguments[0]}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def interval(values: list[float]) -> str:
    """Return the mean and half its 95 % interval, in per cent."""
    if len(values) not in STUDENT:
        return f"{mean(values):.1%}"
    half = STUDENT[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.1%} +- {100 * half:.1f} points"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"the real photos and weights are not there ({DATA})")
    with tempfile.TemporaryDirectory(prefix="nightshift-recipes-") as folder:
        for recipe in options.only:
            found = []
            for seed in options.seeds:
                found.append(measure(Path(folder), recipe, seed))
                print(json.dumps(found[-1]), flush=True)
            print(f"{recipe}: {interval([each['top1'] for each in found])}", flush=True)


if __name__ == "__main__":
    main()
