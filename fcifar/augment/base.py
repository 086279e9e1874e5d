"""Types, draws and checks that augmentations share."""

from collections.abc import Callable

import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import functional
from fcifar.errors import shown
from fcifar.random import Key

Augment = Callable[[Key, Tensor], Tensor]
"""``(key, images) -> images``, of the same shape and dtype."""

LARGEST_STRENGTH = 1e6  # degrees or colour factor, in float32
LARGEST_SIZE = 10_000  # pixels; the number of crop positions must fit in 32 bits
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-3, 1e3  # of Beta and Dirichlet distributions
_ATTEMPTS = 8  # of log_gamma


def identity(key: Key, images: Tensor) -> Tensor:
    """Return the images unchanged."""
    return images


# Draws -------------------------------------------------------------------------------------------


def uniform(key: Key, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Draw float32 of ``shape``, uniform in [low, high), or equal to ``low`` if that is empty."""
    if low == high:
        return torch.full(shape, low, dtype=torch.float32, device=key.device)
    return random.uniform(key, shape, low, high)


def random_position(key: Key, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw rows in [0, height) and columns in [0, width), uniform over the grid: int64 [size]."""
    index = random.randint(key, (size,), 0, height * width)
    return index // width, index % width


def log_gamma(key: Key, alpha: float, shape: tuple[int, ...]) -> Tensor:
    """Draw logarithms of Gamma(alpha, 1) variables: float32 of ``shape``.

    Marsaglia and Tsang, "A simple method for generating gamma variables" (2000). Their loop until
    acceptance is ``_ATTEMPTS`` candidates, of which the first accepted one is taken; each is
    rejected with a probability below 0.05, so that one draw in 1e10 finds none and takes the centre
    of the distribution. For alpha below 1, a draw for alpha + 1 is multiplied by u ** (1 / alpha).
    """
    normal_key, uniform_key, power_key = random.split(key, 3)
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    x = random.normal(normal_key, (*shape, _ATTEMPTS))
    u = _open_uniform(uniform_key, (*shape, _ATTEMPTS))
    cube = (1 + x / (9 * d) ** 0.5) ** 3
    log_cube = torch.log(cube.clamp(min=1e-30))
    accepted = (cube > 0) & (torch.log(u) < x**2 / 2 + d * (1 - cube + log_cube))
    drawn = first_accepted(log_cube, accepted, otherwise=0.0)
    boost = 0.0 if alpha >= 1 else torch.log(_open_uniform(power_key, shape)) / alpha
    return drawn + (torch.log(torch.full_like(drawn, d)) + boost)


def first_accepted(values: Tensor, accepted: Tensor, otherwise: float) -> Tensor:
    """Return the first accepted value of each row, or ``otherwise``: [..., n] -> [...]."""
    first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
    chosen = torch.where(accepted.any(-1, keepdim=True), values.gather(-1, first), otherwise)
    return chosen.squeeze(-1)


def beta(key: Key, alpha: float, size: int) -> Tensor:
    """Draw from Beta(alpha, alpha): float32 [size]."""
    return dirichlet(key, alpha, (size, 2))[:, 0]


def dirichlet(key: Key, alpha: float, shape: tuple[int, ...]) -> Tensor:
    """Draw from symmetric Dirichlet distributions over the last axis: float32 of ``shape``."""
    return torch.softmax(log_gamma(key, alpha, shape), -1)


def _open_uniform(key: Key, shape: tuple[int, ...]) -> Tensor:
    return random.uniform(key, shape) + 2.0**-24  # the middle of the cells, above 0


# Checks ------------------------------------------------------------------------------------------


def batch_size(images: Tensor) -> int:
    """Return B. Raises a ValueError if ``images`` is not a batch of images."""
    functional.check_images(images)
    return images.shape[0]


def check_rgb(where: str, images: Tensor) -> None:
    """Raise a ValueError unless ``images`` is a batch of images of three channels."""
    functional.check_images(images)
    if images.shape[1] != 3:
        raise ValueError(f"{where} needs images [B, 3, H, W], not {list(images.shape)}")


def check_grey_or_rgb(where: str, images: Tensor) -> None:
    """Raise a ValueError unless ``images`` is a batch of images of one or three channels."""
    functional.check_images(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"{where} needs images [B, 1, H, W] or [B, 3, H, W], not {list(images.shape)}"
        )


def interval(
    where: str,
    name: str,
    value: float | tuple[float, float],
    *,
    centre: float,
    least: float = -LARGEST_STRENGTH,
) -> tuple[float, float]:
    """Return the interval of a strength around ``centre``, or a pair of bounds as it is."""
    if isinstance(value, float | int):
        valid = 0 <= value <= LARGEST_STRENGTH
        ends = [max(least, centre - value), centre + value] if valid else []
    else:
        ends = list(value)
        valid = len(ends) == 2 and least <= ends[0] <= ends[1] <= LARGEST_STRENGTH
    if not valid:
        most = f"{LARGEST_STRENGTH:,.0f}"
        raise ValueError(
            f"{where} needs {name} as a number from 0 to {most}, or as (low, high) with "
            f"{least:,.0f} <= low <= high <= {most}, not {shown(value)}"
        )
    return float(ends[0]), float(ends[1])


def bounds(
    where: str, name: str, value: tuple[float, float], least: float, most: float
) -> tuple[float, float]:
    """Return a pair of bounds. Raises a ValueError unless least <= low <= high <= most."""
    ends = list(value) if isinstance(value, list | tuple) else []
    if len(ends) != 2 or not least <= ends[0] <= ends[1] <= most:
        raise ValueError(
            f"{where} needs {name} as (low, high) with {least:g} <= low <= high <= {most:g}, "
            f"not {shown(value)}"
        )
    return float(ends[0]), float(ends[1])


def check_probability(where: str, p: float) -> None:
    """Raise a ValueError unless ``p`` lies in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{where} needs a probability in [0, 1], not {shown(p)}")


def check_count(
    where: str, name: str, value: int, least: int = 0, most: int = LARGEST_SIZE
) -> None:
    """Raise a ValueError unless ``value`` is an integer from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(
            f"{where} needs {name} as an integer from {least} to {most:,}, not {shown(value)}"
        )


def check_alpha(where: str, alpha: float) -> None:
    """Raise a ValueError unless ``alpha`` is the parameter of a Beta or Dirichlet distribution."""
    if isinstance(alpha, bool) or not SMALLEST_ALPHA <= alpha <= LARGEST_ALPHA:
        raise ValueError(
            f"{where} needs alpha from {SMALLEST_ALPHA} to {LARGEST_ALPHA:g}, not {shown(alpha)}"
        )
