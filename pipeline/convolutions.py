"""The arithmetic of sliding windows: how many pixels a convolution or a pooling gives."""


def output_px(
    input_px: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Return along one side how many pixels come out; below 1 where the window does not fit.

    Notes
    -----
    o = floor((i + 2p - k - (k - 1)(d - 1)) / s) + 1 (V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep
    learning", arXiv 1603.07285). With `ceil_mode`, which poolings have, a last window may begin inside the picture or its
    left padding and hang over; torch leaves it out where it would begin in the right padding.
    """
    room = input_px + 2 * padding - kernel - (kernel - 1) * (dilation - 1)
    if not ceil_mode:
        return room // stride + 1
    windows = -(-room // stride) + 1
    return windows - 1 if (windows - 1) * stride >= input_px + padding else windows
