"""What this node computes with: asked of the system, never assumed, and without importing an engine."""

import os
import re
from functools import lru_cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# An engine may compile other code for each of these, so a measurement holds only where they are the same.
VECTOR_FLAGS = re.compile(r"avx|amx|f16c|fma|sse4|asimd|sve|bf16|i8mm|fphp")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@lru_cache(maxsize=1)
def cpu_info() -> str:
    """Return the system's description of the processor, an empty string where there is none."""
    try:
        return CPU_INFO.read_text()
    except OSError:
        return ""


def cpu_name(info: str) -> str:
    """Return the processor's name, `unknown` when the description has none."""
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def vector_flags(info: str) -> tuple[str, ...]:
    """Return the names of the vector instructions, sorted."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    return tuple(sorted({flag for flag in found[1].split() if VECTOR_FLAGS.match(flag)})) if found else ()


def has_bf16(flags: tuple[str, ...]) -> bool:
    """Say whether the processor multiplies bfloat16 itself: emulated, it is slower than float32."""
    return not BF16_FLAGS.isdisjoint(flags)


def has_gpu() -> bool:
    """Say whether an NVIDIA GPU may be used here; Ray hides those of others by an empty CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1", "NoDevFiles") and any(Path("/dev").glob("nvidia[0-9]*"))
