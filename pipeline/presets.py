"""Recipes to start from, `train.preset`: values that stand in for those that a config leaves out."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # A small network of one's own from nothing, as in a first course: no tricks, everything visible.
    "lab": {"mode": "scratch", "epochs": 20, "optimizer": "adam", "learning_rate": 1e-3},
    # A new head on the features of a pretrained network, which runs once over the images: minutes on a laptop.
    "transfer": {"mode": "head", "epochs": 40, "optimizer": "adam", "learning_rate": 1e-3},
    # All of a pretrained network, the head ten times as fast as the body.
    "finetune": {
        "mode": "finetune", "epochs": 10, "optimizer": "adamw", "learning_rate": 1e-3, "body_learning_rate": 1e-4,
        "weight_decay": 1e-2, "schedule": "cosine", "warmup_epochs": 1, "label_smoothing": 0.1, "average": 0.99,
        "augment": {"crop_area": [0.35, 1.0], "flip": "horizontal"},
    },
    # From nothing on a million images, after torchvision's "How to train state-of-the-art models" with its weights V2
    # (2021), in a sixth of its 600 epochs; the learning rate is for batches of 256.
    "imagenet": {
        "mode": "scratch", "epochs": 100, "batch_size": 256, "optimizer": "sgd", "learning_rate": 0.125,
        "learning_rate_batch": 256, "weight_decay": 2e-5, "schedule": "cosine", "warmup_epochs": 5,
        "label_smoothing": 0.1, "average": 0.9999,
        "augment": {
            "crop_area": [0.08, 1.0], "flip": "horizontal", "trivial": True, "erase": 0.1, "mixup": 0.2, "cutmix": 1.0,
        },
    },
}  # fmt: skip


def with_preset(given: dict[str, Any]) -> dict[str, Any]:
    """Return the section with the values of its preset where it has none of its own; `augment` key by key.

    Raises
    ------
    ValueError
        For a preset that there is not.
    """
    name = given.get("preset")
    if name is None:
        return given
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    merged = PRESETS[name] | given
    if isinstance(given.get("augment"), dict):
        merged["augment"] = PRESETS[name].get("augment", {}) | given["augment"]
    return merged
