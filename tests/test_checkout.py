from pathlib import Path

import pytest

import pipeline
from cluster.checkout import code_root, refuse_other
from pipeline.errors import UsageError


def test_the_root_is_the_folder_of_the_three_packages():
    assert {"pipeline", "cluster", "jobs"} <= {path.name for path in Path(code_root()).iterdir()}
    assert Path(pipeline.__file__).is_relative_to(code_root())


def test_other_code_is_refused_and_the_same_is_not():
    refuse_other(code_root())
    with pytest.raises(
        UsageError, match=rf"nightshift from /elsewhere, this process from {code_root()}; start the command from"
    ):
        refuse_other("/elsewhere")
