"""The sections of a config document that say how models are judged, and what a model must show to label."""

from pydantic import Field, field_validator

from pipeline.section import Section


class EvaluateSettings(Section):
    """What is judged besides the whole."""

    slices: tuple[str, ...] = Field((), description="columns and hive partitions of the input: accuracy for each value")

    @field_validator("slices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"{name!r} stands twice; remove one")
        return value


class RobustnessSettings(Section):
    """Which spoilt pictures a model is asked about."""

    max_images: int = Field(200, gt=0, description="images, of each of which there are 95 spoilt copies")
    corruptions: tuple[str, ...] = Field((), description="names, such as fog or jpeg (default: all)")


class PromoteSettings(Section):
    """What a version must show before it becomes production."""

    min_top1: float | None = Field(None, ge=0, le=1, description="share of right labels that it must reach")
    min_map: float | None = Field(None, ge=0, le=1, description="multi-label: mean average precision it must reach")
    max_p: float = Field(
        0.05,
        gt=0,
        le=1,
        description="probability of its wins over production by chance alone; 1: more wins than losses",
    )
    max_ece: float | None = Field(0.1, ge=0, le=1, description="expected calibration error that it may show")
