"""The section `kubernetes` of a config document: what a night is on a Kubernetes cluster with KubeRay."""

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from pipeline.section import Section

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class GroupSettings(Section):
    """A group of worker nodes: one pod each, as many as the autoscaler wants."""

    cpus: int = Field(4, gt=0)
    memory_gb: int = Field(16, gt=0)
    gpus: int = Field(0, ge=0)
    min: int = Field(0, ge=0, description="pods that are always there while the night lasts")
    max: int = Field(4, gt=0)


class KubernetesSettings(Section):
    """Names, sizes and times; secrets by their names only."""

    image: str | None = Field(None, description="made by the Dockerfile, with a tag or digest")
    namespace: str = Field("default", pattern=NAME)
    schedule: str = Field("0 1 * * *", description="cron expression of five fields")
    time_zone: str = Field("Etc/UTC", description="of the schedule, such as Europe/Berlin")
    hours: float = Field(
        8, gt=0, description="a night that lasts longer is ended; label.deadline ends it cleanly before"
    )
    service_account: str | None = Field(
        None, pattern=NAME, description="of all pods: the cloud's identity for the store"
    )
    env_secret: str | None = Field(None, pattern=NAME, description="Secret whose keys become the pods' environment")
    token_secret: str | None = Field(
        None, pattern=NAME, description="Secret with Ray's token (default: KubeRay makes one)"
    )
    environment: dict[str, str] = Field({}, description="plain values for what the config names as ${NAME}")
    head_cpus: int = Field(2, gt=0)
    head_memory_gb: int = Field(8, gt=0)
    cpu_workers: GroupSettings | None = Field(GroupSettings(), description="labellers without GPU, planning")
    gpu_workers: GroupSettings | None = Field(None, description="labellers and training with GPUs")
    spot_selector: dict[str, str] = Field(
        {},
        description="labels of spot nodes: a group for each kind comes there first, on other nodes when there are none",
    )

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, value: str) -> str:
        try:
            next(CronSim(value, datetime(2026, 1, 1)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"expected a cron expression of five fields, such as 0 1 * * * ({error})") from error
        return value

    @field_validator("time_zone")
    @classmethod
    def _time_zone_is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("expected a time zone by its name, such as Europe/Berlin or Etc/UTC") from error
        return value
