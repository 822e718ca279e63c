import torch

from pipeline.networks import OWN, PUBLISHED_PX, LabCNN, Linear, resnet18_cifar


def test_the_linear_classifier_is_w_x_plus_b():
    net, images = Linear(3, 4, 2), torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(net(images), images.reshape(5, 32) @ net.fc.weight.T + net.fc.bias)


def test_the_small_cnn_has_the_shapes_of_the_lab():
    net = LabCNN(10, 28, 1)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(16, 1, 5, 5), (32, 16, 5, 5), (10, 32 * 7 * 7)]
    assert net(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_the_resnet_for_small_pictures_keeps_their_size_until_its_second_layer():
    net, images = resnet18_cifar(10, 32, 1), torch.zeros(2, 1, 32, 32)
    early = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    assert early.shape == (2, 64, 32, 32)
    assert net.layer4(net.layer3(net.layer2(net.layer1(early)))).shape == (2, 512, 4, 4)
    assert net(images).shape == (2, 10)
    # torchvision's 11,689,512, less 7 x 7 x 3 x 64 - 3 x 3 x 64 of the first convolution and 990 classes
    assert sum(p.numel() for p in net.parameters()) == 11_689_512 - (49 * 3 - 9) * 64 - 990 * 513
    torch.manual_seed(0)
    spread = resnet18_cifar(10, 32, 3).conv1.weight.std().item()
    assert abs(spread - (2 / (64 * 9)) ** 0.5) < 0.005


def test_every_network_of_ours_has_a_published_size():
    assert OWN.keys() == PUBLISHED_PX.keys()
