import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_config
from inprocess import InThisProcess
from safetensors.torch import save_file

from jobs.config import Config
from pipeline import zoo
from pipeline.calibration import calibration_photos
from pipeline.errors import TransientError
from pipeline.registry import production, promote_first, versions
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

SMALL = {"resize_px": 9, "crop_px": 8}
NUM = 3 * (14 + 5 + 4)  # images of `class_folders`
NUM_TRAIN = 3 * 14


@pytest.fixture
def pictures(tmp_path, class_folders):
    return class_folders(tmp_path / "images")


@pytest.fixture
def config(tmp_path, pictures):
    """Return a config that trains a linear model on the pictures; sections are merged over it."""

    def make(**sections):
        document = {
            "store": str(tmp_path / "store"),
            "input": {"url": str(pictures), "shard_images": 10},
            "model": {"name": "tiny", "builder": "linear", "transforms": SMALL},
            "train": {"mode": "scratch", "epochs": 5, "batch_size": 8},
        }
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section}
        return Config.model_validate(document)

    return make


@pytest.fixture
def head(tmp_path):
    """The sections of a head on a small network with weights of its own."""
    torch.manual_seed(0)
    net = zoo.build("lab_cnn", {"size_px": 8, "in_channels": 3}, 4)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    return {"model": {"builder": "lab_cnn", "weights": str(tmp_path / "w.safetensors")}, "train": {"mode": "head"}}


@pytest.fixture
def store(tmp_path):
    return open_storage(str(tmp_path / "store"), StorageSettings())


@pytest.fixture(autouse=True)
def trainer(request, monkeypatch):
    fake = InThisProcess()
    if "chaos" not in request.keywords:
        request.getfixturevalue("local_ray")
        monkeypatch.setattr("cluster.trainer.Trainer", lambda told: fake)
    return fake


@pytest.fixture
def bars(monkeypatch):
    """Progress of the stages that `train` showed."""
    import jobs.train

    shown, stage = [], jobs.train.stage  # the examples' are shown by what comes before

    def watched(*arguments):
        manager = stage(*arguments)
        enter = manager.__enter__

        class Watching:
            def __enter__(self):
                shown.append(enter())
                return shown[-1]

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Watching()

    monkeypatch.setattr("jobs.train.stage", watched)
    monkeypatch.setattr("jobs.preparation.stage", watched)
    return shown


def stages(ended):
    return {stage["name"]: stage["images"] for stage in ended.record["stages"]}


def result(store):
    """Return what the one training of the store recorded."""
    paths = [entry.path for entry in store.list("trainings") if entry.path.endswith("/result.json")]
    assert len(paths) == 1
    return json.loads(store.read(paths[0]))


def test_the_first_training_makes_examples_a_bundle_and_production(nightshift, config, store, bars):
    ended = nightshift(config(), "train")
    version = result(store)["version"]
    assert ended.code == 0
    assert ended.record["model"] == f"tiny@{version}"
    assert ended.record["examples_computed"] == NUM
    assert stages(ended) == {"plan": NUM, "examples": NUM, "train": NUM_TRAIN * 5}
    assert [(bar.name, bar.done, bar.total) for bar in bars] == [
        ("examples", NUM, NUM),
        ("train", NUM_TRAIN * 5, NUM_TRAIN * 5),
    ]
    assert production(store, "tiny") == version
    assert f"tiny@{version} is production" in ended.said
    assert f"5 epochs of {NUM_TRAIN} images on 1 worker(s): training" in ended.said
    assert f"{'train':<9} {NUM_TRAIN * 5} images in" in ended.said
    assert "warning" not in ended.said


def test_validation_photos_lie_beside_the_bundle(nightshift, config, store, pictures):
    version = nightshift(config(), "train").record["model"].partition("@")[2]
    photos = calibration_photos(store, "tiny", version, lambda: pytest.fail("training kept some"))
    assert sorted(photos) == sorted(path.read_bytes() for path in pictures.glob("val/*/*"))


