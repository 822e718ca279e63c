import numpy as np

from pipeline.classes import Classes
from pipeline.truths import LabelMatrix, LabelSet, contradicts_itself, names_in

ABC = Classes(("a", "b", "c"), ("a", "b", "c"))


def test_what_is_known_of_each_class():
    labels = [
        LabelSet(("a", "c")),  # looked for everything
        LabelSet(()),  # nothing there
        LabelSet(("a",), ("b",)),  # nobody looked for c
        LabelSet((), ()),
        LabelSet(("a", "x"), ("a", "b")),  # a is said to be both; x is no class
        None,
    ]
    rows = LabelMatrix(labels, ABC)[np.array([0, 1, 2, 3, 4, 5, 0])]
    expected = [[1, 0, 1], [0, 0, 0], [1, 0, -1], [-1, -1, -1], [-1, 0, -1], [-1, -1, -1], [1, 0, 1]]
    assert rows.tolist() == expected
    assert rows.dtype == np.int8
    assert len(LabelMatrix(labels, ABC)) == 6


def test_names_and_contradictions():
    assert names_in("a") == ("a",)
    assert names_in(None) == ()
    assert names_in(LabelSet(("a", "b"), ("c",))) == ("a", "b")
    assert contradicts_itself(LabelSet(("a",), ("a",)))
    assert not contradicts_itself(LabelSet(("a",), ("b",)))
    assert not contradicts_itself(LabelSet(("a",)))
    assert not contradicts_itself("a")
