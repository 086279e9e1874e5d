"""Writes ``optax.json``: what optax makes of a few fixed gradients, in float64.

    pip install 'fcifar[jax]' && python tests/golden/make_optax.py

Each case is a call of a function by name, with others inside it; ``tests/test_optax.py`` makes the
same calls of fcifar. No test needs jax.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 6
SHAPES = {"b": (3,), "w": (2, 3)}


def call(name: str, *args: Any, **options: Any) -> dict[str, Any]:
    """A call as JSON has it."""
    return {"call": name, "args": list(args), "options": options}


def made(case: Any, find: Callable[[str], Callable[..., Any]]) -> Any:
    """What a call gives, those inside it made first."""
    if isinstance(case, list):
        return [made(each, find) for each in case]
    if not isinstance(case, dict):
        return case
    args = [made(each, find) for each in case["args"]]
    return find(case["call"])(*args, **{k: made(v, find) for k, v in case["options"].items()})


LINEAR = call("linear_schedule", 0.1, 0.02, 4)
OPTIMIZERS = {
    "sgd": call("sgd", 0.1),
    "momentum": call("sgd", 0.1, momentum=0.9),
    "nesterov": call("sgd", 0.1, momentum=0.9, nesterov=True),
    "sgd, scheduled": call("sgd", LINEAR, momentum=0.9),
    "adam": call("adam", 1e-3),
    "adam, others": call("adam", 0.01, b1=0.8, b2=0.99, eps=1e-3),
    "adam, without momentum": call("adam", 0.01, b1=0.0),
    "adam, scheduled": call("adam", call("cosine_decay_schedule", 0.01, 5, alpha=0.1)),
    "adamw": call("adamw", 1e-3),
    "adamw, others": call("adamw", 0.01, b1=0.85, b2=0.98, eps=1e-6, weight_decay=0.1),
    "scale": call("scale", -0.3),
    "scale_by_learning_rate": call("scale_by_learning_rate", 0.3),
    "scale_by_schedule": call("scale_by_schedule", LINEAR),
    "scale_by_adam": call("scale_by_adam", b1=0.9, b2=0.95, eps=1e-8),
    "trace": call("trace", 0.7),
    "trace, nesterov": call("trace", 0.7, nesterov=True),
    "add_decayed_weights": call("add_decayed_weights", 0.05),
    "clip": call("clip", 0.4),
    "clip_by_global_norm, often": call("clip_by_global_norm", 0.5),
    "clip_by_global_norm, never": call("clip_by_global_norm", 50.0),
    "set_to_zero": call("set_to_zero"),
    "chain": call(
        "chain",
        call("clip_by_global_norm", 1.0),
        call("add_decayed_weights", 5e-4),
        call("sgd", LINEAR, momentum=0.9, nesterov=True),
    ),
}
SCHEDULES = {
    "constant": call("constant_schedule", 0.3),
    "linear": call("linear_schedule", 0.5, 0.1, 7),
    "linear, rising": call("linear_schedule", 0.0, 1.0, 3),
    "cosine": call("cosine_decay_schedule", 0.8, 8),
    "cosine, alpha": call("cosine_decay_schedule", 0.8, 8, alpha=0.25),
    "join": call(
        "join_schedules",
        [
            call("linear_schedule", 0.0, 0.4, 3),
            call("constant_schedule", 0.4),
            call("cosine_decay_schedule", 0.4, 4),
        ],
        [3, 6],
    ),
}
COUNTS = list(range(13))


def numbers(shape: tuple[int, ...], function: Callable[[int], float]) -> Any:
    """Nested lists of ``function`` of the number of each element, in row-major order."""
    if len(shape) == 1:
        return [function(i) for i in range(shape[0])]
    size = math.prod(shape[1:])
    return [numbers(shape[1:], lambda i, o=r * size: function(o + i)) for r in range(shape[0])]


def main() -> None:
    """Write the file."""
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_enable_x64", True)
    params = {name: numbers(shape, lambda i: math.sin(1 + i)) for name, shape in SHAPES.items()}
    grads = [
        # The first element of a leaf never has a gradient, as a weight behind a dead unit.
        {n: numbers(s, lambda i, k=k: i and math.cos(i * (k + 1)) / i) for n, s in SHAPES.items()}
        for k in range(STEPS)
    ]

    def arrays(tree: Any) -> Any:
        return {name: jnp.asarray(leaf, jnp.float64) for name, leaf in tree.items()}

    def lists(tree: Any) -> Any:
        return {name: leaf.tolist() for name, leaf in tree.items()}

    def parts(state: Any) -> Any:
        """Moments, traces and counts, wherever they are in a state."""
        if isinstance(state, tuple) and not hasattr(state, "_fields"):
            return {k: v for each in state for k, v in parts(each).items()}
        return {
            field: int(value) if field == "count" else lists(value)
            for field, value in state._asdict().items()
        }

    def run(optimizer: Any, found: Any) -> Any:
        p = arrays(params)
        state = optimizer.init(p)
        updates = []
        for g in grads:
            u, state = optimizer.update(arrays(g), state, p)
            p = optax.apply_updates(p, u)
            updates.append(lists(u))
        return {"case": found, "updates": updates, "params": lists(p), "state": parts(state)}

    def find(name: str) -> Any:
        function = getattr(optax, name)
        if not name.endswith("_schedule") or name.startswith("scale_by"):
            return function
        # From an int32 count, which optax's optimizers have, a schedule is float32.
        return lambda *args, **options: (
            lambda count: function(*args, **options)(count.astype(jnp.float64))
        )

    groups = optax.multi_transform(
        {"kernel": optax.sgd(0.1, momentum=0.9), "rest": optax.adam(0.01)},
        {"b": "rest", "w": "kernel"},
    )
    p, labelled = arrays(params), []
    state = groups.init(p)
    for g in grads:
        u, state = groups.update(arrays(g), state, p)
        labelled.append(lists(u))
        p = optax.apply_updates(p, u)

    ahead = optax.lookahead(optax.sgd(0.1, momentum=0.9), sync_period=2, slow_step_size=0.3)
    pair = optax.LookaheadParams.init_synced(arrays(params))
    state, fast = ahead.init(pair), []
    for g in grads:
        u, state = ahead.update(arrays(g), state, pair)
        pair = optax.apply_updates(pair, u)
        fast.append(lists(pair.fast))

    golden = {
        "source": f"optax {optax.__version__} with jax {jax.__version__} in float64: "
        "tests/golden/make_optax.py",
        "params": params,
        "grads": grads,
        "optimizers": {name: run(made(c, find), c) for name, c in OPTIMIZERS.items()},
        "multi_transform": labelled,
        "lookahead": {"fast": fast, "slow": lists(pair.slow)},
        "counts": COUNTS,
        "schedules": {
            name: {"case": c, "values": [float(made(c, find)(jnp.asarray(i))) for i in COUNTS]}
            for name, c in SCHEDULES.items()
        },
        "warmup_cosine_decay_schedule": [
            float(optax.warmup_cosine_decay_schedule(0.1, 0.9, 3, 11, 0.09)(jnp.asarray(i)))
            for i in COUNTS
        ],
    }
    path = Path(__file__).with_name("optax.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
