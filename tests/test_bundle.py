import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import ALL, FAMILIES, images
from safetensors.torch import save, save_file

from pipeline import zoo
from pipeline.bundle import Architecture, fit_weights, load_bundle, parse_weights, read_weights, seal
from pipeline.classes import Classes
from pipeline.errors import ModelError
from pipeline.heads import has_linear_head, head_of
from pipeline.settings import ModelSettings
from pipeline.storage import open_storage
from pipeline.transforms import Transforms

ROOT = Path(__file__).resolve().parent.parent
CLASSES = Classes(("cat", "crane", "crane"), ("n1", "n2", "n3"))
TRANSFORMS = Transforms(10, 8, "RGB", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
LAB = Architecture("lab_cnn", {"size_px": 8, "in_channels": 3}, "native", CLASSES, TRANSFORMS)


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path / "store"), storage_settings)


@pytest.fixture
def sealed(store):
    """A bundle in the store: its network, version and folder."""
    torch.manual_seed(3)
    net = LAB.build().eval()
    version = seal(store, "m", LAB, net.state_dict(), 1.5)
    return net, version, f"models/m/{version}"


def edit(store, path, change):
    document = json.loads(store.read(path))
    change(document)
    store.write(path, json.dumps(document).encode())


def test_a_bundle_reads_back_as_what_was_sealed(store, sealed):
    net, version, _ = sealed
    bundle = load_bundle(store, "m", version)
    images = torch.randn(5, 3, 8, 8)
    assert bundle.architecture == LAB
    assert (bundle.id, bundle.temperature, bundle.net.training) == (f"m@{version}", 1.5, False)
    with torch.inference_mode():
        assert torch.equal(bundle.net(images), net(images))


READER = """
import sys, torch
from pathlib import Path
from pipeline.bundle import load_bundle
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

torch.set_num_threads(int(sys.argv[2]))
store = open_storage(sys.argv[1], StorageSettings())
for line in Path(sys.argv[1], "asked").read_text().split():
    name, version, size_px = line.split(":")
    net = load_bundle(store, name, version).net
    images = torch.randn(2, 3, int(size_px), int(size_px), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        Path(sys.argv[1], f"{name}.logits").write_bytes(net(images).numpy().tobytes())
"""


def test_logits_in_a_fresh_process_are_those_of_the_sealing_one_bit_for_bit(store, tmp_path):
    """Of every family with its own head, of some with a new one; inception's and googlenet's inputs transformed as trained."""
    expected, asked = {}, []
    new_heads = ("squeezenet1_1", "inception_v3", "googlenet", "mobilenet_v2", "densenet121")
    families = [name for name in ALL if name != "vgg11"]  # half a gigabyte, and vgg11_bn is of the same class
    for builder, head in [*((name, "native") for name in families), *((name, "linear") for name in new_heads)]:
        size_px, _, arguments = FAMILIES.get(builder, (64, 0, {}))
        settings = ModelSettings(builder=builder, arguments=arguments, weights="w.safetensors")
        arguments = zoo.builder_arguments(settings, Transforms(size_px, size_px))
        architecture = Architecture(builder, arguments, head, CLASSES, Transforms(size_px, size_px))
        torch.manual_seed(1)
        net = architecture.build().eval()
        if has_linear_head(net):
            head_of(net).reset_parameters()
        with torch.inference_mode():
            logits = net(images(builder))
        assert logits.std() > 0
        name = f"{builder}-{head}"
        version = seal(store, name, architecture, net.state_dict())
        expected[name] = logits.numpy().tobytes()
        asked.append(f"{name}:{version}:{size_px}")
    (tmp_path / "store" / "asked").write_text("\n".join(asked))
    subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "store"), str(torch.get_num_threads())], check=True, cwd=ROOT
    )
    assert {name: (tmp_path / "store" / f"{name}.logits").read_bytes() for name in expected} == expected