def test_photos_that_cannot_be_kept_do_not_fail_the_training(nightshift, config, store, monkeypatch):
    def refuses(*_):
        raise TransientError("503")

    monkeypatch.setattr("pipeline.calibration.keep_photos", refuses)
    ended = nightshift(config(), "train")
    assert (ended.code, "warning: no photos are kept beside the model: 503" in ended.said) == (0, True)


def test_a_finished_training_says_so_and_trains_nothing(nightshift, config, trainer, local_ray):
    first = nightshift(config(), "train")
    sessions = local_ray.sessions
    ended = nightshift(config(), "train")
    assert ended.code == 0
    assert f"this training is finished already, as {first.record['model']}; --again repeats it" in ended.said
    assert ended.record["model"] == first.record["model"]
    assert (ended.record["examples_computed"], ended.record["stages"]) == (0, [])
    assert len(trainer.tasks) == 1
    assert local_ray.sessions == sessions  # not even a session was started


def test_again_starts_over_and_ends_at_the_same_model(nightshift, config, trainer):
    first = nightshift(config(), "train")
    ended = nightshift(config(), "train", "--again")
    assert (ended.code, ended.record["model"]) == (0, first.record["model"])
    assert stages(ended) == {"train": NUM_TRAIN * 5}
    assert len(trainer.tasks) == 2


def test_the_backbone_runs_once_over_the_images(nightshift, config, head):
    first = nightshift(config(**head), "train")
    assert (first.code, first.record["features_computed"]) == (0, NUM)
    assert stages(first) == {"plan": NUM, "features": NUM, "train": NUM_TRAIN * 5}
    for arguments in ((), ("--again",), ("--set", "train.epochs=2"), ("--set", "seed=3")):
        ended = nightshift(config(**head), "train", *arguments)
        assert (ended.code, ended.record["features_computed"]) == (0, 0)
        assert "features" not in stages(ended)
        assert f"features of 0 images computed, of {NUM} found in the store" in ended.said


def test_new_images_need_features_and_the_others_do_not(nightshift, config, head, pictures, class_folders, tmp_path):
    nightshift(config(**head), "train")
    class_folders(tmp_path / "more", {"train": 2})
    for name in ("cat", "dog"):
        (tmp_path / f"more/train/{name}/000.png").rename(pictures / f"train/{name}/new.png")
    assert nightshift(config(**head), "plan").code == 0
    ended = nightshift(config(**head), "train")
    assert (ended.code, ended.record["features_computed"]) == (0, 2)
    assert stages(ended) == {"features": 2, "train": (NUM_TRAIN + 2) * 5}


def test_other_bytes_under_the_same_name_are_other_weights(nightshift, config, head, tmp_path):
    first = nightshift(config(**head), "train")
    torch.manual_seed(1)
    net = zoo.build("lab_cnn", {"size_px": 8, "in_channels": 3}, 4)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for mode, computed in (("head", NUM), ("finetune", None)):
        ended = nightshift(config(**head | {"train": {"mode": mode}}), "train")
        assert (ended.code, ended.record.get("features_computed")) == (0, computed)
        assert "finished already" not in ended.said
        assert ended.record["model"] != first.record["model"]


def test_another_input_size_is_another_training_on_other_features(nightshift, config, head):
    network = head | {"model": head["model"] | {"transforms": {"crop_px": None}}}
    first, second, again = (
        nightshift(config(**network, input={"size_px": size_px}), "train") for size_px in (8, 9, 8)
    )  # 9 pixels are pooled to as many as 8
    assert [ended.record["features_computed"] for ended in (first, second, again)] == [NUM, NUM, 0]
    assert first.record["model"] == again.record["model"] != second.record["model"]
    assert "finished already" in again.said
    scratch = [nightshift(config(model={"transforms": {}}, input={"size_px": size_px}), "train") for size_px in (8, 9)]
    assert ["finished already" in ended.said for ended in scratch] == [False, False]


def test_workers_are_told_the_version_that_production_was_when_the_training_began(nightshift, config, trainer):
    first = nightshift(config(), "train").record["model"]
    second = nightshift(config(train={"mode": "finetune"}, model={"weights": "tiny@production"}), "train")
    assert second.code == 0
    assert trainer.tasks[-1].model.weights == first


