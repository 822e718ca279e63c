import os
import subprocess
import sys

import pytest

from pipeline import pace
from pipeline.errors import ModelError
from pipeline.pace import measure_pace
from pipeline.settings import ModelSettings


def test_every_engine_of_this_node_is_measured():
    rates, refusals = measure_pace(ModelSettings(builder="lab_cnn"), 5)
    assert {"torch fp32 reference", "torch fp32", "openvino fp32"} <= rates.keys()
    assert min(rates.values()) > 10
    assert refusals == {}


def test_an_engine_that_cannot_run_the_network_is_named_and_the_others_are_measured(monkeypatch):
    def refuse(self, candidate):
        raise RuntimeError("an operator is unknown\nand a page of details")

    monkeypatch.setattr(pace.Workshop, "_openvino", refuse)
    rates, refusals = pace._measured(ModelSettings(builder="linear"), 5)
    assert "openvino fp32" not in rates
    assert refusals["openvino fp32"] == "an operator is unknown"
    assert "torch fp32" in rates


def dies(model, num_classes):
    os._exit(9)


def test_a_measurement_that_ends_its_process_is_said(monkeypatch):
    monkeypatch.setattr(pace, "_measured", dies)
    with pytest.raises(ModelError, match="measuring lab_cnn ended its process; most likely the memory is too small"):
        measure_pace(ModelSettings(builder="lab_cnn"))


INTERRUPTED = """
import os, signal, time
from pipeline.pace import measure_pace
from pipeline.settings import ModelSettings

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is born deaf to it
    measure_pace(ModelSettings(builder="lab_cnn"), 5)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        print("answered")
"""


def test_signals_are_answered_after_it(tmp_path):
    """OpenVINO leaves a signal stack that is gone: in the process that measured, the next signal would be the last."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    ended = subprocess.run([sys.executable, tmp_path / "interrupted.py"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "answered\n"), ended.stderr


def test_an_unknown_builder_is_said():
    with pytest.raises(ModelError, match="no network is called"):
        measure_pace(ModelSettings(builder="resnet17"))
