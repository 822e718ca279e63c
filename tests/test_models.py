import json

import pytest

from jobs.cli import main


def run(capsys, *arguments):
    code = main(["models", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row(out, name):
    return next(line for line in out.splitlines() if line.startswith(name)).split()


def test_every_network_is_a_row_with_its_figures(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert row(out, "mobilenet_v2") == ["mobilenet_v2", "224", "3.50", "0.301", "14.0", "72.154", "V2,", "71.878", "V1"]
    assert row(out, "inception_v3") == ["inception_v3", "299", "27.16", "5.713", "108.6", "77.294", "V1"]
    assert row(out, "linear") == ["linear", "32", "3.07", "0.003", "12.3", "-"]
    assert "85.304 SWAG_E2E_V1 at 384 px" in out
    assert len(out.splitlines()) == 1 + 83


def test_the_network_of_a_config_comes_first(capsys):
    code, out, _ = run(capsys, "configs/demo.yaml", "--set", "input.size_px=32", "--set", "model.transforms={color: L}")
    assert code == 0
    assert out.splitlines()[1].split() == ["configs/demo.yaml:", "lab_cnn", "32", "2.06", "0.006", "8.2", "-"]


def test_named_networks_are_measured_here(capsys):
    code, out, err = run(capsys, "--measure", "linear, lab_cnn,linear")
    assert code == 0
    assert err.count("measuring linear") == 1
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["linear", "lab_cnn"]
    assert "\nlab_cnn, images/s here:\n" in out
    assert float(out.splitlines()[-1].split()[-1].replace(",", "")) > 10


def test_json_has_all_of_it(capsys, tmp_path):
    code, out, _ = run(capsys, "configs/demo.yaml", "--measure", "linear", "--plot", str(tmp_path / "m.svg"), "--json")
    document = json.loads(out)
    assert code == 0
    assert (tmp_path / "m.svg").exists()
    found = {(entry["builder"], entry["weights"]): entry for entry in document["models"]}
    assert found["vgg16", "IMAGENET1K_V1"]["gradient_bytes"] == 4 * 138_357_544
    assert document["images_per_s"]["linear"]["torch fp32"] > 10
    assert document["config"]["input_px"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--measure", "linear,resnet17"), "did you mean"),
        (("--plot", "picture"), "expected the name of a picture"),
        (("--plot", "picture", "--measure", "linear"), "expected the name of a picture"),
        (("/nowhere.yaml", "--measure", "linear"), "/nowhere.yaml: cannot be read"),
        (("/nowhere.yaml",), "/nowhere.yaml: cannot be read"),
    ],
)
def test_mistakes_exit_2_before_anything_is_measured(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "measuring" not in err
