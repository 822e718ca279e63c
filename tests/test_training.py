import json
import multiprocessing
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from seats import both
from stopping import Stopped, StoppingAfter
from torch import nn
from torchvision.models.inception import InceptionOutputs

from pipeline.augmentsettings import AugmentSettings
from pipeline.checkpoints import Checkpoints
from pipeline.errors import ModelError, TransientError
from pipeline.examples import Examples
from pipeline.loading import Inputs, ShardCache
from pipeline.optimizers import make_optimizer
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.settings import StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.stepping import Trainee
from pipeline.storage import open_storage
from pipeline.training import Course, train
from pipeline.trainsettings import TrainSettings
from pipeline.trainstate import agreed

NUM, SIZE, K = 90, 6, 3  # 72 train, 18 val, in shards of 10
SETTINGS = TrainSettings(mode="scratch", epochs=4, batch_size=16, learning_rate=0.05, optimizer="sgd", shuffle_window=4)


def course(settings=SETTINGS, num_val=18):
    """Return a course over made-up vectors of three classes that a linear model can nearly tell apart."""
    random = np.random.default_rng(0)
    targets = random.integers(0, K, NUM)
    vectors = (random.normal(0, 1, (NUM, SIZE)) + 1.5 * np.eye(K, SIZE)[targets]).astype(np.float32)
    shards = tuple(Shard((Segment(f"{n}", 1, "v", 0, 10, 10),)) for n in range(NUM // 10))
    numbers, slots = np.repeat(np.arange(NUM // 10), 10), np.tile(np.arange(10), NUM // 10)
    splits = ["train" if i < NUM - num_val else "val" for i in range(NUM)]
    examples = Examples(shards, numbers, slots, [""] * NUM, ["x"] * NUM, splits, 0, 0, 0)
    cache = ShardCache(shards, lambda shard: vectors[10 * shards.index(shard) :][:10], 10**6)
    inputs = Inputs(examples, targets, cache)
    return Course(inputs, examples.by_shard(examples.of("train")), examples.of("val"), K, settings, 7)


def linear():
    torch.manual_seed(0)
    return nn.Linear(SIZE, K)


def alone(module):
    return Trainee(module, module, module.train)


def run_seat(folder, rank, world):
    """Be one of `world` gloo processes; rank 0 leaves weights and history in the folder."""
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)

    def reduce(sums):
        dist.all_reduce(sums)
        return sums

    pulse, module = Pulse(), linear()
    trainee = Trainee(module, nn.parallel.DistributedDataParallel(module), module.train)
    history = train(trainee, course(), Seat(rank, world, "cpu", reduce), None, pulse)
    (folder / f"{rank}.json").write_text(json.dumps({"history": history, "done": pulse.examples}))
    save_file(module.state_dict(), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    """What 2 and 4 processes that average their gradients made of the course: by world, then by rank."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, then each process is a quick fork; optimizers import torch._dynamo, 4 s, at first use.
    context.set_forkserver_preload(["torch", "torch._dynamo", "pipeline.training"])
    outcomes = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        processes = [context.Process(target=run_seat, args=(folder, rank, world)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * world
        outcomes[world] = [
            SimpleNamespace(
                weights=load_file(folder / f"{rank}.safetensors"), **json.loads((folder / f"{rank}.json").read_text())
            )
            for rank in range(world)
        ]
    return outcomes


@pytest.mark.parametrize("world", [2, 4])
def test_averaged_gradients_are_those_of_the_whole_batch(gloo, world):
    module = linear()
    start = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    train(alone(module), course(), Seat(), None, Pulse())
    for key, tensor in module.state_dict().items():
        assert (tensor - start[key]).abs().max() > 0.1
        for other in gloo[world]:
            torch.testing.assert_close(other.weights[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_workers_has_the_same_loss_curve(gloo, world):
    history = train(alone(linear()), course(), Seat(), None, Pulse())
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    for other in gloo[world]:
        assert len(other.history) == len(history) == 4
        for ours, theirs in zip(history, other.history, strict=True):
            for key in ("epoch", "train_loss", "train_top1", "val_loss", "val_top1"):
                assert theirs[key] == pytest.approx(ours[key], abs=1e-4), key


@pytest.mark.parametrize("world", [2, 4])
def test_the_workers_parts_add_up_to_every_example_of_every_epoch(gloo, world):
    counts = [other.done for other in gloo[world]]
    assert sum(counts) == 72 * 4
    assert max(counts) - min(counts) <= 4 * 4  # at most one a step


def test_a_batch_is_awaited_when_the_next_one_is_begun():
    """So decoding threads have work at the end of a batch; a batch that is awaited first would wait for ever here."""
    begun, given = {}, course()

    class Patient(Inputs):
        def begin(self, indices, positions, epoch):
            number, inputs = len(begun), super().begin(indices, positions, epoch)
            begun[number] = threading.Event()
            if number:
                begun[number - 1].set()
            if (number + 1) % given.steps == 0:  # nothing follows the last of an epoch
                begun[number].set()

            def wait():
                assert begun[number].wait(20)
                return inputs()

            return wait

    inputs = given.inputs
    patient = replace(given, inputs=Patient(inputs.examples, inputs.targets, inputs.cache))
    histories = [train(alone(linear()), which, Seat(), None, Pulse()) for which in (given, patient)]
    assert len(begun) == 4 * given.steps
    assert [record["train_loss"] for record in histories[0]] == [record["train_loss"] for record in histories[1]]


def test_losses_are_means_per_example_at_any_batch_size():
    """With a step too small to matter, the epoch's record is that of the start weights on all examples."""
    module, whole = linear(), course()
    inputs, targets = whole.inputs.gather(np.arange(NUM))
    losses = nn.functional.cross_entropy(module(inputs), targets, reduction="none")
    right = (module(inputs).argmax(1) == targets).double()
    for batch_size in (1, 7, 72, 500):
        settings = SETTINGS.model_copy(update={"learning_rate": 1e-12, "epochs": 1, "batch_size": batch_size})
        record = train(alone(linear()), course(settings), Seat(), None, Pulse())[0]
        assert record["train_loss"] == pytest.approx(losses[:72].mean().item(), abs=1e-6)
        assert record["val_loss"] == pytest.approx(losses[72:].mean().item(), abs=1e-6)
        assert record["train_top1"] == pytest.approx(right[:72].mean().item())
        assert record["val_top1"] == pytest.approx(right[72:].mean().item())


def test_without_validation_images_there_are_no_validation_figures():
    history = train(alone(linear()), course(num_val=0), Seat(), None, Pulse())
    assert [(record["val_loss"], record["val_top1"]) for record in history] == [(None, None)] * 4


def with_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, K))


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("stopped_at", [20, 72 + 20, 3 * 72 + 60])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path, optimizer, stopped_at):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer, "weight_decay": 1e-3, "checkpoint_steps": 1})
    whole = with_dropout()
    history = train(alone(whole), course(settings), Seat(), None, Pulse())
    checkpoints = Checkpoints(open_storage(str(tmp_path), StorageSettings()), "k")
    with pytest.raises(Stopped):
        train(alone(with_dropout()), course(settings), Seat(), checkpoints, StoppingAfter(stopped_at))
    assert checkpoints.newest().step == stopped_at // 18
    torch.manual_seed(99)  # another process: nothing may lean on where its generator stands
    resumed, pulse = with_dropout(), Pulse()
    again = train(alone(resumed), course(settings), Seat(), checkpoints, pulse)
    assert without_seconds(again) == without_seconds(history)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert (pulse.examples, pulse.steps) == (72 * 4, 16 - stopped_at // 18)


RECIPES = {
    "average": {"average": 0.9},
    "early stopping": {"early_stopping": 3},
    "all": {"schedule": "one_cycle", "warmup_epochs": 1, "average": 0.5, "early_stopping": 3, "optimizer": "rmsprop"},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("stopped_at", [1, 5, 9, 12])
def test_every_recipe_resumes_to_the_same_bits(tmp_path, recipe, stopped_at):
    settings = SETTINGS.model_copy(update={**recipe, "epochs": 6, "checkpoint_steps": 1})
    whole, killed = linear(), linear()
    expected = train(alone(whole), course(settings), Seat(), None, Pulse())
    checkpoints = Checkpoints(open_storage(str(tmp_path), StorageSettings()), "key")
    with pytest.raises(Stopped):
        train(alone(killed), course(settings), Seat(), checkpoints, StoppingAfter(16 * stopped_at))
    resumed = linear()
    history = train(alone(resumed), course(settings), Seat(), checkpoints, Pulse())
    assert [record["val_loss"] for record in history] == [record["val_loss"] for record in expected]
    for key, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor)


def test_early_stopping_ends_the_training_and_seals_the_best_epoch():
    settings = SETTINGS.model_copy(update={"epochs": 60, "early_stopping": 2, "learning_rate": 1.0})
    module = linear()
    history = train(alone(module), course(settings), Seat(), None, Pulse())
    losses = [record["val_loss"] for record in history]
    assert len(history) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    again = train(
        alone(module), course(settings.model_copy(update={"epochs": 1, "learning_rate": 1e-30})), Seat(), None, Pulse()
    )
    assert again[0]["val_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_early_stopping_without_validation_images_is_refused():
    with pytest.raises(ModelError, match="early_stopping looks at validation images, and there are none"):
        train(
            alone(linear()), course(SETTINGS.model_copy(update={"early_stopping": 1}), num_val=0), Seat(), None, Pulse()
        )


def test_the_average_is_validated_and_sealed():
    settings = SETTINGS.model_copy(update={"average": 0.999, "learning_rate": 0.5})
    plain, averaged = linear(), linear()
    train(alone(plain), course(settings.model_copy(update={"average": None})), Seat(), None, Pulse())
    history = train(alone(averaged), course(settings), Seat(), None, Pulse())
    assert not torch.equal(plain.weight, averaged.weight)
    frozen = settings.model_copy(update={"average": None, "epochs": 1, "learning_rate": 1e-30})
    again = train(alone(averaged), course(frozen), Seat(), None, Pulse())
    assert again[0]["val_loss"] == pytest.approx(history[-1]["val_loss"], abs=1e-6)


def test_a_finished_training_that_is_resumed_trains_nothing_more(tmp_path):
    checkpoints = Checkpoints(open_storage(str(tmp_path), StorageSettings()), "k")
    first, second, pulse = with_dropout(), with_dropout(), Pulse()
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 1})
    history = train(alone(first), course(settings), Seat(), checkpoints, Pulse())
    assert train(alone(second), course(settings), Seat(), checkpoints, pulse) == history
    assert (pulse.examples, pulse.steps) == (72 * 4, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def finding(*checkpoints):
    """Stands for a store in which each look finds the next of these."""
    left = list(checkpoints)
    return SimpleNamespace(newest=lambda: left.pop(0))


@pytest.fixture
def two_checkpoints(tmp_path):
    """The checkpoints of steps 1 and 2 of a training."""
    checkpoints = Checkpoints(open_storage(str(tmp_path), StorageSettings()), "k")
    found = []
    for step in (1, 2):
        checkpoints.save(step, {}, {"model.weight": torch.full((2,), float(step))})
        checkpoints.settle()
        found.append(checkpoints.newest())
    return found


def test_workers_that_find_different_checkpoints_look_again_until_they_agree(two_checkpoints):
    """A killed run's workers live on for a moment: one look finds the first, the other already the second."""
    first, second = two_checkpoints
    looks = [[None, first, first, second], [first, first, second, None]]
    found = both(lambda seat: agreed(finding(*looks[seat.rank]), seat))
    assert found == [first, first]


def test_workers_that_agree_on_no_checkpoint_start_over():
    assert both(lambda seat: agreed(finding(None), seat)) == [None, None]


def test_workers_that_never_agree_give_the_attempt_up(two_checkpoints):
    errors = both(lambda seat: agreed(finding(*[two_checkpoints[seat.rank]] * 99), seat))
    assert [type(error) for error in errors] == [TransientError] * 2


def test_only_rank_0_writes_checkpoints(tmp_path):
    store = open_storage(str(tmp_path), StorageSettings())
    settings = SETTINGS.model_copy(update={"checkpoint_steps": 1})
    train(alone(linear()), course(settings), Seat(1, 2), Checkpoints(store, "k"), Pulse())
    assert list(store.list()) == []


def diverging(tmp_path, what, batch_size, learning_rate=1e30, module=None):
    """Assert that a training says of `what` that it diverged; return its checkpoints, saved at every step."""
    settings = SETTINGS.model_copy(
        update={"learning_rate": learning_rate, "batch_size": batch_size, "checkpoint_steps": 1, "optimizer": "sgd"}
    )
    checkpoints = Checkpoints(open_storage(str(tmp_path), StorageSettings()), "k")
    with pytest.raises(ModelError, match=rf"training diverged: {what}.*lower train.learning_rate \(now"):
        train(alone(module or Cubed()), course(settings), Seat(), checkpoints, Pulse())
    return checkpoints


def test_a_loss_that_is_no_number_ends_the_training_and_nothing_of_it_is_saved(tmp_path):
    checkpoints = diverging(tmp_path, "the loss is (nan|inf) in epoch 1, after step 2 of 4", 16)
    assert checkpoints.newest().step == 1


def test_a_validation_loss_that_is_no_number_ends_the_training_too(tmp_path):
    assert diverging(tmp_path, "the validation loss is (nan|inf) in epoch 1", 500).newest() is None


def test_a_loss_that_explodes_ends_the_training(tmp_path):
    diverging(tmp_path, r"the loss is \d.* in epoch \d, after step \d of 4 \(the first loss was", 16, 1e4, linear())


class Overflowing(nn.Module):
    """Its loss is finite; its weight is not any more once it moved."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = linear(), nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs):
        return self.linear(inputs) + torch.nan_to_num(self.scale) * 1e30 * torch.eye(K)[0]


def test_a_weight_that_is_no_number_is_never_saved(tmp_path):
    assert (
        diverging(tmp_path, "a weight is no finite number in epoch 1, after step 1", 16, 1e30, Overflowing()).newest()
        is None
    )


class Cubed(nn.Module):
    """A linear model whose logits overflow as soon as its weights are large."""

    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, inputs):
        return self.linear(inputs) ** 3


def test_all_workers_validate_with_the_buffers_of_rank_0_which_are_sealed():
    """Each has run BatchNorm's statistics over its own images; DDP shares them in its next forward only, if there is one."""
    modules = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    for number, module in enumerate(modules, 1):
        module.running_mean.fill_(number)
        module.num_batches_tracked.fill_(number)
    sent = [buffer.clone() for buffer in modules[0].buffers()]
    offered = []

    def sum_over_both(mine):
        offered.append(mine.clone())
        return mine + sent[len(offered) - 1]

    Seat(1, 2, "cpu", sum_over_both).share(modules[1].buffers())
    assert [buffer.tolist() for buffer in modules[1].buffers()] == [buffer.tolist() for buffer in sent]
    assert not any(buffer.any() for buffer in offered)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_first_loss_that_is_not_that_of_guessing_is_warned_of_where_the_head_is_fresh(fresh):
    module, pulse = linear(), Pulse()
    with torch.no_grad():
        module.weight.mul_(20)
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": 72})
    train(alone(module), replace(course(settings), fresh_head=fresh), Seat(), None, pulse)
    assert [warning.partition(":")[0] for warning in pulse.warnings] == ["first-loss"] * fresh


def test_mixing_is_in_what_is_learnt_and_not_in_what_is_validated():
    settings = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-30})
    mixing = settings.model_copy(update={"augment": AugmentSettings(mixup=1.0)})
    plain, mixed = (train(alone(linear()), course(s), Seat(), None, Pulse())[0] for s in (settings, mixing))
    assert mixed["train_loss"] != plain["train_loss"]
    assert mixed["val_loss"] == plain["val_loss"]


