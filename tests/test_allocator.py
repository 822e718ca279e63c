import platform
import subprocess
import sys

import pytest

from pipeline import allocator

# What is left of 200 blocks of 1 MB when all are given back.
SCRIPT = """
import os
import numpy as np
from pipeline.allocator import keep_freed_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

if {keep}:
    assert keep_freed_memory()
before = resident_mb()
blocks = [np.ones(2**20, np.uint8) for _ in range(200)]
del blocks
print(resident_mb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_blocks_are_kept_for_the_next_step():
    left = {
        keep: int(subprocess.check_output([sys.executable, "-c", SCRIPT.format(keep=keep)], text=True))
        for keep in (False, True)
    }
    assert left[False] < 20
    assert left[True] > 150


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def none(_):
        raise error

    monkeypatch.setattr(allocator.ctypes, "CDLL", none)
    assert not allocator.keep_freed_memory()
