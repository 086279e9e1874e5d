"""Writes ``corruptions.json``: an image corrupted by OpenCV, scikit-image and ImageMagick.

    pip install scikit-image opencv-python-headless Wand && apt-get install libmagickwand-6.q16-6
    python -m tests.golden.make_corruptions

The methods are those of the authors of CIFAR-10-C, with the draws of ``fcifar.random``. No test
needs the packages.
"""

import base64
import ctypes
import io
import json
import zlib
from pathlib import Path

import numpy as np

from fcifar import random
from fcifar.augment import base
from fcifar.augment.corruptions import CORRUPTIONS

NAMES = ("defocus_blur", "motion_blur", "snow", "elastic_transform", "spatter")
SEVERITIES = (1, 2, 5)
SEED = 3
SIDE = 32


def image() -> np.ndarray:
    """Smooth colours with an edge: uint8 [32, 32, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(5 * x + 2 * y), np.cos(7 * y - 3 * x), np.sin(9 * x * y)]
    found = 128 + 90 * np.stack(waves, -1) + 30 * (x > 0.6)[..., None]
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def encode(x: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(x.astype(np.uint8).tobytes(), 9)).decode()


def decode(text: str) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return flat.reshape(SIDE, SIDE, 3)


def levels(x: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(x, 0, 1) * 255)


def line_blur(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's, of a grey or RGB image."""
    import cv2
    from PIL import Image
    from wand.api import library
    from wand.image import Image as WandImage

    number = ctypes.c_double
    library.MagickMotionBlurImage.argtypes = (ctypes.c_void_p, number, number, number)
    file = io.BytesIO()
    Image.fromarray(x).save(file, format="PNG")
    with WandImage(blob=file.getvalue()) as wand:
        library.MagickMotionBlurImage(wand.wand, radius, sigma, angle)
        found = np.frombuffer(wand.make_blob(), np.uint8)
    found = cv2.imdecode(found, cv2.IMREAD_COLOR)[..., ::-1]
    return found if x.ndim == 3 else found[..., 0]


def magnify(x: np.ndarray, factor: float) -> np.ndarray:
    from scipy.ndimage import zoom

    kept = int(np.ceil(SIDE / factor))
    top = (SIDE - kept) // 2
    x = zoom(x[top : top + kept, top : top + kept], factor, order=1)
    trim = (len(x) - SIDE) // 2
    return x[trim : trim + SIDE, trim : trim + SIDE]


def defocus_blur(key, x, radius, alias_blur):
    import cv2

    y = np.arange(-8, 9)
    disk = (y**2 + y[:, None] ** 2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=alias_blur)
    return levels(cv2.filter2D(x / 255, -1, disk))


def motion_blur(key, x, radius, sigma):
    return line_blur(x, radius, sigma, base.uniform(key, (1,), -45.0, 45.0).item())


def snow(key, x, mean, scale, factor, threshold, radius, sigma, share):
    import cv2

    noise_key, angle_key = random.split(key)
    x = (x / 255).astype(np.float32)
    flakes = magnify(mean + scale * random.normal(noise_key, (SIDE, SIDE)).numpy(), factor)
    flakes = levels(np.where(flakes < threshold, 0, flakes))
    angle = base.uniform(angle_key, (1,), -135.0, -45.0).item()
    flakes = line_blur(flakes, radius, sigma, angle)[..., None] / 255
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5)
    return levels(x + flakes + np.rot90(flakes, 2))


def elastic_transform(key, x, displacement, sigma, corner):
    import cv2
    from scipy.ndimage import map_coordinates
    from skimage.filters import gaussian

    corner_key, noise_key = random.split(key)
    moves = base.uniform(corner_key, (3, 2), -SIDE * corner, SIDE * corner).numpy()
    corners = SIDE // 2 + SIDE // 3 * np.float32([[1, 1], [1, -1], [-1, -1]])
    matrix = cv2.getAffineTransform(corners, np.float32(corners + moves))
    x = (x / 255).astype(np.float32)
    x = cv2.warpAffine(x, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT_101)
    noise = random.uniform(noise_key, (2, SIDE, SIDE), -1.0, 1.0).double().numpy()
    right, down = (
        gaussian(part, SIDE * sigma, mode="reflect", truncate=3) * SIDE * displacement
        for part in noise
    )
    rows, columns = np.mgrid[:SIDE, :SIDE]
    place = [rows + down, columns + right]
    parts = [map_coordinates(x[..., i], place, order=1, mode="reflect") for i in range(3)]
    return levels(np.stack(parts, -1))


def spatter(key, x, mean, scale, sigma, threshold, strength, is_mud):
    import cv2
    from skimage.filters import gaussian

    x = x / 255
    drops = gaussian(mean + scale * random.normal(key, (SIDE, SIDE)).double().numpy(), sigma)
    if is_mud:
        covered = gaussian((drops > threshold).astype(np.float32), strength)
        covered = np.where(covered < 0.8, 0, covered)[..., None]
        return levels(x * (1 - covered) + np.array([63, 42, 20]) / 255 * covered)
    drops = np.uint8(255 * np.where(drops < threshold, 0, drops))
    far = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    relief = cv2.equalizeHist(cv2.blur(np.minimum(far, 20), (3, 3)).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = cv2.blur(cv2.filter2D(relief, cv2.CV_8U, light), (3, 3))
    water = drops * relief.astype(np.float32)
    water = strength * water / water.max()
    return levels(x + water[..., None] * np.array([175, 238, 238]) / 255)


def main() -> None:
    found = {
        name: {
            str(severity): encode(
                globals()[name](
                    random.key(SEED), image(), *CORRUPTIONS[name].arguments[severity - 1]
                )
            )
            for severity in SEVERITIES
        }
        for name in NAMES
    }
    Path(__file__).with_name("corruptions.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