class WithAuxiliary(nn.Module):
    """Logits, and in training those of an auxiliary classifier, as Inception returns them."""

    def __init__(self):
        super().__init__()
        self.main, self.side = nn.Linear(SIZE, K), nn.Linear(SIZE, K)

    def forward(self, vectors):
        logits = self.main(vectors)
        return InceptionOutputs(logits, self.side(vectors)) if self.training else logits


def test_the_loss_of_an_auxiliary_classifier_counts_0_4_and_is_in_no_figure():
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_size": 72, "sanity": False})
    torch.manual_seed(0)
    module = WithAuxiliary()
    module.side.load_state_dict(module.main.state_dict())
    start = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    record = train(alone(module), course(settings), Seat(), None, Pulse())[0]
    plain = nn.Linear(SIZE, K)
    plain.load_state_dict({"weight": start["main.weight"], "bias": start["main.bias"]})
    expected = train(alone(plain), course(settings), Seat(), None, Pulse())[0]
    moved = {key: tensor - start[key] for key, tensor in module.state_dict().items()}
    assert torch.equal(module.main.weight, plain.weight)
    torch.testing.assert_close(moved["side.weight"], 0.4 * moved["main.weight"])
    torch.testing.assert_close(moved["side.bias"], 0.4 * moved["main.bias"])
    assert {key: record[key] for key in record if key != "seconds"} == {
        key: expected[key] for key in expected if key != "seconds"
    }


def test_only_what_requires_gradients_is_optimized():
    module = with_dropout()
    for parameter in module[0].parameters():
        parameter.requires_grad = False
    for optimizer, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        made = make_optimizer(module, SETTINGS.model_copy(update={"optimizer": optimizer}))
        assert isinstance(made, kind)
        assert len(made.param_groups[0]["params"]) == 4
        assert made.param_groups[0]["lr"] == 0.05
