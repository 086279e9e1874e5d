"""The training step in JAX and optax: jitted, with donation, in either layout, and scanned.

It has every known advantage: one call for gather, forward, backward and update; pooling as a
maximum over a reshaped axis, whose gradient is much faster in XLA than that of a window; the
cheaper of JAX's generators for dropout; and JAX's own thread pool.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fcifar.bench.bench import Make, repeated
from fcifar.bench.timing import Candidate
from fcifar.data import Dataset
from fcifar.models import Params
from fcifar.recipes import Recipe
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training

SCANNED = 8  # steps in one call


def why_not(device: str) -> str | None:
    """Return why JAX cannot run on a device, or None if it can."""
    try:
        import jax
        import optax  # noqa: F401
    except ImportError as error:
        return f"needs jax and optax ({error})"
    platform = "gpu" if device.startswith("cuda") else "cpu"
    try:
        jax.devices(platform)
    except RuntimeError:
        return f"jax finds no {platform} here"
    return None


def _candidate(
    recipe: Recipe, runtime: Runtime, dataset: Dataset, *, channels_last: bool, scanned: int = 0
) -> Candidate:
    # JAX reads them with the first array: the number of threads, and no GPU memory in advance.
    os.environ.setdefault("NPROC", str(runtime.threads))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp
    import optax

    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    device = jax.devices("gpu" if runtime.device.startswith("cuda") else "cpu")[0]
    optimizer = _optimizer(recipe)
    apply = _model(recipe, channels_last)
    start = training.init().state.variables.params

    def loss(params: Any, images: Any, labels: Any, key: Any) -> Any:
        x = (images.astype(jnp.float32) / 255 - mean) / std
        logits = apply(params, x, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state: Any, rows: Any, data: Any) -> Any:
        params, moments, key, count = state
        grads = jax.grad(loss)(params, data[0][rows], data[1][rows], jax.random.fold_in(key, count))
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, key, count + 1

    def several(state: Any, rows: Any, data: Any) -> Any:
        # Unrolled, because XLA's convolutions on the CPU are up to six times slower in a loop.
        return jax.lax.scan(lambda s, r: (step(s, r, data), None), state, rows, unroll=True)[0]

    with jax.default_device(device):
        shape = (3,) if channels_last else (3, 1, 1)
        mean, std = (jnp.asarray(np.float32(v)).reshape(shape) for v in (recipe.mean, recipe.std))
        images = dataset.train_images.numpy()
        data = (
            jnp.asarray(images.transpose(0, 2, 3, 1) if channels_last else images),
            jnp.asarray(dataset.train_labels.numpy().astype(np.int32)),
        )
        params = _to_jax(start, channels_last)
        key = jax.random.key(0, impl="rbg")
        state = (params, optimizer.init(params), key, jnp.zeros((), jnp.int32))
        # Row numbers of each call. With 8 steps per call, 8 epochs are a whole number of calls.
        batches, size = repeated(training.inputs), scanned or 1
        drawn = [next(batches).indices.numpy() for _ in range(training.steps_per_epoch * size)]
        calls = np.stack(drawn).astype(np.int32).reshape(-1, size, recipe.batch_size)
        rows = itertools.cycle([jnp.asarray(call if scanned else call[0]) for call in calls])
    call = jax.jit(several if scanned else step, donate_argnums=0)

    def once() -> None:
        nonlocal state
        state = call(state, next(rows), data)

    return Candidate(
        once,
        wait=lambda: jax.block_until_ready(state[3]),
        steps=scanned or 1,
        params=lambda: _to_torch(state[0], start, channels_last),
    )


# By name: channels first as in PyTorch, channels last as in JAX's libraries, and several steps in
# one call.
CANDIDATES: dict[str, Make] = {
    "jax_nchw": functools.partial(_candidate, channels_last=False),
    "jax_nhwc": functools.partial(_candidate, channels_last=True),
    "jax_scan": functools.partial(_candidate, channels_last=True, scanned=SCANNED),
}


def _optimizer(recipe: Recipe) -> Any:
    import optax

    rate = recipe.learning_rate
    match recipe.optimizer:
        case "adam":
            return optax.adam(rate)
        case "adamw":
            return optax.adamw(rate, weight_decay=recipe.weight_decay)
    return optax.sgd(rate, recipe.momentum or None, recipe.nesterov)


# Models ------------------------------------------------------------------------------------------


def _model(recipe: Recipe, channels_last: bool) -> Callable[[Any, Any, Any], Any]:
    import jax
    import jax.numpy as jnp

    layout = ("NHWC", "HWIO", "NHWC") if channels_last else ("NCHW", "OIHW", "NCHW")
    rate = recipe.model_options.get("dropout", 0.0)

    def conv(params: Any, name: str, x: Any, padding: int) -> Any:
        bias = params[f"{name}.bias"]
        x = jax.lax.conv_general_dilated(
            x, params[f"{name}.weight"], (1, 1), [(padding, padding)] * 2, dimension_numbers=layout
        )
        return _pool(jax.nn.relu(x + (bias if channels_last else bias[:, None, None])))

    def _pool(x: Any) -> Any:
        a, b, c, d = x.shape
        if channels_last:
            return x.reshape(a, b // 2, 2, c // 2, 2, d).max((2, 4))
        return x.reshape(a, b, c // 2, 2, d // 2, 2).max((3, 5))

    def linear(params: Any, name: str, x: Any) -> Any:
        return x @ params[f"{name}.weight"] + params[f"{name}.bias"]

    def drop(key: Any, x: Any) -> Any:
        if not rate:
            return x
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)

    def lenet(params: Any, x: Any, key: Any) -> Any:
        x = conv(params, "conv2", conv(params, "conv1", x, 0), 0)
        x = jax.nn.relu(linear(params, "fc1", x.reshape(len(x), -1)))
        return linear(params, "fc3", jax.nn.relu(linear(params, "fc2", x)))

    def conv3(params: Any, x: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        for name in ("conv1", "conv2", "conv3"):
            x = conv(params, name, x, 1)
        x = jax.nn.relu(linear(params, "fc1", drop(first, x.reshape(len(x), -1))))
        return linear(params, "fc2", drop(second, x))

    return {"lenet": lenet, "conv3": conv3}[recipe.model]


def _to_jax(params: Params, channels_last: bool) -> dict[str, Any]:
    """Return convolutions in the layout, and transposed matrices."""
    import jax.numpy as jnp

    converted = {}
    for name, p in params.items():
        if p.ndim == 4 and channels_last:
            p = p.permute(2, 3, 1, 0)
        elif name == "fc1.weight" and channels_last:
            p = p.unflatten(1, _last_map(params, p)).permute(2, 3, 1, 0).flatten(0, 2)
        elif p.ndim == 2:
            p = p.T
        converted[name] = jnp.asarray(p.contiguous().numpy())
    return converted


def _to_torch(params: dict[str, Any], like: Params, channels_last: bool) -> Params:
    """Invert ``_to_jax``."""
    converted = {}
    for name, old in like.items():
        p = torch.from_numpy(np.array(params[name]))
        if p.ndim == 4 and channels_last:
            p = p.permute(3, 2, 0, 1)
        elif name == "fc1.weight" and channels_last:
            channels, height, width = _last_map(like, old)
            p = p.unflatten(0, (height, width, channels)).permute(3, 2, 0, 1).flatten(1)
        elif p.ndim == 2:
            p = p.T
        converted[name] = p
    return converted


def _last_map(params: Params, fc1: torch.Tensor) -> tuple[int, int, int]:
    """Return channels, height and width of the input of the first linear layer."""
    channels = [len(p) for p in params.values() if p.ndim == 4][-1]
    side = round((fc1.shape[1] / channels) ** 0.5)
    return channels, side, side
