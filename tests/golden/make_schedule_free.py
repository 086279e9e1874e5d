"""Writes ``schedule_free.json``: parameters of the authors' optimizers on fixed gradients, float64.

    pip install schedulefree==1.4.1 && python tests/golden/make_schedule_free.py

The gradient of a leaf is ``a * p + b`` at the trained parameters p, plus a wave of the step. The
tests make the same with ``optim.schedule_free_sgd`` and ``schedule_free_adamw``; no test needs the
package.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEPS = 50
KEPT = (0, 1, 4, 19, 49)  # steps after which parameters are recorded
SHAPES = {"b": (3,), "w": (2, 4)}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.3},
    "sgd, warm-up": {"lr": 0.5, "warmup_steps": 8},
    "sgd, all": {
        "lr": 0.4,
        "momentum": 0.95,
        "weight_decay": 0.02,
        "warmup_steps": 5,
        "r": 1.5,
        "weight_lr_power": 1.0,
    },
    "sgd, unweighted": {"lr": 0.2, "momentum": 0.5, "warmup_steps": 10, "weight_lr_power": 0.0},
    "adamw": {"lr": 0.02},
    "adamw, warm-up": {"lr": 0.05, "warmup_steps": 8, "weight_decay": 0.1},
    "adamw, all": {
        "lr": 0.04,
        "betas": [0.95, 0.98],
        "eps": 1e-4,
        "weight_decay": 0.05,
        "warmup_steps": 5,
        "r": 2.0,
        "weight_lr_power": 1.0,
    },
}


def start() -> dict[str, Tensor]:
    """The first parameters."""
    return {
        name: torch.arange(1, 1 + math.prod(shape), dtype=torch.float64).sin().reshape(shape)
        for name, shape in SHAPES.items()
    }


def gradient(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """The gradient at ``params`` in a step."""
    found = {}
    for name, p in params.items():
        i = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape)
        found[name] = (0.2 + 0.1 * i) * p + 0.3 * torch.cos(i) + 0.5 * torch.sin(i + 3 * step)
    return found


def main() -> None:
    """Write the file."""
    import schedulefree

    makers = {"sgd": schedulefree.SGDScheduleFree, "adamw": schedulefree.AdamWScheduleFree}
    cases = {}
    for name, options in CASES.items():
        params = start()
        optimizer = makers[name.partition(",")[0]](list(params.values()), **options)
        optimizer.train()
        records = []
        for step in range(STEPS):
            for leaf, grad in zip(params.values(), gradient(params, step).values(), strict=True):
                leaf.grad = grad
            optimizer.step()
            if step in KEPT:
                trained = {n: p.tolist() for n, p in params.items()}
                optimizer.eval()
                records.append({"y": trained, "x": {n: p.tolist() for n, p in params.items()}})
                optimizer.train()
        cases[name] = {"options": options, "records": records}
    source = "schedulefree 1.4.1 in float64: tests/golden/make_schedule_free.py"
    path = Path(__file__).with_name("schedule_free.json")
    text = json.dumps({"source": source, "cases": cases}, separators=(",", ":"))
    path.write_text(text + "\n")


if __name__ == "__main__":
    main()
