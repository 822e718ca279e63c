"""The Ray session: one node here, or a cluster's address. Whoever finds a session running uses it and leaves it running."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

from cluster.checkout import code_root, program, refuse_other
from cluster.headwatch import watched
from pipeline.errors import TransientError, UsageError
from pipeline.refusals import first_line
from pipeline.settings import ClusterSettings, is_dashboard

# Read by Ray at start. Usage statistics off: nothing leaves the machine. The uv hook off: under `uv run` it would give
# every worker an environment of its own. Metrics and the memory monitor's noise have no reader in a one-node session.
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "1",
}
# What workers need, here and on a cluster.
WORKER_ENVIRONMENT = {
    # A worker that asked for no GPU sees none: sixteen labellers on one GPU that nobody gave them run out of its memory.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Pictures are mapped and unmapped. Left to itself glibc raises this threshold up to 32 MB, and each decoding thread's
    # arena keeps what it has freed (measured with photos of 12 MP: 331 MB of it, 45 MB with the threshold fixed).
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    # With that one fixed, glibc gives back the top of a heap whenever 128 kB of it are free, and every next picture touches
    # new pages: 170 page faults per photo of 400 x 280, 50 with this, and 7 % more images/s.
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    # Each arena keeps that much, and every shard's threads come upon others: sixteen of them grew a labeller to 750 MB in
    # 40 shards; with four it stays at 350, as fast.
    "MALLOC_ARENA_MAX": "4",
}
KNOCK_S = 10.0


@contextmanager
def session(settings: ClusterSettings) -> Iterator[None]:
    """Connect to the cluster, or start a one-node session that ends with the block."""
    if ray.is_initialized():
        yield
        return
    try:
        with _undisturbed():
            _connect(settings)
        if (
            settings.address
        ):  # workers of a session of our own have this process's path, and actors are asked one by one
            _check_code()
        with watched(ray.get_runtime_context().gcs_address):
            yield
    finally:
        ray.shutdown()


def _connect(settings: ClusterSettings) -> None:
    for key, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if settings.address:
        _join(settings.address)
        return
    for key, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    _provide_token()
    logging.getLogger("ray._private.authentication").setLevel(
        logging.ERROR
    )  # it warns that tokens are on, as they should be
    try:
        ray.init(
            address="local",  # without it RAY_ADDRESS, or a cluster that runs here, would be joined unasked
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except Exception as error:  # what Ray (2.60) raises when its processes do not come up in time
        raise TransientError(
            f"Ray cannot start a session on this machine ({first_line(error)}); it may be too busy. "
            "The same command tries again; `nightshift doctor` says more"
        ) from error


def _join(address: str) -> None:
    """Connect to a running cluster; UsageError when none answers."""
    if is_dashboard(address):
        raise UsageError(
            f"cluster.address: {address} is a cluster's dashboard, which takes submitted jobs: `nightshift submit nightly CONFIG`; "
            "to join from a node of the cluster give host:port of its head, or auto"
        )
    # A submitted job got the environment with its working directory, and Ray (2.60) refuses to be told twice.
    environment = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else {"env_vars": WORKER_ENVIRONMENT}
    try:
        _knock(address)
        ray.init(address=address, logging_level="ERROR", runtime_env=environment or None)
    except (OSError, ValueError, RuntimeError, RayError) as error:  # also bad addresses, foreign versions, wrong tokens
        raise UsageError(
            f"cluster.address: no Ray cluster can be joined at {address} ({error}); start it there, or leave the key out "
            "for a session on this machine"
        ) from error


def _knock(address: str) -> None:
    """Try the port first: ray.init (2.60) waits for minutes where nobody listens, deaf to Ctrl-C."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back while Ray starts, and keep this process's answer to SIGTERM.

    A process whose ray.init (2.60) was interrupted halfway may crash at its end; and ray.init puts a handler of its own
    in place of SIGTERM's, which exits without a record of the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    except SystemExit:  # Ray's handler
        held.append(signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for late in held[:1]:
            signal.raise_signal(late)


def _provide_token() -> None:
    """Ray keeps its sessions' token in a file below HOME; where HOME cannot be written, this session gets one of its own."""
    if "RAY_AUTH_TOKEN_PATH" in os.environ or "RAY_AUTH_TOKEN" in os.environ or os.access(Path.home(), os.W_OK):
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_code() -> None:
    """Refuse to run on a cluster whose workers import another nightshift than this process, or none."""
    try:
        there = ray.get(ray.remote(num_cpus=0)(program).remote())
    except RayError as error:
        raise UsageError(
            f"the workers cannot run nightshift ({str(error).strip().splitlines()[-1]}); install this checkout, {code_root()}, "
            "on the cluster"
        ) from error
    refuse_other(there)