def test_how_a_training_is_run_does_not_make_it_another_one(nightshift, config):
    first = nightshift(config(), "train")
    same = {"workers": 2, "max_failures": 0, "cache_mb": 1, "preset": "lab", "epochs": 5}
    ended = nightshift(config(train=same), "train")
    assert "finished already" in ended.said
    assert ended.record["model"] == first.record["model"]
    for section, key, value in (("train", "batch_size", 9), ("split", "val", 0.3), ("model", "name", "other")):
        assert "finished already" not in nightshift(config(**{section: {key: value}}), "train").said


def test_a_training_does_not_replace_the_production_model(nightshift, config, store):
    first = nightshift(config(), "train")
    second = nightshift(config(train={"epochs": 1}), "train")
    assert second.record["model"] != first.record["model"]
    assert "is production" not in second.said
    assert f"production stays {first.record['model']}; nightshift promote CONFIG compares the two" in second.said
    assert f"tiny@{production(store, 'tiny')}" == first.record["model"]
    assert len(versions(store, "tiny")) == 2


def test_production_that_somebody_set_stays(nightshift, config, store):
    promote_first(store, "tiny", "chosen", "2026-01-01")
    assert nightshift(config(), "train").code == 0
    assert production(store, "tiny") == "chosen"


@pytest.mark.parametrize("lost", ["bundle.json", "weights.safetensors", ""], ids=["document", "weights", "all"])
def test_a_finished_training_whose_bundle_is_lost_is_sealed_again_from_its_checkpoint(nightshift, config, store, lost):
    first = nightshift(config(), "train")
    folder = f"models/tiny/{result(store)['version']}"
    for entry in list(store.list(folder)):
        if entry.path.endswith(lost):
            store.delete(entry.path)
    ended = nightshift(config(), "train")
    assert (ended.code, ended.record["model"]) == (0, first.record["model"])
    assert "finished already" not in ended.said
    assert stages(ended) == {"train": 0}
    assert {f"{folder}/bundle.json", f"{folder}/weights.safetensors"} <= {entry.path for entry in store.list(folder)}
    assert "finished already" in nightshift(config(), "train").said


def test_again_trains_anew_where_the_bundle_is_lost(nightshift, config, store):
    first = nightshift(config(), "train")
    for entry in list(store.list("models")):
        store.delete(entry.path)
    ended = nightshift(config(), "train", "--again")
    assert (ended.code, ended.record["model"]) == (0, first.record["model"])
    assert stages(ended) == {"train": NUM_TRAIN * 5}
    assert f"tiny@{production(store, 'tiny')}" == first.record["model"]


def test_a_killed_training_continues_and_counts_only_what_it_does(nightshift, config, store, trainer, bars):
    trainer.dies_after = NUM_TRAIN * 2 + 10
    every_step = {"checkpoint_steps": 1}
    killed = nightshift(config(train=every_step), "train")
    assert (killed.code, killed.record["model"]) == (1, None)
    assert production(store, "tiny") is None
    trainer.dies_after = None
    ended = nightshift(config(), "train")
    assert ended.code == 0
    done = NUM_TRAIN * 2 + 8  # and the first step of the third epoch
    assert f"an earlier run was stopped and left a checkpoint at {done} of 210 images; this one continues" in ended.said
    assert stages(ended) == {"train": 210 - done}
    assert (bars[-1].done, bars[-1].total) == (210 - done, 210 - done)
    assert [record["epoch"] for record in result(store)["history"]] == [1, 2, 3, 4, 5]
    whole = nightshift(config(), "train", "--again")
    assert whole.record["model"] == ended.record["model"]


def test_again_forgets_the_checkpoints_of_a_killed_training(nightshift, config, trainer):
    trainer.dies_after = NUM_TRAIN * 2 + 10
    nightshift(config(train={"checkpoint_steps": 1}), "train")
    trainer.dies_after = None
    ended = nightshift(config(), "train", "--again")
    assert "continues" not in ended.said
    assert stages(ended)["train"] == NUM_TRAIN * 5


