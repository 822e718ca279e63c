"""The section `train.augment`: what happens to pictures before they are learnt, by chance and never when they are labelled."""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.section import Section

Share = tuple[float, float]


class AugmentSettings(Section):
    """Everything is off by default. Chance depends on the seed, the epoch and the image, not on workers."""

    crop_area: Share | None = Field(
        None, description="[0.08, 1]: a random part, of so much area, instead of the centre"
    )
    flip: Literal["none", "horizontal", "vertical", "both"] = Field(
        "none", description="digits and text keep their side"
    )
    rotate_degrees: float = Field(0.0, ge=0, le=180, description="turned by up to so much, either way")
    color: float = Field(
        0.0, ge=0, le=1, description="brightness, contrast, saturation: by up to this share, either way"
    )
    trivial: bool = Field(False, description="TrivialAugment: one of 14 operations at a random strength")
    erase: float = Field(0.0, ge=0, le=1, description="probability of a grey box over a part of the picture")
    mixup: float = Field(0.0, ge=0, description="alpha: two pictures laid over each other, and their labels")
    cutmix: float = Field(0.0, ge=0, description="alpha: a box of another picture, and its part of the label")

    @field_validator("crop_area")
    @classmethod
    def _area_is_a_range(cls, value: Share | None) -> Share | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError(
                f"expected [smallest, largest] share of the area, 0 < smallest <= largest <= 1 (it is {list(value)})"
            )
        return value

    @property
    def changes_pictures(self) -> bool:
        """Whether single pictures are changed."""
        return bool(
            self.crop_area or self.flip != "none" or self.rotate_degrees or self.color or self.trivial or self.erase
        )

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0
