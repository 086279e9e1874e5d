"""The cost of digests and checkpoints in the blitz training.

    python -m benchmarks.bench_safeguards [--dataset cifar10] [--repetitions 5]

For each setting the share, the seconds spent on digests and checkpoints over those of the training;
and the ratio of the medians of trainings with and without them, interleaved, which includes the
machine's noise. Writes bench_results/safeguards.json.
"""

import contextlib
import time
from typing import Any
from unittest import mock

import torch

from benchmarks import records, script
from fcifar import data, recipes
from fcifar.train import checkpoint, fingerprint
from fcifar.train.config import CheckpointConfig, make_config
from fcifar.train.runtime import make_runtime

SETTINGS = {
    "default": CheckpointConfig(),
    "every_5s": CheckpointConfig(checkpoint_every="5s"),
    "every_500_steps": CheckpointConfig(checkpoint_every="500"),
}


def main() -> None:
    options = script.parser(__doc__, dataset="cifar10", repetitions=5).parse_args()
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
    medians, share = records.medians(train_seconds), records.medians(shares)
    results = {
        "train_seconds": train_seconds,
        "share": share,
        "shares": shares,
        "ratio_to_without": {name: s / medians["without"] for name, s in medians.items()},
    }
    config = {
        **vars(options),
        "recipe": recipes.to_dict(recipe),
        "data_source": dataset.source,
        "threads": torch.get_num_threads(),
    }
    print({name: f"{100 * each:.2f} %" for name, each in share.items()})
    print(records.write("safeguards", config, results))


def _train(recipe: recipes.Recipe, dataset: data.Dataset, name: str) -> dict[str, Any]:
    """Train once; "without" has no digests and no checkpoints."""
    checkpoints = SETTINGS.get(name, SETTINGS["default"])
    runtime = make_runtime(device="cpu")
    config = make_config(recipe, dataset, runtime=runtime, compile=True, checkpoint=checkpoints)
    with contextlib.ExitStack() as stack:
        if name == "without":
            stack.enter_context(mock.patch.object(fingerprint, "digests", return_value={}))
            stack.enter_context(mock.patch.object(checkpoint, "save"))
        return script.train(config, dataset)


if __name__ == "__main__":
    main()
