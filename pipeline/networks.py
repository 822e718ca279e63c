"""The networks that nightshift brings: a linear classifier, the lab's small CNN and a resnet for small pictures, of any colour."""

from collections.abc import Callable

import torch
from torch import nn


class Linear(nn.Module):
    """`y = W x + b` on pixels."""

    def __init__(self, num_classes: int, size_px: int, in_channels: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(in_channels * size_px * size_px, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of images [B, C, H, W]."""
        logits: torch.Tensor = self.fc(self.flatten(images))
        return logits


class LabCNN(nn.Module):
    """The classic lab network: conv5x5-16, pool, conv5x5-32, pool, linear; same padding, any size from 4 pixels."""

    def __init__(self, num_classes: int, size_px: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(32 * (size_px // 4) ** 2, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of images [B, C, H, W]."""
        logits: torch.Tensor = self.fc(self.features(images))
        return logits


def resnet18_cifar(num_classes: int, size_px: int, in_channels: int) -> nn.Module:
    """Torchvision's resnet18 for small pictures: a first convolution of 3 x 3 without stride, and no pooling after it.

    As in "A Simple Framework for Contrastive Learning", B.9 (arXiv 2002.05709). It takes pictures of any size.
    """
    from torchvision.models import resnet18  # seconds, which the others do without

    net: nn.Module = resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    net.maxpool = nn.Identity()
    return net


OWN: dict[str, Callable[..., nn.Module]] = {"linear": Linear, "lab_cnn": LabCNN, "resnet18_cifar": resnet18_cifar}
# Builder -> resize and crop: those of CIFAR-10 and of MNIST, which they are taught on.
PUBLISHED_PX = {"linear": (32, 32), "lab_cnn": (28, 28), "resnet18_cifar": (32, 32)}
