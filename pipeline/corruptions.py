"""What happens to pictures outside the laboratory, made from clean ones: five severities each, the same at every run.

Each takes model input, uint8 [S, S, C] with S = crop_px, so nothing is resized afterwards, and gives such pixels. Constants
of noise, blur, pixels, JPEG, brightness and contrast are those of ImageNet-C (D. Hendrycks and T. Dietterich, "Benchmarking
neural network robustness to common corruptions and perturbations", ICLR 2019), whose pictures have 224 pixels; lengths in
pixels are in proportion to S. Saturation and fog are simpler than theirs; those and all others have constants of our own.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.transforms import Pixels

Random = np.random.Generator
Floats = npt.NDArray[np.float64]
Corrupt = Callable[[Pixels, float, Random], Pixels]
SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_PX = 224
BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Corruption:
    """A way to spoil a picture: which challenge of recognition it stands for, and how strong it is at each severity."""

    challenge: str
    name: str
    strengths: tuple[float, ...]
    apply: Corrupt

    def __call__(self, pixels: Pixels, severity: int, image: str) -> Pixels:
        """Return the picture spoilt; `image` names it, and chance comes from that, the corruption and the severity alone."""
        seed = int.from_bytes(sha256(f"{image}\0{self.name}\0{severity}".encode()).digest()[:8], "big")
        return self.apply(pixels, self.strengths[severity - 1], np.random.default_rng(seed))


# Light and noise: pictures as floats [S, S, C] from 0 to 1.


def _unit(pixels: Pixels) -> Floats:
    return pixels.astype(np.float64) / 255


def _bytes(values: Floats) -> Pixels:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(pixels: Pixels, sigma: float, random: Random) -> Pixels:
    """Add normal noise of this standard deviation, as in poor light."""
    return _bytes(_unit(pixels) + random.normal(0, sigma, pixels.shape))


def shot_noise(pixels: Pixels, photons: float, random: Random) -> Pixels:
    """Count photons: Poisson noise, at most so many of them per pixel."""
    return _bytes(random.poisson(_unit(pixels) * photons) / photons)


def impulse_noise(pixels: Pixels, share: float, random: Random) -> Pixels:
    """Make this share of all values black or white."""
    chance = random.random(pixels.shape)
    return np.where(chance < share / 2, 0, np.where(chance < share, 255, pixels)).astype(np.uint8)


def brightness(pixels: Pixels, more: float, random: Random) -> Pixels:
    """Add to V of HSV, the largest of a pixel's channels: colours stay in proportion."""
    values = _unit(pixels)
    value = values.max(axis=2, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return _bytes(np.where(value > 0, values * brighter / np.maximum(value, 1e-9), brighter))


def contrast(pixels: Pixels, factor: float, random: Random) -> Pixels:
    """Bring all values nearer to the mean of their channel."""
    values = _unit(pixels)
    mean = values.mean(axis=(0, 1), keepdims=True)
    return _bytes((values - mean) * factor + mean)


def saturation(pixels: Pixels, factor: float, random: Random) -> Pixels:
    """Multiply S of HSV: below 1 colours fade, above they glare."""
    values = _unit(pixels)
    value, least = values.max(axis=2, keepdims=True), values.min(axis=2, keepdims=True)
    now = np.where(value > 0, (value - least) / np.maximum(value, 1e-9), 0)
    wanted = np.clip(now * factor, 0, 1)
    return _bytes(value - (value - values) * np.where(now > 0, wanted / np.maximum(now, 1e-9), 0))


def fog(pixels: Pixels, thickness: float, random: Random) -> Pixels:
    """Lay a plasma cloud over the picture, and darken both so that the brightest stays as bright."""
    values = _unit(pixels)
    cloud = _cloud(pixels.shape[0], random)[:, :, None]
    brightest = values.max()
    return _bytes((values + thickness * cloud) * brightest / (brightest + thickness) if brightest else values)


def _cloud(side: int, random: Random) -> Floats:
    """Return a plasma [side, side] from 0 to 1: noise at every octave, half as strong at half the size."""
    cloud, weight, cells = np.zeros((side, side)), 1.0, 2
    while cells <= side:
        noise = Image.fromarray(random.random((cells, cells)).astype(np.float32))
        cloud += weight * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
        weight, cells = weight / 1.75, cells * 2
    return np.asarray((cloud - cloud.min()) / max(1e-9, np.ptp(cloud)))


# Lenses, sensors and transport.


def gaussian_blur(pixels: Pixels, sigma: float, random: Random) -> Pixels:
    """Blur with a Gaussian of this standard deviation, in pixels of 224."""
    sigma = sigma * pixels.shape[0] / REFERENCE_PX
    reach = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1)
    line = np.exp(-(reach**2) / (2 * max(sigma, 1e-6) ** 2))
    return _blurred(pixels, np.outer(line, line))