def test_a_training_that_leaves_no_result_is_a_failure(nightshift, config, monkeypatch):
    monkeypatch.setattr(InThisProcess, "train", lambda self, task, already, advanced: None)
    ended = nightshift(config(), "train")
    assert ended.code == 1
    assert "training ended without a result; run the command again" in ended.said


def test_mode_none_adopts_without_looking_at_the_images(nightshift, config, head, tmp_path, store, local_ray):
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d"]')
    model = head["model"] | {"classes": str(tmp_path / "classes.json")}
    adopting = config(model=model, train={"mode": "none"}, input={"url": "/nowhere"})
    ended = nightshift(adopting, "train")
    assert ended.code == 0
    assert f"adopted lab_cnn as {ended.record['model']}" in ended.said
    assert f"tiny@{production(store, 'tiny')}" == ended.record["model"]
    assert (ended.record["stages"], local_ray.sessions) == ([], 0)


# What people should know of their data


def test_a_class_without_held_out_images_is_said(nightshift, config, pictures):
    for path in (pictures / "test/dog").iterdir():
        path.unlink()
    ended = nightshift(config(), "train")
    assert ended.code == 0
    assert "warning: no test image of dog: it cannot be judged there" in ended.said
    assert "no val image" not in ended.said


def test_labels_that_training_never_sees_are_said(nightshift, config, pictures, class_folders):
    class_folders(pictures, {"test": 3, "val": 1}, ("emu",))
    ended = nightshift(config(), "train")
    assert ended.code == 0
    assert "warning: 4 labels of held-out images are none that training sees: emu" in ended.said


def test_training_images_that_are_judged_on_as_well_are_left_out(nightshift, config, pictures, store):
    for name in ("000", "001"):
        (pictures / f"train/cat/twin-{name}.png").write_bytes((pictures / f"test/dog/{name}.png").read_bytes())
    ended = nightshift(config(), "train")
    assert "warning: 2 training images stand byte for byte in another split too; they are left out" in ended.said
    assert result(store)["num_train"] == NUM_TRAIN


def test_images_that_cannot_be_read_are_left_out_and_counted(nightshift, config, pictures, store):
    (pictures / "train/cat/bad.png").write_bytes(b"<html>")
    (pictures / "train/cat/empty.png").touch()
    ended = nightshift(config(), "train")
    assert ended.code == 0
    assert "2 images cannot be read and are left out; labelling lists them" in ended.said
    assert result(store)["num_train"] == NUM_TRAIN


def test_images_without_a_label_are_left_out_and_counted(nightshift, config, png, write_parquet, tmp_path, store):
    labels = ["cat", "dog", None] * 10
    images = [png(seed, mode="RGB") for seed in range(30)]
    write_parquet(tmp_path / "table/a.parquet", {"image": images, "label": labels, "split": ["train"] * 30})
    columns = {"image_column": "image", "label_column": "label", "split_column": "split"}
    ended = nightshift(config(input={"url": str(tmp_path / "table"), **columns}), "train")
    assert ended.code == 0
    assert "10 images without a label are left out" in ended.said
    assert (result(store)["num_train"], result(store)["num_val"]) == (20, 0)


# What cannot be trained on


def test_rows_that_the_filter_leaves_out_are_no_examples(nightshift, config, png, write_parquet, tmp_path, store):
    for day in (1, 2):
        table = {"image": [png(i, (9, 8), "RGB") for i in range(40)], "label": ["ant", "bee"] * 20, "price": range(40)}
        write_parquet(tmp_path / "tables" / f"day={day}" / "a.parquet", table)
    named = {"url": str(tmp_path / "tables"), "image_column": "image", "label_column": "label"}
    ended = nightshift(config(input={**named, "filter": [("day", "=", "1"), ("price", "<", 30)]}), "train")
    assert ended.code == 0
    assert "10 images are not taken by input.filter, or cannot be read, and are left out" in ended.said
    assert ended.record["examples_computed"] == 40
    whole = nightshift(config(input={**named, "filter": [("day", "=", "1")]}), "train")
    assert "are not taken by" not in whole.said
    assert (whole.code, whole.record["model"] != ended.record["model"]) == (0, True), "another training"