def test_without_its_transformed_input_inception_answers_something_else(store):
    arguments = {"aux_logits": False, "init_weights": False}
    nets = [
        Architecture("inception_v3", arguments | {"transform_input": given}, "native", CLASSES, Transforms(75, 75))
        for given in (True, False)
    ]
    torch.manual_seed(1)
    first, second = (architecture.build().eval() for architecture in nets)
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        assert not torch.equal(first(images("inception_v3")), second(images("inception_v3")))


def test_sealing_twice_is_one_version_and_one_content(store, sealed):
    net, version, folder = sealed
    before = {entry.path: store.read(entry.path) for entry in store.list("models")}
    assert set(before) == {f"{folder}/weights.safetensors", f"{folder}/bundle.json"}
    assert seal(store, "m", LAB, net.state_dict(), 1.5) == version
    assert {entry.path: store.read(entry.path) for entry in store.list("models")} == before


@pytest.mark.parametrize(
    "changed",
    [
        replace(LAB, classes=Classes(("cat", "crane", "Crane"), ("n1", "n2", "n3"))),
        replace(LAB, classes=Classes(("cat", "crane", "crane"), ("n1", "n2", "n4"))),
        replace(LAB, transforms=replace(TRANSFORMS, resize_px=11)),
        replace(LAB, transforms=replace(TRANSFORMS, std=(0.4, 0.5, 0.7))),
        replace(LAB, transforms=replace(TRANSFORMS, interpolation="bicubic")),
        replace(LAB, head="linear"),
        replace(LAB, arguments={**LAB.arguments, "x": 1}),
        replace(LAB, builder="linear"),
    ],
    ids=["name", "id", "resize", "std", "interpolation", "head", "arguments", "builder"],
)
def test_whatever_decides_an_answer_makes_another_version(store, sealed, changed):
    net, version, _ = sealed
    assert seal(store, "m", changed, net.state_dict(), 1.5) != version


def test_other_weights_or_another_temperature_are_another_version(store, sealed):
    net, version, _ = sealed
    assert seal(store, "m", LAB, net.state_dict(), 1.25) != version
    weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights["fc.bias"][0] += 1e-6
    assert seal(store, "m", LAB, weights, 1.5) != version


def test_no_such_version_names_those_that_there_are(store, sealed):
    with pytest.raises(ModelError, match=f"no version 'other'.*it has: {sealed[1]}"):
        load_bundle(store, "m", "other")


def test_another_format_is_refused_by_name(store, sealed):
    _, version, folder = sealed
    edit(store, f"{folder}/bundle.json", lambda document: document.update(format=3))
    with pytest.raises(ModelError, match="has format 3, this nightshift reads 1 and 2"):
        load_bundle(store, "m", version)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(temperature=1.0),
        lambda d: d["classes"].reverse(),
        lambda d: d["transforms"].update(resize_px=9),
        lambda d: d.update(weights_sha256=hashlib.sha256(b"").hexdigest()),
        lambda d: d.update(arguments={"weights": "DEFAULT"}, builder="resnet18"),
    ],
    ids=["temperature", "classes", "transforms", "weights", "builder"],
)
def test_an_edited_document_is_refused(store, sealed, change):
    _, version, folder = sealed
    edit(store, f"{folder}/bundle.json", change)
    with pytest.raises(ModelError, match=r"bundle\.json is not the sealed file"):
        load_bundle(store, "m", version)


def test_changed_weights_are_refused(store, sealed):
    _, version, folder = sealed
    data = bytearray(store.read(f"{folder}/weights.safetensors"))
    data[-1] ^= 1
    store.write(f"{folder}/weights.safetensors", bytes(data))
    with pytest.raises(ModelError, match=f"bundle m@{version}: weights.safetensors is not the sealed file"):
        load_bundle(store, "m", version)


