"""The commands promote and rollback, in this process."""

import json
from dataclasses import replace

import pytest
from judging import judge_with

from jobs import promote, rollback
from jobs.runs import Run, execute
from pipeline.documents import encode
from pipeline.errors import HeldError
from pipeline.intervals import sign_test
from pipeline.plans import write_plan
from pipeline.promotion import pointer
from pipeline.registry import production


def run(night, config, module) -> dict:
    started = Run(module.__name__.rsplit(".", 1)[-1], config, None)
    execute(started, module.work)
    return started.record


def biased(towards: int):
    """Make a network say one class of everything."""

    def change(net) -> None:
        net.fc.weight.data.zero_()
        net.fc.bias.data.copy_(4.0 * (net.fc.bias.data.new_tensor(range(3)) == towards))

    return change


@pytest.fixture
def versions(night):
    """Forty test images, most of them a bee; production says ant, a newer training bee: (config, old, new)."""
    labels = ["ant"] * 6 + ["bee"] * 30 + ["cat"] * 4
    night.write("a.parquet", range(40), label=labels, split=["test"] * 40)
    config = night.config(input={"split_column": "split"}, promote={"max_ece": 0.5})
    old, new = night.seal(change=biased(0)), night.seal(change=biased(1))
    for version, at in ((old, "2026-11-24"), (new, "2026-11-25")):
        night.store.write(f"models/tiny/{version}/training.json", encode({"started_at": at, "history": []}))
    night.plan(config)
    return config, old, new


def test_the_better_one_becomes_production_and_goes_back(night, workers, versions, capsys):
    config, old, new = versions
    record = run(night, config, promote)
    assert (record["exit_code"], record["model"], production(night.store, "tiny")) == (0, f"tiny@{new}", new)
    assert record["promotion"] == {
        "from": old, "to": new, "num_images": 40, "better": 30, "worse": 6, "p": pytest.approx(sign_test(30, 6)), "objections": [],
    }  # fmt: skip
    said = capsys.readouterr().err
    assert (
        f"of the same 40 images it is better on 30 and worse on 6 (by chance alone: {record['promotion']['p']:.2g})"
        in said
    )
    assert "is production: it labels from now on" in said
    assert pointer(night.store, "tiny")[1]["reason"] == "better on 30 of 40 images, worse on 6"

    assert run(night, config, rollback)["exit_code"] == 0
    assert production(night.store, "tiny") == old
    assert "is production again" in capsys.readouterr().err
    # Nobody wants it back by itself the next night.
    assert run(night, config, promote)["exit_code"] == 3
    assert f"tiny@{new} was taken back by a rollback" in capsys.readouterr().err
    assert run(night, config, rollback)["exit_code"] == 2
    assert f"tiny@{old} is the first version that was production" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"min_top1": 0.8}, "below promote.min_top1 (80.0%)"), ({"max_ece": 0.01}, "more than promote.max_ece")],
)
def test_one_that_does_not_deserve_it_is_held_with_a_reason(night, workers, versions, capsys, wanted, words):
    config, old, new = versions
    config = config.model_copy(update={"promote": config.promote.model_copy(update=wanted)})
    record = run(night, config, promote)
    assert (record["exit_code"], production(night.store, "tiny")) == (3, old)
    assert f"production stays tiny@{old}, {new} is not promoted: its" in record["outcome"]
    assert words in capsys.readouterr().err
    assert len(record["promotion"]["objections"]) == 1


def test_a_worse_one_is_held(night, workers, versions):
    config, _, new = versions
    run(night, config, promote)
    older = config.model_copy(
        update={"model": config.model.model_copy(update={"version": night.seal(change=biased(2))})}
    )
    record = run(night, older, promote)
    assert (record["exit_code"], production(night.store, "tiny")) == (3, new)
    assert "it is better than production on 4 images and worse on 30" in record["outcome"]


def test_production_itself_and_what_is_not_there(night, workers, versions, capsys):
    config, old, new = versions
    run(night, config, promote)
    assert run(night, config, promote)["exit_code"] == 0
    assert f"tiny@{new} is production already" in capsys.readouterr().err
    absent = config.model_copy(update={"model": config.model.model_copy(update={"version": "nothing"})})
    assert run(night, absent, promote)["exit_code"] == 2
    for path in ("bundle.json", "weights.safetensors"):
        night.store.delete(f"models/tiny/{old}/{path}")
    assert run(night, config, rollback)["exit_code"] == 2
    assert production(night.store, "tiny") == new
    assert f"no version '{old}'" in capsys.readouterr().err


def test_each_version_looks_once_whoever_asks(night, workers, versions):
    config, old, new = versions
    judge_with(night, config, version=new)
    shards = len(workers.shards)
    run(night, config, promote)
    run(night, config, promote)
    assert len(workers.shards) == 2 * shards  # production's first look was the only one more
    looks = [entry.path for entry in night.store.list("looks")]
    assert sorted(path.rsplit("/", 1)[-1] for path in looks) == sorted(f"tiny@{v}.json" for v in (old, new))


def test_another_promotion_in_between_is_seen(night, workers, versions, monkeypatch):
    config, old, _ = versions

    def moved(*arguments):
        raise HeldError("production of tiny was changed by another run at the same time")

    monkeypatch.setattr(promote, "point_to", moved)
    assert run(night, config, promote)["exit_code"] == 3
    assert production(night.store, "tiny") == old


def test_a_model_of_another_kind_is_not_compared(night, workers, versions, capsys):
    config, old, new = versions
    path = f"models/tiny/{new}/bundle.json"
    document = json.loads(night.store.read(path))
    night.store.write(path, encode({**document, "format": 2, "thresholds": [0.5] * 3}))
    assert run(night, config, promote)["exit_code"] == 2
    assert "cannot be compared" in capsys.readouterr().err
    assert production(night.store, "tiny") == old


def test_unreadable_files_hold_a_promotion_back(night, workers, versions):
    config, old, _ = versions
    plan = night.plan(config)
    write_plan(
        night.store, replace(plan, n=plan.n + 1, failed_files=({"path": "b.parquet", "error": "broken"},)), "now"
    )
    record = run(night, config, promote)
    assert (record["exit_code"], production(night.store, "tiny")) == (3, old)
    assert record["promotion"]["objections"] == ["1 input file cannot be read, so not all images were compared"]


def test_a_version_that_was_taken_back_can_be_named(night, workers, versions):
    config, _, new = versions
    run(night, config, promote)
    run(night, config, rollback)
    named = config.model_copy(update={"model": config.model.model_copy(update={"version": new})})
    assert run(night, named, promote)["exit_code"] == 0
    assert production(night.store, "tiny") == new