def refused(ended, *words):
    """Assert that a command ended with code 2, nothing trained, and said so."""
    assert ended.code == 2
    assert "train" not in stages(ended)
    for word in words:
        assert word in ended.said


def test_one_class_only_is_refused(nightshift, config, tmp_path, class_folders):
    one = class_folders(tmp_path / "one", classes=("cat",))
    refused(nightshift(config(input={"url": str(one)}), "train"), "at least two classes, and its rows hold only 'cat'")


def test_two_folders_whose_names_clean_to_one_label_are_refused(nightshift, config, tmp_path, class_folders):
    two = class_folders(tmp_path / "two", classes=("Sea_Lion", "sea lion", "cat"))
    refused(
        nightshift(config(input={"url": str(two)}), "train"),
        "the labels 'Sea_Lion' and 'sea lion' differ only in case, blanks or Unicode form; rename one",
    )


def test_nothing_to_train_on_is_refused(nightshift, config, tmp_path, class_folders):
    judged = class_folders(tmp_path / "judged", {"test": 4})
    refused(
        nightshift(config(input={"url": str(judged)}), "train"),
        "no image has a label and belongs to the split train (labels by split: {'test': 12})",
    )


def test_fewer_images_than_workers_are_refused(nightshift, config, tmp_path, class_folders):
    few = class_folders(tmp_path / "few", {"train": 1, "test": 1})
    refused(
        nightshift(config(input={"url": str(few)}, train={"workers": 4}), "train"),
        "3 training images are fewer than train.workers (4); use fewer workers",
    )


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_weights_are_needed_and_must_exist(nightshift, config, mode):
    refused(nightshift(config(train={"mode": mode}), "train"), f"train.mode {mode} starts from weights")
    ended = nightshift(config(train={"mode": mode}, model={"weights": "/nowhere/w.safetensors"}), "train")
    refused(ended, "model.weights: /nowhere/w.safetensors does not exist")


@pytest.mark.parametrize("cached", [True, False])
def test_weights_that_do_not_fit_are_refused(nightshift, config, head, cached):
    wrong = {"model": head["model"] | {"builder": "linear"}, "train": {"mode": "head", "cache_features": cached}}
    ended = nightshift(config(**wrong), "train")
    refused(ended, "does not fit Linear: has features.0.bias (and 3 more), which it does not know")


def test_an_image_that_changed_since_the_plan_is_said(nightshift, config, pictures):
    nightshift(config(), "plan")
    (pictures / "train/cat/000.png").write_bytes(b"something else")
    ended = nightshift(config(), "train")
    assert ended.code == 3
    for words in ("cannot be read for training after 1 attempt", "changed since it was planned", "`nightshift plan`"):
        assert words in ended.said


# The long one


def wait_for(condition, deadline_s=240.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.chaos
def test_a_driver_killed_in_training_continues_to_the_same_bundle(config, tmp_path):
    """The real command line: kill -9 of the driver after its first checkpoint, then the same command again."""
    train = {"epochs": 200, "workers": 2, "checkpoint_steps": 7}
    root = Path(__file__).resolve().parent.parent

    def start(name):
        made = config(train=train).model_copy(update={"store": str(tmp_path / name)})
        path = write_config(tmp_path / f"{name}.yaml", made)
        (tmp_path / name).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "jobs", "train", str(path), "--json"]
        return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(process):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1]), err

    whole, _ = end(start("whole"))
    victim = start("killed")
    checkpoints = tmp_path / "killed/trainings"
    wait_for(lambda: victim.poll() is not None or list(checkpoints.glob("*/step-*.json")))
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    record, said = end(start("killed"))
    assert victim.returncode == -signal.SIGKILL
    assert record["model"] == whole["model"]
    # Its workers outlive it by seconds, and may even have finished: what they did is not done again.
    assert "this one continues" in said or "finished already" in said
    assert sum(s["images"] for s in record["stages"] if s["name"] == "train") < NUM_TRAIN * 200
