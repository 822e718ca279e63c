import torch

from pipeline.networks import OWN, PUBLISHED_PX, LabCNN, Linear


def test_the_linear_classifier_is_w_x_plus_b():
    net, images = Linear(3, 4, 2), torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(net(images), images.reshape(5, 32) @ net.fc.weight.T + net.fc.bias)


def test_the_small_cnn_has_the_shapes_of_the_lab():
    net = LabCNN(10, 28, 1)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(16, 1, 5, 5), (32, 16, 5, 5), (10, 32 * 7 * 7)]
    assert net(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_every_network_of_ours_has_a_published_size():
    assert OWN.keys() == PUBLISHED_PX.keys()
