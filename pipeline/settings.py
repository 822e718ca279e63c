"""The sections of a config document, training apart (`trainsettings`). Each function gets only its section."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.deadlines import parse_deadline
from pipeline.section import Section


class StorageSettings(Section):
    """How object stores are reached. Credentials come from the environment or the platform only."""

    endpoint: str | None = Field(None, description="of an S3-compatible store, such as http://127.0.0.1:9000, or Azure")
    region: str | None = None
    profile: str | None = Field(None, description="AWS profile name (needs boto3 installed)")
    anonymous: bool = Field(False, description="do not sign requests: public buckets")
    requester_pays: bool = False
    timeout_s: float = Field(60, gt=0, description="one request, connection and body included")
    # 16 retries last some 2.5 minutes when the store is away: longer than a failover takes.
    max_retries: int = Field(16, ge=0, description="per operation: 5xx, throttling, timeouts, resets, bodies cut short")
    retry_s: float = Field(300, gt=0, description="no operation is tried again after so long")
    max_connections: int = Field(32, gt=0, description="requests that one process has open at a time")

    @field_validator("endpoint")
    @classmethod
    def _endpoint_has_a_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected http://host:port or https://host")
        return value


Operator = Literal["=", "==", "!=", "<", "<=", ">", ">=", "in", "not in"]
Scalar = str | int | float | bool | date
Predicate = tuple[str, Operator, Scalar | tuple[Scalar, ...]]


class InputSettings(Section):
    """What to label: where the images are and what their columns are called."""

    url: str = Field(description="folder of Parquet files or images, one file, a CSV, or s3://, gs://, az://")
    name: str | None = Field(None, description="data set name in the store (default: last part of url)")
    format: Literal["auto", "parquet", "csv", "images"] = "auto"
    image_column: str | None = Field(None, description="encoded bytes, or struct<bytes, path>")
    uri_column: str | None = Field(None, description="location of the image, instead of image_column")
    allowed_prefixes: tuple[str, ...] = Field((), description="where URIs may point (default: below input.url)")
    id_column: str | None = None
    label_column: str | None = Field(None, description="the one label of an image")
    labels_column: str | None = Field(None, description="all labels of an image, a list: a multi-label model")
    absent_column: str | None = Field(
        None, description="labels looked for and not there; where given, others are unknown"
    )
    labels_separator: str = Field(";", min_length=1, description="between labels where labels_column is text")
    split_column: str | None = None
    group_column: str | None = Field(None, description="rows of one group never part: same split")
    filter: tuple[Predicate, ...] = Field((), description="[column, 'op', value] each: rows or Hive partitions to take")
    max_vanished_fraction: float = Field(0.2, ge=0, le=1, description="more known images gone: the night is held")
    size_px: int | None = Field(None, gt=0, description="training: the model's input size (default: as published)")
    max_pixels: int = Field(100_000_000, gt=0, description="larger images are refused before decoding")
    shard_images: int = Field(256, gt=0, description="images per shard, the unit of work and of commit")

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or value.startswith(".") or "/" in value):
            raise ValueError("expected the name of one folder: not empty, no slash, no dot in front")
        return value

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.labels_column is not None

    def without_truth(self) -> "InputSettings":
        """Return the input as labelling needs it: without what only training and evaluation read."""
        return self.model_copy(
            update=dict.fromkeys(
                ("label_column", "labels_column", "absent_column", "split_column", "group_column", "size_px")
            )
        )

    @field_validator("filter", mode="before")
    @classmethod
    def _predicates_are_triples(cls, value: Any) -> Any:
        for predicate in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(predicate, list | tuple) or len(predicate) != 3:
                raise ValueError(f"expected predicates as [[column, 'operator', value], ...], not {predicate!r}")
        return value

    @field_validator("filter")
    @classmethod
    def _lists_go_with_in(cls, value: tuple[Predicate, ...]) -> tuple[Predicate, ...]:
        for column, operator, operand in value:
            if (operator in ("in", "not in")) != isinstance(operand, tuple) or operand == ():
                expected = "a list of values, not empty" if operator in ("in", "not in") else "one value"
                raise ValueError(f"[{column}, {operator!r}, {operand!r}]: {operator} takes {expected}")
        return value

    @model_validator(mode="after")
    def _one_kind_of_label(self) -> "InputSettings":
        if self.label_column and self.labels_column:
            raise ValueError("give label_column (one label each) or labels_column (any number of them), not both")
        if self.absent_column and not self.labels_column:
            raise ValueError("absent_column belongs to labels_column, which says what is there; give that too")
        return self

    @model_validator(mode="after")
    def _one_image_source(self) -> "InputSettings":
        if self.image_column and self.uri_column:
            raise ValueError("give image_column (bytes) or uri_column (locations), not both")
        return self


class SplitSettings(Section):
    """Shares of a stable hash split, for data sets without a split column."""

    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "SplitSettings":
        if self.val + self.test >= 1:
            raise ValueError("val + test must leave something to train on (below 1)")
        return self


Triple = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]


class TransformSettings(Section):
    """Preprocessing, sealed into the bundle. Values left out follow the builder's published weights."""

    resize_px: int | None = Field(None, gt=0, description="short side after resizing")
    crop_px: int | None = Field(None, gt=0, description="centre crop, and the model's input size")
    color: Literal["RGB", "L"] | None = None
    mean: Triple | None = Field(None, description="per channel, of pixels in 0..1")
    std: Triple | None = None