def defocus(pixels: Pixels, radius: float, random: Random) -> Pixels:
    """Blur with a disk of this radius, in pixels of 224, as a lens out of focus does."""
    radius = radius * pixels.shape[0] / REFERENCE_PX
    reach = np.arange(-np.ceil(radius) - 1, np.ceil(radius) + 2)
    distance = np.hypot(*np.meshgrid(reach, reach))
    return _blurred(pixels, np.clip(radius + 0.5 - distance, 0, 1))  # a pixel on the edge counts in part


def _blurred(pixels: Pixels, kernel: Floats) -> Pixels:
    """Convolve each channel with a kernel of odd size; what lies outside mirrors what lies inside."""
    margin, side = kernel.shape[0] // 2, pixels.shape[0]
    values = _padded(pixels, margin).astype(np.float64) / 255
    size = (values.shape[0] + kernel.shape[0] - 1,) * 2
    spectrum = np.fft.rfft2(values, size, axes=(0, 1)) * np.fft.rfft2(kernel / kernel.sum(), size)[:, :, None]
    whole = np.fft.irfft2(spectrum, size, axes=(0, 1))
    start = 2 * margin
    return _bytes(whole[start : start + side, start : start + side])


def pixelate(pixels: Pixels, factor: float, random: Random) -> Pixels:
    """Make the picture smaller by this factor, and large again with hard edges."""
    image, side = _picture(pixels), pixels.shape[0]
    small = max(1, round(side * factor))
    return _array(image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.NEAREST))


def jpeg(pixels: Pixels, quality: float, random: Random) -> Pixels:
    """Compress with JPEG at this quality."""
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, "JPEG", quality=int(quality))
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        return _array(image)


# Where the camera stands: what comes into sight mirrors what was there.


def rotation(pixels: Pixels, degrees: float, random: Random) -> Pixels:
    """Turn by so many degrees to either side."""
    angle = np.deg2rad(degrees * random.choice([-1, 1]))
    cos, sin = np.cos(angle), np.sin(angle)
    return _moved(pixels, np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]))


def shear(pixels: Pixels, slope: float, random: Random) -> Pixels:
    """Slant to either side."""
    return _moved(pixels, np.array([[1, slope * random.choice([-1, 1]), 0], [0, 1, 0], [0, 0, 1]]))


def perspective(pixels: Pixels, tilt: float, random: Random) -> Pixels:
    """Look from one side: the far edge is shorter by this share."""
    direction = random.choice([-1, 1]) * np.eye(2)[random.integers(2)]
    return _moved(pixels, np.array([[1, 0, 0], [0, 1, 0], [*(tilt * direction / 2), 1]]))


def zoom(pixels: Pixels, factor: float, random: Random) -> Pixels:
    """Come nearer (above 1) or go away (below 1)."""
    return _moved(pixels, np.diag([1 / factor, 1 / factor, 1]))


def _moved(pixels: Pixels, matrix: Floats) -> Pixels:
    """Take each pixel from where the 3 x 3 matrix sends it, in coordinates from -1 to 1 about the centre."""
    side = pixels.shape[0]
    margin = side - 1
    padded = _picture(_padded(pixels, margin))
    half, centre = side / 2, margin + side / 2
    to_pixels = np.array([[half, 0, centre], [0, half, centre], [0, 0, 1]])
    from_pixels = np.linalg.inv(np.array([[half, 0, half], [0, half, half], [0, 0, 1]]))
    whole = to_pixels @ matrix @ from_pixels
    coefficients = tuple((whole / whole[2, 2]).reshape(-1)[:8])
    return _array(padded.transform((side, side), Image.Transform.PERSPECTIVE, coefficients, BILINEAR))


