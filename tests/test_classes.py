import json

import pytest

from pipeline.classes import Classes, classes_from_labels, clean, parse_classes
from pipeline.errors import InputError, ModelError


def test_labels_mean_a_class_by_id_or_by_unique_name():
    classes = Classes(("cat", "crane", "crane"), ("n1", "n2", "n3"))
    assert len(classes) == 3
    assert [classes.index_of(label) for label in ("cat", "n1", "n2", "n3")] == [0, 0, 1, 2]
    assert [classes.index_of(label) for label in ("crane", "dog", None, "")] == [None] * 4  # which crane?


def test_an_id_goes_before_a_name():
    classes = Classes(("a", "b"), ("b", "a"))
    assert [classes.index_of(label) for label in ("a", "b")] == [1, 0]


def test_classes_are_the_distinct_labels_in_order():
    classes = classes_from_labels(["b", "a", "b", "ü", "10", "9"])
    assert classes.names == classes.ids == ("10", "9", "a", "b", "ü")
    assert [classes.index_of(name) for name in classes.names] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a"], "at least two classes, and its rows hold only 'a'"),
        ([], "no label at all"),
        (["Cat", "cat", "dog"], "'Cat' and 'cat' differ only in case"),
        (["sea lion", "sea_lion"], "'sea lion' and 'sea_lion' differ only"),
        (["a ", "a", "b"], "differ only in case, blanks"),
        (["\u00e9", "e\u0301"], "Unicode form"),
        (["straße", "STRASSE"], "differ only in case"),
    ],
)
def test_labels_that_no_model_could_learn_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        classes_from_labels(labels)


@pytest.mark.parametrize(
    ("name", "cleaned"), [("Sea  Lion ", "sea lion"), ("sea_lion", "sea lion"), ("ﬁsh", "fish"), ("", ""), ("İ", "i̇")]
)
def test_clean(name, cleaned):
    assert clean(name) == cleaned


@pytest.mark.parametrize(
    ("items", "names", "ids"),
    [
        (["a", "b"], ("a", "b"), ("a", "b")),
        (["crane", "crane"], ("crane", "crane"), ("0", "1")),
        ([{"name": "a", "wnid": "n1"}, {"name": "b", "wnid": "n2"}], ("a", "b"), ("n1", "n2")),
        ([{"name": "a", "id": 0}, {"name": "b", "id": 1}], ("a", "b"), ("0", "1")),
        ([{"name": "a", "id": "x", "wnid": "n1", "index": 0}, "b"], ("a", "b"), ("x", "b")),
        ([{"name": 7}, {"name": 8}], ("7", "8"), ("7", "8")),
    ],
)
def test_class_lists_of_every_form(items, names, ids):
    classes = parse_classes(json.dumps(items).encode(), "classes.json")
    assert (classes.names, classes.ids) == (names, ids)
    assert [classes.index_of(key) for key in ids] == list(range(len(names)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "classes.json is not JSON"),
        (b"\xff\xfe", "classes.json is not JSON"),
        (b"{}", "classes.json holds no list"),
        (b"[]", "classes.json holds no list"),
        (b"[1]", "entry 0 is 1; expected a name"),
        (b'["a", null]', "entry 1 is None"),
        (b'["a", {"label": "b"}]', "entry 1 is .*expected a name"),
        (b'[{"name": null}]', "entry 0 is .*expected a name"),
        (b'[{"name": "a", "index": 1}]', "entry 0 says index 1; expected the list in index order"),
    ],
)
def test_class_lists_that_are_none_are_named(data, words):
    with pytest.raises(ModelError, match=words):
        parse_classes(data, "classes.json")


def test_classes_read_back_from_a_bundle():
    classes = Classes(("cat", "crane", "crane"), ("n1", "n2", "n3"))
    assert parse_classes(json.dumps(classes.to_json()).encode(), "bundle.json") == classes


def test_imagenet_has_two_cranes(shared_data):
    path = shared_data / "weights" / "imagenet_classes.json"
    classes = parse_classes(path.read_bytes(), str(path))
    assert len(classes) == 1000
    assert len(set(classes.ids)) == 1000
    cranes = [i for i, name in enumerate(classes.names) if name == "crane"]
    assert len(cranes) == 2
    assert classes.index_of("crane") is None
    assert [classes.index_of(classes.ids[i]) for i in cranes] == cranes
