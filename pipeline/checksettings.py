"""The sections of a config document that say what a night must look like to be published, and who hears of it."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section

Ending = Literal["complete", "failed", "refused", "held", "nothing_new", "stopped"]


class CheckSettings(Section):
    """Bounds of a night. What has none is measured and recorded, and holds nothing back."""

    nights: int = Field(7, gt=0, description="published nights before this one that it is compared with")
    min_images: int = Field(100, gt=0, description="fewer new images: labels and confidence are not compared")
    min_volume: float | None = Field(None, gt=0, description="new images, as a multiple of those nights' median")
    max_volume: float | None = Field(None, gt=0, description="the same from above")
    max_psi: float | None = Field(
        None, gt=0, description="population stability index of the labels: 0.1 is some, 0.25 much"
    )
    max_confidence_shift: float | None = Field(None, gt=0, le=1, description="of the mean confidence, up or down")

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> "CheckSettings":
        if self.min_volume is not None and self.max_volume is not None and self.min_volume >= self.max_volume:
            raise ValueError(f"min_volume ({self.min_volume:g}) must be below max_volume ({self.max_volume:g})")
        return self


class NotifySettings(Section):
    """Who hears how a run ended."""

    on: tuple[Ending, ...] = Field(("failed", "refused", "held", "stopped"), description="endings that are told")
    webhook_variable: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="environment variable with the URL that gets Slack-compatible JSON"
    )
    command: tuple[str, ...] = Field((), description="program and arguments; the run's record is on its stdin")