def elastic(pixels: Pixels, shift: float, random: Random) -> Pixels:
    """Bend the picture as if on rubber: the corners of an 8 x 8 grid move by up to this share of its cells."""
    side, cells = pixels.shape[0], min(8, max(1, pixels.shape[0] // 4))
    lines = np.linspace(0, side, cells + 1)
    corners = np.stack(np.meshgrid(lines, lines), axis=2)
    inner = np.zeros_like(corners)
    inner[1:-1, 1:-1] = random.uniform(-shift, shift, (cells - 1, cells - 1, 2)) * side / cells
    corners = corners + inner
    mesh = [
        (
            tuple(round(v) for v in (lines[x], lines[y], lines[x + 1], lines[y + 1])),
            tuple(float(v) for row, col in ((y, x), (y + 1, x), (y + 1, x + 1), (y, x + 1)) for v in corners[row, col]),
        )
        for y in range(cells)
        for x in range(cells)
    ]
    return _array(_picture(pixels).transform((side, side), Image.Transform.MESH, mesh, BILINEAR))


# What stands in front.


def patches(pixels: Pixels, share: float, random: Random) -> Pixels:
    """Cover this share of the area with grey squares, a sixth of the side each."""
    side = pixels.shape[0]
    size = max(1, side // 6)
    covered = np.zeros((side, side), np.bool_)
    while covered.mean() < share:
        top, left = random.integers(0, side - size + 1, 2)
        covered[top : top + size, left : left + size] = True
    return np.where(covered[:, :, None], 127, pixels).astype(np.uint8)


def border(pixels: Pixels, share: float, random: Random) -> Pixels:
    """Cover this share of the side at each edge."""
    width = max(1, round(pixels.shape[0] * share))
    framed = np.full_like(pixels, 127)
    framed[width:-width, width:-width] = pixels[width:-width, width:-width]
    return framed


def _padded(pixels: Pixels, margin: int) -> Pixels:
    return np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "reflect" if pixels.shape[0] > 1 else "edge")


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def _array(image: Image.Image) -> Pixels:
    array = np.asarray(image, np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


CORRUPTIONS = (
    Corruption("viewpoint", "rotation", (5, 10, 20, 30, 45), rotation),
    Corruption("viewpoint", "shear", (0.1, 0.2, 0.3, 0.4, 0.5), shear),
    Corruption("viewpoint", "perspective", (0.1, 0.2, 0.35, 0.5, 0.7), perspective),
    Corruption("scale", "zoom_in", (1.1, 1.25, 1.5, 2, 2.5), zoom),
    Corruption("scale", "zoom_out", (0.9, 0.75, 0.6, 0.5, 0.4), zoom),
    Corruption("illumination", "brightness", (0.1, 0.2, 0.3, 0.4, 0.5), brightness),
    Corruption("illumination", "contrast", (0.4, 0.3, 0.2, 0.1, 0.05), contrast),
    Corruption("illumination", "saturation", (0.3, 0.1, 2, 5, 20), saturation),
    Corruption("illumination", "fog", (1.5, 2, 2.25, 2.5, 3), fog),
    Corruption("deformation", "elastic", (0.1, 0.2, 0.3, 0.4, 0.5), elastic),
    Corruption("occlusion", "patches", (0.05, 0.1, 0.2, 0.3, 0.4), patches),
    Corruption("occlusion", "border", (0.05, 0.1, 0.15, 0.2, 0.25), border),
    Corruption("sensor", "gaussian_noise", (0.08, 0.12, 0.18, 0.26, 0.38), gaussian_noise),
    Corruption("sensor", "shot_noise", (60, 25, 12, 5, 3), shot_noise),
    Corruption("sensor", "impulse_noise", (0.03, 0.06, 0.09, 0.17, 0.27), impulse_noise),
    Corruption("sensor", "gaussian_blur", (1, 2, 3, 4, 6), gaussian_blur),
    Corruption("sensor", "defocus", (3, 4, 6, 8, 10), defocus),
    Corruption("transport", "pixelate", (0.6, 0.5, 0.4, 0.3, 0.25), pixelate),
    Corruption("transport", "jpeg", (25, 18, 15, 10, 7), jpeg),
)


@cache
def by_name() -> dict[str, Corruption]:
    """Return all corruptions by their names."""
    return {corruption.name: corruption for corruption in CORRUPTIONS}
