import resource

import pytest
import torch
from families import ALL

from pipeline import zoo
from pipeline.errors import ModelError
from pipeline.settings import ModelSettings
from pipeline.sizes import check_head, check_size, misfit, smallest_px
from pipeline.transforms import Transforms

# Builder, the smallest input that it answers, and the smallest that it can be trained on.
SMALLEST = [
    ("linear", 1, 1), ("lab_cnn", 4, 4), ("alexnet", 63, 63), ("vgg11", 32, 32), ("vgg16_bn", 32, 32), ("resnet50", 1, 1),
    ("squeezenet1_0", 21, 21), ("squeezenet1_1", 17, 17), ("densenet121", 29, 29), ("inception_v3", 75, 299),
    ("googlenet", 15, 15), ("mobilenet_v2", 1, 1), ("mobilenet_v3_small", 1, 1),
]  # fmt: skip


def network(builder, size_px, **arguments):
    """Return what `check_size` is asked about: builder, arguments, transforms."""
    transforms = Transforms(size_px, size_px)
    return builder, zoo.builder_arguments(ModelSettings(builder=builder, arguments=arguments), transforms), transforms


@pytest.mark.parametrize(("builder", "answering", "training"), SMALLEST, ids=[row[0] for row in SMALLEST])
def test_the_smallest_inputs(builder, answering, training):
    for smallest, batch in ((answering, 0), (training, 2)):
        check_size(*network(builder, smallest), batch)
        if smallest > 1:
            with pytest.raises(ModelError, match=f"the smallest above it that does is {smallest}[ .]"):
                check_size(*network(builder, smallest - 1), batch)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("builder", [name for name in ALL if name not in ("inception_v3", "vit_b_16")])
def test_the_smallest_input_is_that_of_the_real_network(builder):
    """The real one, with numbers in it, answers there, and one pixel below it does not."""
    smallest = smallest_px(*network(builder, 1), 1) if misfit(*network(builder, 1), 1) else 1
    settings = ModelSettings(builder=builder)

    def answer(size_px):
        net = zoo.build(builder, zoo.builder_arguments(settings, Transforms(size_px, size_px)), 3).eval()
        with torch.inference_mode():
            return net(torch.zeros(1, 3, size_px, size_px))

    assert answer(smallest).shape == (1, 3)
    if smallest > 1:
        with pytest.raises(RuntimeError):
            answer(smallest - 1)


def test_what_is_too_small_says_where_it_ends():
    with pytest.raises(ModelError) as raised:
        check_size(*network("alexnet", 32))
    assert str(raised.value) == (
        "an input of 32 pixels does not fit alexnet: a window of 3 pixels, stride 2, is left with 1; the smallest above it that "
        "does is 63. Set input.size_px, or model.transforms.crop_px"
    )


def test_an_auxiliary_classifier_that_does_not_fit_can_be_left_out():
    with pytest.raises(ModelError, match=r"in training.* is 299 \(without .*aux_logits: false}, 75\)"):
        check_size(*network("inception_v3", 64), 2)
    check_size(*network("inception_v3", 75, aux_logits=False), 2)
    with pytest.raises(ModelError, match=r"is 299 \(without .*aux_logits: false}, 160\)"):
        check_size(*network("inception_v3", 160), 2)


@pytest.mark.parametrize(("builder", "size_px"), [("inception_v3", 299), ("resnet18", 32)])
def test_one_image_per_worker_is_too_few_for_batch_norms_of_one_pixel(builder, size_px):
    check_size(*network(builder, size_px), 2)
    with pytest.raises(ModelError, match=f"{builder} cannot train on one image at a time.*Raise train.batch_size"):
        check_size(*network(builder, size_px), 1)
    check_size(*network("resnet18", 64), 1)


def test_networks_that_are_built_for_one_size_name_the_next():
    with pytest.raises(ModelError, match=r"100 pixels does not fit vit_b_16.*the smallest above it that does is 112"):
        check_size(*network("vit_b_16", 100))
    check_size(*network("vit_b_16", 112))


def test_a_network_without_a_larger_size_says_so():
    with pytest.raises(ModelError, match=r"160 pixels does not fit maxvit_t.*no larger size is known"):
        check_size(*network("maxvit_t", 160))


def test_a_misfit_costs_no_memory():
    """vgg19 with 26,263 classes has 247 million parameters: a gigabyte if it were built."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(p.numel() for p in zoo.skeleton(*network("vgg19", 224)[:2], 26_263).parameters()) > 240e6
    check_size(*network("vgg19", 224), 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


OWN_CODE = """
import torch
from torch import nn

class Curious(nn.Module):
    def __init__(self, num_classes, looks, scaled):
        super().__init__()
        self.conv, self.end, self.looks, self.scaled = nn.Conv2d(3, 4, 5), nn.Linear(4, num_classes), looks, scaled

    def forward(self, images):
        maps = self.conv(images)
        if self.looks and maps.sum() > 1e9:
            return None
        logits = self.end(maps.mean((2, 3)))
        return logits * 2 if self.scaled else logits

def curious(num_classes, looks=False, scaled=False):
    return Curious(num_classes, looks, scaled)
"""


@pytest.fixture
def own_code(own_module):
    return f"{own_module(OWN_CODE)}:curious"


SEQUENCES = """
from torch import nn

def net(num_classes):
    sequence = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return nn.Sequential(sequence, nn.Linear(4, num_classes))
"""


def test_windows_over_sequences_are_torchs_business(own_module):
    """Three channels are no side that a window of five has to fit into."""
    check_size(*network(f"{own_module(SEQUENCES)}:net", 8))
    with pytest.raises(
        ModelError, match=r"2 pixels does not fit .*Kernel size can't be greater.* the smallest above it that does is 3"
    ):
        check_size(*network(f"{own_module(SEQUENCES)}:net", 2))


def test_networks_of_ones_own_are_checked_too(own_code):
    check_size(*network(own_code, 5))
    with pytest.raises(
        ModelError, match="a window of 5 pixels, stride 1, is left with 4; the smallest above it that does is 5"
    ):
        check_size(*network(own_code, 4))
    assert misfit(*network(own_code, 8, looks=True), 8) is None  # nobody can know without numbers


def test_a_head_of_ones_own_must_give_the_networks_output(own_code):
    check_head(*network(own_code, 8))
    with pytest.raises(ModelError, match=r"something else than its last linear layer.*train\.mode scratch"):
        check_head(*network(own_code, 8, scaled=True))
