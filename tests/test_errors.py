import pickle

import pytest

from pipeline import errors
from pipeline.errors import ImageError, NightshiftError

ALL = sorted((c for c in vars(errors).values() if isinstance(c, type)), key=lambda c: c.__name__)
EXIT_CODES = {
    "UsageError": 2,
    "ConfigError": 2,
    "InputError": 2,
    "EmptyInputError": 2,
    "ModelError": 2,
    "DivergedError": 2,
    "HeldError": 3,
}


def example(kind: type[Exception]) -> Exception:
    return kind("decode", "truncated", "ends early") if kind is ImageError else kind("what was wrong; what to do")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind):
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.args, vars(copy)) == (kind, str(error), error.args, vars(error))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_has_an_exit_code_and_stands_in_the_drawn_tree(kind):
    assert issubclass(kind, NightshiftError)
    assert kind.exit_code == EXIT_CODES.get(kind.__name__, 1)
    assert kind.__name__ in errors.__doc__
    assert kind.__doc__


def test_image_errors_say_stage_reason_and_message():
    error = ImageError("read", "null", "the image is null")
    assert (error.stage, error.reason, error.message) == ("read", "null", "the image is null")
    assert str(error) == "null: the image is null"
