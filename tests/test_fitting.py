import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stopping import Stopped, StoppingAfter

from pipeline import zoo
from pipeline.bundle import load_bundle
from pipeline.checkpoints import Checkpoints
from pipeline.engine import TorchEngine, normalize
from pipeline.errors import ModelError
from pipeline.fitting import OnPixels, _course, fit, start_network
from pipeline.heads import head_of
from pipeline.mixing import mixed
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.storage import open_storage
from pipeline.temperature import fit_temperature
from pipeline.transforms import Transforms

TEN = tuple("abcdefghij")
SMALL = {"resize_px": 9, "crop_px": 8}
WIDE = {"resize_px": 33, "crop_px": 32}
NARROW = {"width_mult": 0.25}
# Backbones with random weights: with BatchNorm and dropout, and with a convolution for a head.
BACKBONES = {"mobilenet_v2": NARROW, "squeezenet1_1": {}}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Safetensors files of both backbones with random weights, moved away from where they start."""
    folder = tmp_path_factory.mktemp("weights")
    for builder, arguments in BACKBONES.items():
        torch.manual_seed(5)
        net = zoo.build(builder, arguments, 20).train()
        with torch.no_grad():
            net(torch.randn(16, 3, 32, 32))  # BatchNorm statistics that are not 0 and 1
        save_file(net.state_dict(), folder / f"{builder}.safetensors")
    return folder


@pytest.fixture
def make(tmp_path, class_folders, training_task):
    """Return a task on small folders of pictures, in a store of its own; pictures and tables are made once."""

    def task(train, model, where="store", classes=("cat", "dog", "mug"), num=None, size_px=None):
        images = tmp_path / f"images-{len(classes)}"
        if not images.exists():
            sizes = (9, 8) if model.get("transforms") == SMALL else (36, 34)
            class_folders(images, num or {"train": 6, "val": 2}, classes, sizes)
        return training_task(images, tmp_path / where, train, model, size_px=size_px)

    return task


def run(task, pulse=None):
    return fit(task, Seat(), lambda module: module, pulse or Pulse())


def bundle_of(task, result):
    return load_bundle(open_storage(task.store, task.storage), task.model.name, result["version"])


def losses(result):
    return [
        [record[key] for key in ("train_loss", "train_top1", "val_loss", "val_top1")] for record in result["history"]
    ]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


LINEAR = {"builder": "linear", "transforms": SMALL}
SCRATCH = {"mode": "scratch", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2}


def pretrained(weights, builder):
    path = str(weights / f"{builder}.safetensors")
    return {"builder": builder, "arguments": BACKBONES[builder], "weights": path, "transforms": WIDE}


def test_training_learns_and_seals_what_it_learned(make):
    task = make(SCRATCH | {"epochs": 12}, {"builder": "lab_cnn", "transforms": SMALL})
    result = run(task)
    bundle = bundle_of(task, result)
    assert [record["epoch"] for record in result["history"]] == list(range(1, 13))
    assert result["history"][-1]["val_top1"] == 1.0
    assert (result["num_train"], result["num_val"]) == (18, 6)
    assert bundle.architecture.classes.names == ("cat", "dog", "mug")
    assert bundle.architecture.head == "native"
    black = np.zeros((1, 8, 8, 3), np.uint8)
    greys = np.concatenate([black + 30, black + 120, black + 210])
    assert TorchEngine(bundle.net, bundle.architecture.transforms)(greys).argmax(1).tolist() == [0, 1, 2]


def test_the_result_lies_beside_the_bundle_and_in_the_training_s_folder(make):
    task = make(SCRATCH, LINEAR)
    result = run(task)
    store = open_storage(task.store, task.storage)
    beside = json.loads(store.read(f"models/model/{result['version']}/training.json"))
    assert beside == json.loads(store.read("trainings/key/result.json")) == result
    assert (beside["run_key"], beside["dataset"], beside["started_at"]) == (
        "key",
        "images",
        "2026-11-24T00:00:00+00:00",
    )


@pytest.mark.parametrize("builder", ["linear", "lab_cnn", "squeezenet1_1"])
def test_the_first_loss_of_a_fresh_classifier_is_that_of_guessing(make, builder):
    train = SCRATCH | {"epochs": 1, "learning_rate": 1e-12}
    transforms = WIDE if builder == "squeezenet1_1" else SMALL
    result = run(make(train, {"builder": builder, "transforms": transforms}, classes=TEN, num={"train": 4}))
    assert result["history"][0]["train_loss"] == pytest.approx(math.log(10), rel=0.1)


@pytest.mark.parametrize("mode", ["head", "finetune"])
@pytest.mark.parametrize("builder", BACKBONES)
def test_a_fresh_head_on_pretrained_weights_starts_guessing_too(make, weights, builder, mode):
    train = {"mode": mode, "epochs": 1, "batch_size": 8, "learning_rate": 1e-12}
    result = run(make(train, pretrained(weights, builder), classes=TEN, num={"train": 2}))
    assert result["history"][0]["train_loss"] == pytest.approx(math.log(10), rel=0.1)


@pytest.mark.parametrize("builder", BACKBONES)
def test_the_head_from_cached_features_is_the_head_from_the_live_backbone(make, weights, builder):
    results, nets = [], []
    for cached in (True, False):
        train = {"mode": "head", "epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "cache_features": cached}
        task = make(train, pretrained(weights, builder), where=f"store-{cached}")
        assert task.cached is cached
        results.append(run(task))
        nets.append(bundle_of(task, results[-1]).net)
    heads = [head_of(net).state_dict() for net in nets]
    assert heads[0].keys() == {"weight", "bias"}
    for key in heads[0]:
        torch.testing.assert_close(heads[0][key], heads[1][key], rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses(results[0]), losses(results[1]), atol=1e-5)
    assert results[0]["history"][-1]["train_loss"] < results[0]["history"][0]["train_loss"]


@pytest.mark.parametrize("cached", [True, False])
def test_a_frozen_backbone_is_sealed_as_it_was_statistics_included(make, weights, cached):
    train = {"mode": "head", "epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "cache_features": cached}
    task = make(train, pretrained(weights, "mobilenet_v2"))
    sealed = bundle_of(task, run(task)).net.state_dict()
    given = load_file(weights / "mobilenet_v2.safetensors")
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert sealed.keys() == given.keys()
    assert any("running_mean" in key for key in given)
    assert [key for key in sealed if key not in head and not torch.equal(sealed[key], given[key])] == []
    assert sealed["classifier.1.weight"].shape == (3, 1280)


def test_finetuning_moves_weights_and_statistics(make, weights):
    task = make({"mode": "finetune", "epochs": 1, "batch_size": 8}, pretrained(weights, "mobilenet_v2"))
    sealed = bundle_of(task, run(task)).net.state_dict()
    given = load_file(weights / "mobilenet_v2.safetensors")
    for key in ("features.0.0.weight", "features.0.1.running_mean"):
        assert not torch.equal(sealed[key], given[key])


CASES = {
    "scratch": lambda weights: (SCRATCH, LINEAR),
    "finetune": lambda weights: (SCRATCH | {"mode": "finetune"}, pretrained(weights, "mobilenet_v2")),
    "head": lambda weights: (SCRATCH | {"mode": "head"}, pretrained(weights, "squeezenet1_1")),
    "live": lambda weights: (SCRATCH | {"mode": "head", "cache_features": False}, pretrained(weights, "mobilenet_v2")),
}


AUGMENT = {
    "crop_area": [0.2, 1], "flip": "horizontal", "color": 0.2, "rotate_degrees": 5, "trivial": True, "erase": 0.3,
    "mixup": 0.2, "cutmix": 1.0,
}  # fmt: skip
CASES["augmented"] = lambda weights: (
    SCRATCH | {"augment": AUGMENT, "balance": "sampling", "average": 0.9, "schedule": "cosine", "label_smoothing": 0.1},
    {"builder": "lab_cnn", "transforms": SMALL},
)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_training_that_continues_seals_the_very_same_bundle(make, weights, case):
    train, model = CASES[case](weights)
    expected = run(make(train, model, where="whole"))
    task = make(train | {"checkpoint_steps": 1}, model, where="killed")
    with pytest.raises(Stopped):
        run(task, StoppingAfter(18 + 9))  # in the second step of the second epoch
    checkpoints = Checkpoints(open_storage(task.store, task.storage), task.run_key)
    assert checkpoints.newest().step == 3
    result = run(task)
    assert result["version"] == expected["version"]
    assert losses(result) == losses(expected)


def test_a_training_killed_before_it_sealed_seals_without_training_again(make):
    task = make(SCRATCH | {"checkpoint_steps": 1}, LINEAR)
    result, store, pulse = run(task), open_storage(task.store, task.storage), Pulse()
    for entry in [*store.list("models"), store.stat("trainings/key/result.json")]:
        store.delete(entry.path)
    assert run(task, pulse) == result
    assert (pulse.examples, pulse.steps) == (18 * 3, 0)
    assert bundle_of(task, result).version == result["version"]


def test_other_ranks_than_0_leave_nothing_in_the_store(make):
    task = make(SCRATCH, LINEAR)
    store = open_storage(task.store, task.storage)
    before = {entry.path for entry in store.list()}
    assert fit(task, Seat(1, 2), lambda module: module, Pulse()) is None
    assert {entry.path for entry in store.list()} == before


def test_the_fresh_parts_depend_on_the_seed_and_on_nothing_else(make, weights):
    for train, model in (CASES["scratch"](weights), CASES["finetune"](weights)):
        task = make(train, model)
        store = open_storage(task.store, task.storage)
        first = start_network(task, store).net
        torch.rand(7)
        assert same(first, start_network(task, store).net)
        assert not same(first, start_network(replace(task, seed=1), store).net)


def test_held_out_images_of_unknown_classes_are_no_part_of_validation(make, tmp_path, class_folders):
    task = make(SCRATCH, LINEAR)
    class_folders(tmp_path / "images-3", {"val": 2}, ("emu",))
    task = make(SCRATCH, LINEAR)
    assert task.classes == ("cat", "dog", "mug")
    assert run(task)["num_val"] == 6


AUXILIARY = {"inception_v3": ["AuxLogits.fc"], "googlenet": ["aux1.fc2", "aux2.fc2"]}


@pytest.fixture(scope="session")
def auxiliary_weights(tmp_path_factory):
    """Safetensors files of both networks that have auxiliary classifiers, of 20 classes, with all of them."""
    folder = tmp_path_factory.mktemp("auxiliary")
    for builder in AUXILIARY:
        torch.manual_seed(6)
        net = zoo.build(builder, {"aux_logits": True, "init_weights": True}, 20)
        save_file(net.state_dict(), folder / f"{builder}.safetensors")
    return folder


@pytest.mark.parametrize(("builder", "size_px"), [("inception_v3", 299), ("googlenet", 64)])
@pytest.mark.parametrize("mode", ["scratch", "finetune", "head"])
def test_auxiliary_classifiers_learn_with_the_network_and_are_sealed_with_it(
    make, auxiliary_weights, builder, size_px, mode
):
    weights = None if mode == "scratch" else str(auxiliary_weights / f"{builder}.safetensors")
    sizes = {"resize_px": size_px, "crop_px": size_px}
    model = {"builder": builder, "transforms": sizes, "weights": weights, "arguments": {"aux_logits": True}}
    task = make(
        {"mode": mode, "epochs": 1, "batch_size": 2, "learning_rate": 1e-2, "sanity": False},
        model,
        num={"train": 1, "val": 1},
    )
    start = start_network(task, open_storage(task.store, task.storage)).net.state_dict()
    sealed = bundle_of(task, run(task)).net.state_dict()
    assert sealed.keys() == start.keys()
    for layer in AUXILIARY[builder]:
        assert sealed[f"{layer}.weight"].shape[0] == 3
        assert torch.equal(sealed[f"{layer}.weight"], start[f"{layer}.weight"]) is (mode == "head")
    assert not torch.equal(sealed["fc.weight"], start["fc.weight"])


def test_an_input_that_training_cannot_take_is_refused_before_the_first_image(make, auxiliary_weights, tmp_path):
    model = {
        "builder": "inception_v3",
        "weights": str(auxiliary_weights / "inception_v3.safetensors"),
        "transforms": WIDE,
    }
    for mode, smallest in (("finetune", 299), ("head", 75)):
        with pytest.raises(ModelError, match=f"32 pixels does not fit inception_v3.* is {smallest}"):
            make({"mode": mode}, model, num={"train": 1})
    assert not (tmp_path / "store" / "features").exists()


def test_one_image_per_worker_and_step_is_refused_where_batch_norms_cannot_take_it(make, weights):
    model = pretrained(weights, "mobilenet_v2")
    with pytest.raises(ModelError, match="cannot train on one image at a time"):
        make({"mode": "finetune", "batch_size": 2, "workers": 2}, model, num={"train": 1})
    with pytest.raises(ModelError, match="cannot train on one image at a time"):
        make({"mode": "finetune", "batch_size": 8, "workers": 2, "accumulate": 4}, model, num={"train": 1})
    task = make({"mode": "finetune", "batch_size": 64, "epochs": 1}, model, num={"train": 1})
    assert run(replace(task, train=task.train.model_copy(update={"sanity": False})))["num_train"] == 3
    few = Seat(0, 2, "cpu", lambda sums: sums)
    with pytest.raises(ModelError, match="cannot train on one image at a time"):
        fit(task, few, lambda module: module, Pulse())


@pytest.mark.parametrize("second", ["finetune", "head"])
def test_a_second_stage_goes_on_from_the_first_ones_head(make, weights, second):
    first = make(
        {"mode": "head", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2}, pretrained(weights, "mobilenet_v2")
    )
    before = run(first)
    sealed = bundle_of(first, before)
    model = {"builder": "mobilenet_v2", "weights": sealed.id}
    task = make({"mode": second, "epochs": 1, "batch_size": 8, "learning_rate": 1e-12}, model)
    start = start_network(task, open_storage(task.store, task.storage))
    net, architecture = start.net, start.architecture
    assert same(net, sealed.net)
    assert architecture == sealed.architecture  # its arguments and preprocessing, which the config does not repeat
    assert not start.fresh_head
    loss = run(replace(task, run_key="second"))["history"][0]["val_loss"]
    assert loss == pytest.approx(before["history"][-1]["val_loss"], abs=1e-5 if second == "head" else 0.2)


def test_a_second_stage_on_other_classes_gets_a_new_head(make, weights):
    first = make({"mode": "head", "epochs": 1, "batch_size": 8}, pretrained(weights, "squeezenet1_1"))
    sealed = bundle_of(first, run(first))
    task = make({"mode": "finetune", "epochs": 1}, {"builder": "squeezenet1_1", "weights": sealed.id}, classes=TEN)
    start = start_network(task, open_storage(task.store, task.storage))
    net, architecture = start.net, start.architecture
    assert (head_of(net).out_features, architecture.head, start.fresh_head) == (10, "linear", True)
    assert torch.equal(net.features[0].weight, sealed.net.features[0].weight)


def test_a_second_stage_after_scratch_keeps_a_native_head(make):
    first = make(SCRATCH | {"epochs": 1}, {"builder": "lab_cnn", "transforms": SMALL})
    sealed = bundle_of(first, run(first))
    task = make({"mode": "finetune"}, {"builder": "lab_cnn", "weights": sealed.id})
    start = start_network(task, open_storage(task.store, task.storage))
    net, architecture = start.net, start.architecture
    assert (architecture.head, same(net, sealed.net)) == ("native", True)


def test_the_input_size_of_the_config_is_what_is_trained_and_sealed(make, weights):
    task = make(
        {"mode": "finetune", "epochs": 1, "batch_size": 8},
        pretrained(weights, "mobilenet_v2") | {"transforms": {}},
        size_px=48,
    )
    transforms = bundle_of(task, run(task)).architecture.transforms
    assert (transforms.resize_px, transforms.crop_px) == (55, 48)


def test_frozen_parts_keep_weights_and_statistics_and_the_others_learn(make, weights):
    train = {"mode": "finetune", "epochs": 1, "batch_size": 8, "freeze": ["features.0", "features.1"]}
    sealed = bundle_of(task := make(train, pretrained(weights, "mobilenet_v2")), run(task)).net.state_dict()
    given = load_file(weights / "mobilenet_v2.safetensors")
    same_as_given = {key for key in given if torch.equal(sealed[key], given[key]) and "num_batches" not in key}
    frozen = {key for key in given if key.startswith(("features.0.", "features.1.")) and "num_batches" not in key}
    assert any("running_mean" in key for key in frozen)
    assert frozen <= same_as_given
    assert not any(key.startswith("features.2.") for key in same_as_given)


def test_a_part_that_is_not_there_names_those_that_are(make, weights):
    task = make({"mode": "finetune", "freeze": ["feature.0"]}, pretrained(weights, "mobilenet_v2"))
    with pytest.raises(ModelError, match=r"train.freeze: MobileNetV2 has no part 'feature.0'; it has features.0"):
        run(task)


def test_the_body_learns_at_its_own_rate(make, weights):
    train = {"mode": "finetune", "epochs": 1, "batch_size": 64, "learning_rate": 1e-2, "body_learning_rate": 1e-9}
    sealed = bundle_of(task := make(train, pretrained(weights, "mobilenet_v2")), run(task)).net.state_dict()
    start = start_network(task, open_storage(task.store, task.storage)).net.state_dict()
    moves = {
        key: (sealed[key] - start[key]).abs().max().item() for key in ("features.0.0.weight", "classifier.1.weight")
    }
    assert moves["features.0.0.weight"] < 1e-7
    assert moves["classifier.1.weight"] > 1e-3


@pytest.mark.parametrize("how", [{"channels_last": True}, {"precision": "bf16", "channels_last": True}])
def test_other_layouts_and_precisions_learn_the_same(make, weights, how):
    train = {"mode": "finetune", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    results = [
        run(make(train | settings, pretrained(weights, "squeezenet1_1"), where=f"store-{len(settings)}"))
        for settings in ({}, how)
    ]
    np.testing.assert_allclose(losses(results[1]), losses(results[0]), atol=0.2 if "precision" in how else 1e-3)


def test_batches_and_augmentation_are_the_same_for_any_number_of_workers(make):
    task = make(SCRATCH | {"augment": AUGMENT}, {"builder": "lab_cnn", "transforms": SMALL})
    store = open_storage(task.store, task.storage)
    course, augment = _course(task, store, start_network(task, store)), task.train.augment
    order = course.order(1)

    def batch(rank, world):
        positions = order.positions(0, rank, world)
        inputs, classes = course.inputs.begin(order.stream[positions], positions, 1)()
        return mixed(inputs, classes, order.lanes(0, rank, world), augment, task.seed, 1, 0)

    whole, targets = batch(0, 1)
    assert whole.shape == (9, 8, 8, 3)
    for world in (2, 4, 8):
        parts = [batch(rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole)
        for name in ("classes", "others", "shares"):
            assert torch.equal(torch.cat([getattr(part, name) for _, part in parts]), getattr(targets, name))
    assert not torch.equal(batch(0, 1)[0], course.inputs.gather(order.batch(0, 0, 1))[0])


def test_validation_pictures_are_never_augmented(make):
    train = SCRATCH | {"epochs": 1, "learning_rate": 1e-12}
    plain, augmented = (
        run(make(train | more, LINEAR, where=f"store-{len(more)}"))["history"][0] for more in ({}, {"augment": AUGMENT})
    )
    assert augmented["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-6)
    assert augmented["train_loss"] != pytest.approx(plain["train_loss"], abs=1e-6)


@pytest.mark.parametrize("balance", ["sampling", "loss"])
def test_rare_classes_come_more_often_or_count_more(make, class_folders, tmp_path, balance):
    class_folders(tmp_path / "images-3", {"train": 1, "val": 4}, ("cat",))
    class_folders(tmp_path / "images-3", {"train": 30, "val": 4}, ("dog", "mug"))
    task = make(SCRATCH | {"epochs": 2, "learning_rate": 3e-3, "balance": balance}, LINEAR)
    assert run(task)["num_train"] == 61
    store = open_storage(task.store, task.storage)
    course = _course(task, store, start_network(task, store))
    if balance == "sampling":
        drawn = np.concatenate([course.order(0).batch(step, 0, 1) for step in range(course.steps)])
        assert np.bincount(course.inputs.targets[drawn]).tolist() == [20, 20, 20]
    else:
        assert course.weights.tolist() == pytest.approx([61 / 3, 61 / 90, 61 / 90])


def test_a_compiled_network_trains_and_its_weights_keep_their_names(make, monkeypatch):
    calls = []

    class Compiled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, pixels):
            calls.append(len(pixels))
            return self.module(pixels)

    monkeypatch.setattr(torch, "compile", Compiled)
    plain, compiled = (
        make(SCRATCH | {"compile": compile, "sanity": False}, LINEAR, where=f"store-{compile}")
        for compile in (False, True)
    )
    results = [run(task) for task in (plain, compiled)]
    assert sum(calls) == 18 * 3, "only steps are compiled for"
    assert results[0]["version"] == results[1]["version"]


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_that_emulates_bfloat16_is_said(make, monkeypatch, has):
    monkeypatch.setattr("pipeline.fitting.has_bf16", lambda flags: has)
    pulse = Pulse()
    run(make(SCRATCH | {"epochs": 1, "precision": "bf16", "sanity": False}, LINEAR), pulse)
    assert [warning.partition(":")[0] for warning in pulse.warnings] == ["precision"] * (not has)


def test_weights_that_do_not_fit_the_builder_are_refused(make, weights):
    model = pretrained(weights, "mobilenet_v2") | {"arguments": {}}
    with pytest.raises(ModelError, match=r"model.weights: .*does not fit MobileNetV2"):
        run(make({"mode": "finetune"}, model))


def test_normalising_belongs_to_the_network():
    transforms = Transforms(8, 8)
    net = zoo.build("linear", {"size_px": 8, "in_channels": 3}, 2)
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    torch.testing.assert_close(OnPixels(net, transforms)(pixels), net(normalize(pixels, transforms)))


def test_a_head_on_real_weights_learns_what_is_easy(shared_data, make):
    """Pictures of one grey per class: guessing would be right for a third."""
    path = str(shared_data / "weights/squeezenet1_1_imagenet.safetensors")
    model = {"builder": "squeezenet1_1", "weights": path, "transforms": WIDE}
    result = run(make({"mode": "head", "epochs": 20, "batch_size": 8, "learning_rate": 1e-2}, model))
    assert result["history"][-1]["val_top1"] > 0.9


def test_the_temperature_is_fitted_on_validation_images_as_the_reference_answers(make):
    train = {"mode": "scratch", "epochs": 40, "batch_size": 8, "learning_rate": 0.01}
    task = make(train, {"builder": "linear", "transforms": SMALL}, num={"train": 6, "val": 8})
    bundle = bundle_of(task, run(task))
    start = start_network(task, open_storage(task.store, task.storage))
    course = _course(task, open_storage(task.store, task.storage), start)
    pixels, classes = course.inputs.gather(course.val)
    logits = TorchEngine(bundle.net, bundle.architecture.transforms)(pixels.numpy())
    assert bundle.temperature == fit_temperature(logits, classes.numpy())
    assert bundle.temperature != 1.0
    few = make(
        train | {"epochs": 1}, {"builder": "linear", "transforms": SMALL}, "few", TEN[:4], {"train": 6, "val": 2}
    )
    assert bundle_of(few, run(few)).temperature == 1.0
