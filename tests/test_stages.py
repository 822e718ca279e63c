"""From where trainings start, each command a process of its own: code of one's own, a second stage, another size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

OWN_CODE = """
from torch import nn

def tiny(num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )
"""


@pytest.fixture
def command(tmp_path, class_folders):
    """Return what runs one command in a folder with pictures and `mynets.py`, and gives its exit code and last words."""
    class_folders(tmp_path / "images")
    (tmp_path / "mynets.py").write_text(OWN_CODE)
    document = {
        "store": "store",
        "input": {"url": "images", "shard_images": 40},
        "model": {"name": "own", "builder": "mynets:tiny", "transforms": {"resize_px": 9, "crop_px": 9}},
        "train": {"mode": "scratch", "epochs": 1, "batch_size": 8, "workers": 2, "sanity": False},
        "cluster": {"num_cpus": 2},
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(document))

    def run(name, *overrides):
        arguments = [part for override in overrides for part in ("--set", override)]
        script = Path(sys.executable).parent / "nightshift"
        ended = subprocess.run(
            [script, name, "night.yaml", "--json", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        return ended.returncode, json.loads(ended.stdout.splitlines()[-1]) if ended.stdout else {}, ended.stderr

    return run


def test_code_of_ones_own_trains_and_labels_and_goes_on_in_a_second_stage(command, tmp_path):
    code, record, errors = command("train")
    assert code == 0, errors
    first = record["model"]
    manifest = json.loads((tmp_path / "store/models" / first.replace("@", "/") / "bundle.json").read_text())
    assert (manifest["builder"], len(manifest["code_sha256"])) == ("mynets:tiny", 64)

    code, record, errors = command("label")
    assert (code, record["labelled"]) == (0, 69), errors

    code, record, errors = command("train", "train.mode=head", "model.weights=own@production")
    assert code == 0, errors
    assert record["features_computed"] == 69
    assert record["model"] != first

    code, record, errors = command("label", "model.builder=resnet18")
    assert code == 2
    assert (
        f"bundle {first} is built by mynets:tiny, code that is only run when the config names it" in record["outcome"]
    )


def test_what_the_network_cannot_take_is_refused_before_an_image_is_read(command, tmp_path):
    code, record, errors = command("train", "model.builder=alexnet", "model.transforms={}", "input.size_px=40")
    assert code == 2, errors
    assert "an input of 40 pixels does not fit alexnet in training" in record["outcome"]
    assert "the smallest above it that does is 63" in record["outcome"]
    assert not (tmp_path / "store/features").exists()
    code, record, errors = command("train", "model.weights=w.safetensors")
    assert code == 2, errors
    assert "train.mode scratch starts from nothing" in record["outcome"]
