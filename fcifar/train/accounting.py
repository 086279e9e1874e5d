"""The privacy guarantee of DP-SGD, computed with Google's ``dp-accounting`` (extra ``privacy``).

    epsilon = poisson_epsilon(1.0, size=50_000, batch_size=500, steps=1000, delta=1e-5)

See ``fcifar.privacy`` for what the guarantee covers.
"""

import functools
import math
from importlib import metadata, util
from typing import Any

from fcifar import privacy, recipes
from fcifar.recipes import Recipe

_PACKAGE = "dp_accounting"
_INSTALL = "pip install 'fcifar[privacy]'"
_LARGEST = 100.0  # epsilon, beyond which there is no privacy to speak of
_LEAST_NOISE = 0.05  # with less, epsilon is above _LARGEST, and takes minutes
POISSON = "Poisson sampling"
SHUFFLED = "each image once per epoch, no amplification by sampling"


def is_installed() -> bool:
    """Whether epsilon can be computed."""
    return util.find_spec(_PACKAGE) is not None


def missing(recipe: Recipe) -> str:
    """Return a line about the missing package; empty if it is there, or the run is not private."""
    if not recipe.dp_clip or not recipe.dp_noise or is_installed():
        return ""
    return f"epsilon will not be computed, because dp-accounting is not installed: {_INSTALL}"


def default_delta(size: int) -> float:
    """Return the largest power of ten below ``1 / size``.

    >>> from fcifar.train.accounting import default_delta
    >>> default_delta(50_000), default_delta(10_000)
    (1e-05, 1e-05)
    """
    return float(f"1e-{len(str(size))}")


@functools.cache
def poisson_epsilon(
    noise_multiplier: float, *, size: int, batch_size: int, steps: int, delta: float
) -> float:
    """Return epsilon of DP-SGD on batches from ``privacy.poisson_sample``.

    An upper bound, from the privacy loss distribution of the subsampled Gaussian mechanism, which
    dp-accounting rounds up.

    A batch overflows its rows with probability p, so that ``steps`` steps differ from the analysed
    mechanism with probability ``steps * p``, which adds ``(1 + exp(epsilon)) * steps * p`` to delta
    (Chua et al., "Scalable DP-SGD", https://arxiv.org/abs/2411.04205).

    Args:
        noise_multiplier: above 0; the noise has this multiple of the clipping norm as its standard
            deviation.
        size: number of training images.
        batch_size: expected number of images of a batch.
        steps: 0 or more.
        delta: in (0, 1).

    Returns:
        The guarantee for data sets that differ by one image; infinite if it is above 100, or above
        about 27, where the overflow is as probable as delta.

    Raises:
        ImportError: dp-accounting is not installed.
    """
    import dp_accounting as dp
    from dp_accounting import pld

    if not steps:
        return 0.0
    if noise_multiplier < _LEAST_NOISE:
        return math.inf
    probability = privacy.sampling_probability(size, batch_size)
    rows = privacy.capacity(size, batch_size)
    overflow = steps * privacy.overflow_probability(size, probability, rows)
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp.PoissonSampledDpEvent(probability, gaussian), steps)
    least = float(accountant.get_epsilon(delta))

    def is_valid(epsilon: float) -> bool:
        if epsilon > _LARGEST:
            return False
        return accountant.get_delta(epsilon) + (1 + math.exp(epsilon)) * overflow <= delta

    if not overflow or is_valid(least):
        return least
    most = least + max(1e-6, 1e-6 * least)
    while not is_valid(most):
        most = 2 * most
        if most > _LARGEST:
            return math.inf
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (least, middle) if is_valid(middle) else (middle, most)
    return most


@functools.cache
def shuffled_epsilon(noise_multiplier: float, *, epochs: int, delta: float) -> float:
    """Return epsilon of DP-SGD on shuffled batches.

    Whatever the order, an image is in one batch of each epoch, and changes nothing in the others.
    So each epoch is one Gaussian mechanism for it, and a random order, which does not depend on the
    images, cannot do worse than the worst order. The epochs together are one Gaussian mechanism,
    with the noise divided by the root of their number. Batches from Poisson sampling have a much
    smaller epsilon, which shuffled ones do not have (https://arxiv.org/abs/2403.17673).

    Args:
        noise_multiplier, delta: as for ``poisson_epsilon``.
        epochs: number of passes over the images, 0 or more, of which the last may be incomplete.

    Raises:
        ImportError: dp-accounting is not installed.
    """
    import dp_accounting as dp

    if not epochs:
        return 0.0
    if noise_multiplier < _LEAST_NOISE:
        return math.inf
    epsilon = float(dp.get_epsilon_gaussian(noise_multiplier / math.sqrt(epochs), delta))
    return epsilon if epsilon <= _LARGEST else math.inf


def report(recipe: Recipe, size: int, steps: int) -> dict[str, Any]:
    """Return the guarantee of a private run, for its report.

    Args:
        size: number of images to train on.
        steps: number of steps that were made.

    Returns:
        ``{"privacy": values}``, JSON-serializable: ``epsilon``, None if there is none or it cannot
        be computed; ``delta``; ``sampling``, what it assumes of the batches; ``accountant``, name
        and version; and ``note``, a reason if epsilon is None, else empty.
    """
    delta = recipe.dp_delta or default_delta(size)
    is_sampled = recipe.dp_sampling == "poisson"
    epsilon, accountant, note = math.inf, "", ""
    if not recipe.dp_noise:
        note = "none: dp_noise is 0"
    elif not is_installed():
        note = f"epsilon is not computed: dp-accounting is not installed ({_INSTALL})"
    else:
        accountant = f"dp-accounting {metadata.version('dp-accounting')}"
        if is_sampled:
            epsilon = poisson_epsilon(
                recipe.dp_noise,
                size=size,
                batch_size=recipe.batch_size,
                steps=steps,
                delta=delta,
            )
        else:
            epochs = -(-steps // recipes.steps_per_epoch(recipe, size))
            epsilon = shuffled_epsilon(recipe.dp_noise, epochs=epochs, delta=delta)
        if not math.isfinite(epsilon):
            note = "none to speak of: epsilon is too large to compute; give more --dp-noise"
    values = {
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": delta,
        "sampling": POISSON if is_sampled else SHUFFLED,
        "accountant": accountant,
        "note": note,
    }
    return {"privacy": values}