class ModelSettings(Section):
    """Which network, from which weights, under which name in the store."""

    name: str = Field("model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    builder: str = Field("mobilenet_v2", description="a name of `nightshift models`, or package.module:function")
    arguments: dict[str, Any] = Field({}, description="keyword arguments of the builder, such as width_mult")
    weights: str | None = Field(
        None, description="safetensors file or URL, torchvision name such as DEFAULT, or bundle name@version"
    )
    version: str | None = Field(None, description="bundle that labels (default: production)")
    classes: str | None = Field(None, description="JSON list of class names (mode: none)")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="mode none: a multi-label model, that says a class from this probability on"
    )
    transforms: TransformSettings = TransformSettings()


class LabelSettings(Section):
    """How labelling runs and what it writes."""

    top_k: int = Field(5, gt=0)
    columns: tuple[str, ...] = Field((), description="columns and hive partitions of the input to copy to the labels")
    embeddings: bool = Field(False, description="also write what enters the classifier, as the column embedding")
    review_below: float | None = Field(None, gt=0, le=1, description="labels less sure go to review/, to be looked at")
    relabel: Literal["all", "new"] = Field("all", description="what a new production model labels: all, or new images")
    max_images: int | None = Field(None, gt=0, description="label whole shards until there are so many images: exit 5")
    overlap: Literal["wait", "leave", "work"] = Field(
        "wait", description="while another run labels this data set: wait for it, leave with exit 5, or work beside it"
    )
    deadline: str | None = Field(None, description="take no new shard after a duration (5h, 90m) or at a time (06:00)")
    batch_size: int = Field(64, gt=0)
    min_workers: int = Field(1, gt=0, description="labellers that must fit before the work starts")
    max_workers: int | None = Field(None, gt=0, description="labellers (default: one per CPU or GPU of the session)")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="default: one where the session has GPUs, else none")
    memory_mb_per_worker: int | None = Field(None, gt=0, description="memory that Ray keeps free for a labeller")
    node_labels: dict[str, str] = Field({}, description="Ray labels of the nodes that label: {ray.io/node-group: gpu}")
    attempts: int = Field(3, gt=0, description="tries per shard before it is listed as failed")
    stall_s: float = Field(300, gt=0, description="nothing done for so long: say which shards, and what they wait for")
    buffer_mb: int = Field(256, gt=0, description="encoded and decoded images that one labeller holds at a time")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="auto: the fastest that agrees, measured")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    exact: bool = Field(False, description="the reference path only: Pillow, torch, fp32")
    min_agreement: float = Field(0.95, ge=0, le=1, description="share of same top-1 labels that a fast path must reach")
    max_difference: float = Field(0.02, gt=0, description="mean absolute difference of top-1 probabilities it may show")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="over it: exit 3, nothing published")
    require_new: bool = Field(False, description="exit 4 when there was nothing new to label")

    @field_validator("deadline")
    @classmethod
    def _deadline_is_a_duration_or_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            parse_deadline(value)
        return value

    @model_validator(mode="after")
    def _min_is_at_most_max(self) -> "LabelSettings":
        if self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most max_workers ({self.max_workers})")
        return self

    def halved(self, times: int) -> "LabelSettings":
        """Return the same with `batch_size` halved so often, down to 1."""
        return self.model_copy(update={"batch_size": max(1, self.batch_size >> times)})

    @model_validator(mode="after")
    def _exact_is_the_reference(self) -> "LabelSettings":
        if self.exact and (self.engine == "openvino" or self.precision in ("bf16", "fp16")):
            raise ValueError(
                f"exact means torch and fp32: leave engine ({self.engine}) and precision ({self.precision})"
            )
        return self


class OutputSettings(Section):
    """How the current view is kept."""

    table: Literal["files", "delta"] = Field("files", description="delta: also a Delta table at labels/<dataset>")
    compact_below: int = Field(10_000, ge=0, description="rows; smaller files are joined when many have gathered")


def is_dashboard(address: str | None) -> bool:
    """Whether an address is that of a cluster's dashboard, which takes jobs, and not one to join."""
    return address is not None and address.startswith(("http://", "https://"))


class ClusterSettings(Section):
    """The Ray session."""

    address: str | None = Field(
        None,
        description="of a running Ray cluster: host:port or auto; for submit http://head:8265 (default: a session here)",
    )
    shared_paths: tuple[str, ...] = Field(
        (), description="folders that every node mounts at the same place: submit takes local paths only below them"
    )
    max_upload_mb: float = Field(32, gt=0, le=100, description="what submit sends along at most, before compression")
    num_cpus: int | None = Field(None, gt=0, description="CPUs of the one-node session (default: all)")
    num_gpus: int | None = Field(None, ge=0)
    price_per_hour: float | None = Field(None, ge=0, description="of the whole cluster, for the estimate of --dry-run")
