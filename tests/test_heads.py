import copy

import pytest
import torch
from families import ALL, FAMILIES, SQUEEZENETS, build, images
from torch import nn
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

from pipeline.errors import ModelError
from pipeline.heads import (
    append_features,
    classifier_name,
    drop_auxiliary,
    has_linear_head,
    head_of,
    replace_head,
    split_head,
    split_outputs,
)

K = 7


@pytest.mark.parametrize("replaced", [False, True], ids=["own head", "new head"])
@pytest.mark.parametrize("builder", ALL)
def test_features_are_appended_to_the_logits(builder, replaced):
    net = build(builder, K)
    if replaced:
        replace_head(net, K)
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        logits = net(images(builder))
        size = split_head(backbone)
        features = torch.flatten(backbone(images(builder)), 1)
        append_features(net)
        torch.testing.assert_close(net(images(builder)), torch.cat([logits, features], 1))
    assert features.shape == (2, size)


@pytest.mark.parametrize("builder", FAMILIES)
def test_head_of_features_is_the_whole_network(builder):
    net, size = build(builder, K), FAMILIES[builder][1]
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        logits = net(images(builder))
        assert split_head(backbone) == size
        features = backbone(images(builder))
        assert features.shape == (2, size)
        assert logits.shape == (2, K)
        assert logits.std() > 0
        torch.testing.assert_close(head_of(net)(features), logits)
        fresh = replace_head(net, 3)
        assert head_of(net) is fresh
        torch.testing.assert_close(fresh(features), net(images(builder)))


@pytest.mark.parametrize("builder", SQUEEZENETS)
def test_squeezenets_convolution_head_becomes_a_linear_one_on_pooled_maps(builder):
    net = build(builder, K)
    assert (has_linear_head(net), classifier_name(net)) == (False, "classifier.1")
    with pytest.raises(ModelError, match="no linear classifier"):
        head_of(net)
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        assert split_head(backbone) == 512
        features, head = backbone(images(builder)), replace_head(net, 3)
        assert head_of(net) is head
        assert features.shape == (2, 512)
        torch.testing.assert_close(head(features), net(images(builder)))


def test_a_network_without_a_linear_classifier_says_so():
    for change in (split_head, head_of, lambda net: replace_head(net, 2)):
        with pytest.raises(ModelError, match="Sequential has no linear classifier"):
            change(nn.Sequential(nn.Conv2d(3, 2, 1)))


class Own(nn.Module):
    """A network whose head has a name of its own, deep inside."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
        self.answers = nn.ModuleDict({"last": nn.Linear(5, K)})

    def forward(self, images):
        return self.answers["last"](self.body(images))


def test_the_last_linear_layer_of_a_network_of_ones_own_is_its_head():
    net = Own().eval()
    backbone, pixels = copy.deepcopy(net), torch.randn(2, 3, 2, 2)
    assert head_of(net) is net.answers["last"]
    assert classifier_name(net) == "answers.last"
    assert split_head(backbone) == 5
    torch.testing.assert_close(head_of(net)(backbone(pixels)), net(pixels))
    assert replace_head(net, 2) is net.answers["last"]
    assert net(pixels).shape == (2, 2)


@pytest.mark.parametrize(("builder", "layers"), [("inception_v3", ["AuxLogits.fc"]), ("googlenet", ["aux1.fc2", "aux2.fc2"])])  # fmt: skip
def test_auxiliary_classifiers_get_the_new_classes_too_and_are_dropped_without_a_trace(builder, layers):
    net = build(builder, K)
    replace_head(net, 3)
    assert [net.get_submodule(layer).out_features for layer in layers] == [3] * len(layers)
    with torch.inference_mode():
        logits = net(images(builder))
        drop_auxiliary(net)
        assert torch.equal(net(images(builder)), logits)
        assert net.train()(images(builder)).shape == (2, 3)  # one tensor
    assert not any(key.startswith(("AuxLogits", "aux")) for key in net.state_dict())


def test_auxiliary_outputs_come_with_their_published_weights():
    main, first, second = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)
    logits, auxiliary = split_outputs(InceptionOutputs(main, first))
    assert (logits is main, auxiliary[0][0], auxiliary[0][1] is first, len(auxiliary)) == (True, 0.4, True, 1)
    logits, auxiliary = split_outputs(GoogLeNetOutputs(main, second, first))
    assert logits is main
    assert [weight for weight, _ in auxiliary] == [0.3, 0.3]
    assert all(output is one for (_, output), one in zip(auxiliary, (second, first), strict=True))
    assert split_outputs(GoogLeNetOutputs(main, None, None)) == (main, [])
    assert split_outputs(main) == (main, [])


@pytest.mark.parametrize("outputs", [(torch.zeros(1), torch.zeros(1)), {"out": torch.zeros(1)}, None])
def test_outputs_of_no_known_kind_are_refused(outputs):
    with pytest.raises(ModelError, match=rf"one tensor, and model.builder's returns a {type(outputs).__name__}"):
        split_outputs(outputs)


@pytest.mark.parametrize("builder", ["inception_v3", "googlenet"])
def test_torchvisions_training_outputs_are_the_ones_that_we_know(builder):
    net = build(builder, K).train()
    size_px = 299 if builder == "inception_v3" else 64
    net.to("meta")
    logits, auxiliary = split_outputs(net(torch.zeros(2, 3, size_px, size_px, device="meta")))
    assert logits.shape == (2, K)
    assert [tuple(output.shape) for _, output in auxiliary] == [(2, K)] * (1 if builder == "inception_v3" else 2)
