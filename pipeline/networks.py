"""The networks that nightshift brings: a linear classifier and the lab's small CNN, for pictures of any size and colour."""

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


OWN: dict[str, type[nn.Module]] = {"linear": Linear, "lab_cnn": LabCNN}
# Builder -> resize and crop: those of CIFAR-10 and of MNIST, which the two are taught on.
PUBLISHED_PX = {"linear": (32, 32), "lab_cnn": (28, 28)}