def test_missing_weights_are_said(store, sealed):
    _, version, folder = sealed
    store.delete(f"{folder}/weights.safetensors")
    with pytest.raises(ModelError, match=r"weights.safetensors is missing; restore it or train again"):
        load_bundle(store, "m", version)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("fc.bias"), r"w does not fit LabCNN: lacks fc.bias \(and 0 more\)"),
        (lambda w: w.update({"z.a": torch.zeros(1), "z.b": torch.zeros(1)}), r"has z.a \(and 1 more\), which it does not"),
        (lambda w: w.update({"fc.bias": torch.zeros(4)}), r"fc.bias is \(4,\), expected \(3,\)"),
    ],
    ids=["absent", "foreign", "shape"],
)  # fmt: skip
def test_weights_that_do_not_fit_name_the_first_misfit_and_load_nothing(change, words):
    net, weights = LAB.build(), LAB.build().state_dict()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    change(weights)
    with pytest.raises(ModelError, match=words):
        fit_weights(net, weights, "w")
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_weights_that_fit_are_loaded():
    net, weights = LAB.build(), LAB.build().state_dict()
    fit_weights(net, weights, "w")
    assert all(torch.equal(weights[key], tensor) for key, tensor in net.state_dict().items())


def test_a_state_dict_is_read_from_a_path(tmp_path, storage_settings):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    read = read_weights(str(tmp_path / "w.safetensors"), storage_settings)
    assert list(read) == ["a"]
    assert torch.equal(read["a"], torch.arange(3.0))


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors.pkl"])
def test_only_safetensors_are_opened(tmp_path, storage_settings, name):
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ModelError, match=r"is not a .safetensors file.*can carry code.*convert"):
        read_weights(str(tmp_path / name), storage_settings)


def test_a_pickle_under_another_name_is_not_opened_either(tmp_path, storage_settings):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read_weights(str(tmp_path / "w.safetensors"), storage_settings)


def test_weights_that_do_not_exist_are_said(tmp_path, storage_settings):
    with pytest.raises(ModelError, match=r"model.weights: .*w.safetensors does not exist"):
        read_weights(str(tmp_path / "w.safetensors"), storage_settings)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_cut_weights_are_said(cut):
    data = save({"a": torch.arange(100.0)})
    with pytest.raises(ModelError, match="here: not a readable safetensors file"):
        parse_weights(data[:cut], "here")


OWN_CODE = """
from torch import nn

def tiny(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
"""


@pytest.fixture
def own(tmp_path, own_module):
    """An architecture of code that lies in the working directory, and the code's file."""
    name = own_module(OWN_CODE)
    return Architecture(f"{name}:tiny", {}, "native", CLASSES, Transforms(2, 2)), tmp_path / f"{name}.py"


def test_code_is_run_only_when_the_config_names_it(store, own, monkeypatch):
    architecture, path = own
    version = seal(store, "m", architecture, architecture.build().state_dict())
    monkeypatch.delitem(sys.modules, path.stem)  # as in a process that has not imported it
    path.write_text(f"{OWN_CODE}\nopen({str(path.with_suffix('.ran'))!r}, 'w')\n")
    for builder in ("", "mobilenet_v2", "os:system"):
        with pytest.raises(
            ModelError, match=f"bundle m@{version} is built by {architecture.builder}, code that is only run"
        ):
            load_bundle(store, "m", version, builder)
    assert not path.with_suffix(".ran").exists()


def test_bundles_of_ones_own_code_answer_as_sealed_and_know_their_code(store, own):
    architecture, path = own
    net = architecture.build()
    version = seal(store, "m", architecture, net.state_dict())
    bundle, pixels = load_bundle(store, "m", version, architecture.builder), torch.randn(2, 3, 2, 2)
    assert torch.equal(bundle.net(pixels), net(pixels))
    assert len(bundle.architecture.code_sha256) == 64
    path.write_text(OWN_CODE + "# another comment")
    with pytest.raises(
        ModelError, match=rf"the code of {architecture.builder} is not the one that it was sealed with.*m@{version}"
    ):
        load_bundle(store, "m", version, architecture.builder)
