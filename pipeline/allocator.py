"""Memory that is used again and again: glibc hands large blocks back to the kernel, which has to clear them for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEPT_BYTES = 512 * 2**20


def keep_freed_memory() -> bool:
    """Let this process reuse the large blocks that it frees; False where the C library is not glibc.

    For processes that train or make features on CPUs, whose largest blocks are the same in every step. It costs memory: what
    the main heap has free up to `KEPT_BYTES`, and each decoding thread's all (measured with PNG of 12 megapixels: 180 MB
    with one thread, 670 MB with four). A labeller's memory is bounded instead, see `cluster.session`.

    Measured on one core with mobilenet_v2: an epoch of training at 96 pixels 16.8 instead of 21.8 s, the answers for photos
    at 224 pixels 45 instead of 13.5 a second, most of the difference spent in the kernel.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_MAX, 0))
