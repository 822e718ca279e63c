import pytest

from pipeline.documents import encode
from pipeline.errors import ModelError, UsageError
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage
from pipeline.trials import Trial, ranked, read_trial, read_tuning, summary, values_of, write_trial


def epoch(number, loss, top1=0.5):
    return {"epoch": number, "train_loss": 1.0, "train_top1": 0.9, "val_loss": loss, "val_top1": top1}


@pytest.fixture
def store(tmp_path):
    return open_storage(str(tmp_path), StorageSettings())


def test_a_record_is_found_by_its_values(store):
    trial = Trial("k", {"train.learning_rate": 0.1})
    assert read_trial(store, trial) is None
    write_trial(store, trial, [epoch(1, 0.5)], "running")
    assert read_trial(store, Trial("k", {"train.learning_rate": 0.1})) == {
        "trial": trial.id, "values": trial.values, "history": [epoch(1, 0.5)], "state": "running",
    }  # fmt: skip
    assert read_trial(store, Trial("k", {"train.learning_rate": 0.2})) is None
    assert read_trial(store, Trial("other", trial.values)) is None


def found(name, state, *losses, patience=None):
    history = [epoch(n, loss) for n, loss in enumerate(losses, 1)]
    return summary({"trial": name, "values": {}, "state": state, "history": history}, "loss", patience)


def test_the_score_is_that_of_the_epoch_that_would_be_sealed():
    assert found("a", "finished", 0.5, 0.2, 0.4)["score"] == 0.4
    assert found("a", "finished", 0.5, 0.2, 0.4, patience=1)["score"] == 0.2
    assert found("a", "diverged", 0.5)["score"] is None
    assert found("a", "failed")["score"] is None


def test_only_what_came_to_its_end_can_be_the_best():
    trials = [
        found("diverged", "diverged", 0.1), found("good", "finished", 0.4), found("stopped", "running", 0.3),
        found("best", "finished", 0.2), found("failed", "failed"),
    ]  # fmt: skip
    assert [trial["trial"] for trial in ranked(trials, "loss")] == ["best", "good", "stopped", "diverged", "failed"]


def test_higher_is_better_for_shares_and_the_loss_breaks_ties():
    def trial(name, loss, top1):
        return summary(
            {"trial": name, "values": {}, "state": "finished", "history": [epoch(1, loss, top1)]}, "top1", None
        )

    trials = [trial("a", 0.5, 0.9), trial("b", 0.4, 0.9), trial("c", 0.1, 0.8)]
    assert [trial["trial"] for trial in ranked(trials, "top1")] == ["b", "a", "c"]


def test_the_values_of_a_trial_are_read_from_what_tuning_found(store):
    with pytest.raises(UsageError, match="not tuned yet"):
        read_tuning(store, "k")
    trials = [
        {"trial": "b", "values": {"train.x": 1}, "state": "finished"},
        {"trial": "a", "values": {}, "state": "running"},
    ]
    store.write("trainings/k/tuning.json", encode({"trials": trials}))
    assert values_of(store, "k", "best") == values_of(store, "k", "b") == {"train.x": 1}
    with pytest.raises(UsageError, match="no trial 'z'; the best ones are b, a"):
        values_of(store, "k", "z")
    with pytest.raises(ModelError, match="trial a did not come to its end"):
        values_of(store, "k", "a")
