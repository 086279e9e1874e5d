"""What it costs to be able to trust a run: digests and checkpoints in the blitz training.

    python -m benchmarks.safeguards [--dataset cifar10] [--repetitions 5]

Two figures for each setting. The share: seconds spent on digests and checkpoints, timed around each
of them, over the seconds of the training that they are a part of. The ratio: medians of a training
with them and of one without, interleaved; it has the noise of the machine in it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from fcifar import data, recipes
from fcifar.train import loop
from fcifar.train.config import CheckpointConfig, make_config
from fcifar.train.runtime import make_runtime

SETTINGS = {
    "default": CheckpointConfig(),
    "every_5s": CheckpointConfig(checkpoint_every="5s"),
    "every_500_steps": CheckpointConfig(checkpoint_every="500"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    recipe = recipes.get("blitz")
    train_seconds: dict[str, list[float]] = {name: [] for name in (*SETTINGS, "without")}
    shares: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for repetition in range(options.repetitions):
        for name in train_seconds:
            report = _train(recipe, dataset, name)
            train_seconds[name].append(report["train_seconds"])
            if name in shares:
                shares[name].append(report["safeguard_seconds"] / report["train_seconds"])
            print(time.strftime("%H:%M:%S"), repetition, name, report["train_seconds"], flush=True)
    medians = {name: records.median(values) for name, values in train_seconds.items()}
    results = {
        "train_seconds": train_seconds,
        "share": {name: records.median(values) for name, values in shares.items()},
        "shares": shares,
        "ratio_to_without": {name: s / medians["without"] for name, s in medians.items()},
    }
    config = {
        **vars(options),
        "recipe": recipes.to_dict(recipe),
        "data_source": dataset.source,
        "threads": torch.get_num_threads(),
    }
    print({name: f"{100 * share:.2f} %" for name, share in results["share"].items()})
    print(records.write("safeguards", config, results))


def _train(recipe: recipes.Recipe, dataset: data.Dataset, name: str) -> dict[str, Any]:
    """One training; "without" has the digests and the checkpoints taken out of the loop."""
    config = make_config(
        recipe,
        dataset,
        runtime=make_runtime(device="cpu"),
        compile=True,
        checkpoint=SETTINGS.get(name, CheckpointConfig()),
    )
    digests, save = loop._digests, loop._save
    if name == "without":
        loop._digests = lambda one, own: {}
        loop._save = lambda one, state, step: None
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = loop.train(Path(folder) / "run", config, dataset)
    finally:
        loop._digests, loop._save = digests, save
    assert isinstance(report, dict)
    return report


if __name__ == "__main__":
    main()
