import json

import pytest

from cluster.nodes import Node
from jobs import roundcall as module
from jobs.roundcall import differences, inspect_nodes, versions

HERE = {"python": "3.11.7", "nightshift": "abc", "ray": "2.60.0", "torch": "2.14.1"}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, None),
        ({"torch": "2.13.0"}, "torch is 2.13.0 there and 2.14.1 at the driver: run the same image on every node"),
        ({"torch": None}, "torch is missing there and 2.14.1 at the driver"),
        ({"python": "3.12.1", "ray": "2.55"}, "python is 3.12.1 there and 3.11.7 at the driver, ray is 2.55 there"),
        ({"nightshift": "other"}, "nightshift is other there and abc at the driver"),
    ],
)
def test_differences_are_told_with_what_to_do(there, words):
    found = differences(HERE, HERE | there)
    if words is None:
        assert found == []
    else:
        (line,) = found
        assert line.startswith(words)
        assert "pip install -c constraints.txt" in line


@pytest.fixture
def nodes(monkeypatch):
    """Return what makes the cluster answer with these nodes."""

    def put(*found):
        monkeypatch.setattr("cluster.nodes.ask_nodes", lambda question, *arguments: list(found))

    return put


def node(answer=None, trouble=None, head=False):
    return Node("0123456789", "10.0.0.7", head, 8, 1, 32e9, 9.5e9, {}, answer, trouble)


def test_every_node_has_a_line(nodes):
    mine = versions()
    other = mine | {"torch": "1.0"}
    nodes(
        node({"versions": mine, "store": None}, head=True),
        Node("abcdef", "10.0.0.8", False, 4, 0, 8e9, 2e9, {}, {"versions": other, "store": None}),
        Node("bcdefg", "10.0.0.9", False, 4, 0, 8e9, 2e9, {}, {"versions": mine, "store": "s3://x cannot be reached"}),
        Node("cdefgh", "10.0.0.10", False, 4, 0, 8e9, 2e9, {}, None, "it does not answer within 90 s"),
    )
    found = inspect_nodes(None)
    head, other, unreached, silent = found.values()
    assert list(found)[:2] == ["head 10.0.0.7 (012345)", "node 10.0.0.8 (abcdef)"]
    assert head["ok"]
    assert head["found"].startswith("8 CPUs, 1 GPUs, 32.0 GB memory, 9.5 GB object store; python ")
    assert not other["ok"]
    assert "torch is 1.0 there" in other["found"]
    assert (unreached["ok"], unreached["found"].endswith("; s3://x cannot be reached")) == (False, True)
    assert (silent["ok"], silent["found"]) == (
        False,
        "4 CPUs, 0 GPUs, 8.0 GB memory, 2.0 GB object store; it does not answer within 90 s",
    )


def test_a_node_says_how_the_store_answers(night, tmp_path):
    config = night.config()
    assert module._answer((config.store, config.storage)) == {"versions": versions(), "store": None}
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in module._answer((str(tmp_path / "file"), config.storage))["store"]
    assert module._answer(None)["store"] is None


def test_nodes_of_a_real_session_answer(night, ray_session):
    (found,) = inspect_nodes(night.config()).items()
    assert found[0].startswith("head ")
    assert found[1]["ok"], found
    assert "4 CPUs" in found[1]["found"]


def test_what_a_node_raises_is_its_trouble(ray_session):
    from cluster.nodes import ask_nodes

    (asked,) = ask_nodes(json.loads, "no json")
    assert asked.trouble == "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
