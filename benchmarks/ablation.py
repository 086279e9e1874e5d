"""Which parts of the speed recipes earn their place: each one off, with the same budget.

    python -m benchmarks.ablation [--dataset cifar10] [--seeds 3] [--epochs 3] [--widths 32,64,64]
                                  [--variant NAME ...] [--name ablation]

A small network, so that it takes an hour and not a day. The accuracy is that on a tenth of the
training images, held out; the test images are not looked at for it. Writes bench_results/NAME.json
and prints the table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import records
from fcifar import data
from fcifar.analysis import confidence
from fcifar.recipes import Recipe, get
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime

# Rates for the sum of the losses over a batch, as published for batches of 1,024.
_SGD = {
    "optimizer": "sgd",
    "learning_rate": 11.5 / 7850.67,
    "momentum": 0.85,
    "nesterov": True,
    "group_learning_rates": {"vector": 64 * 11.5 / 7850.67},
    "weight_decay": 0.0153 * 1000 / 11.5,
    "warmup_fraction": 0.23,
    "initial_rate": 0.2,
    "final_rate": 0.07,
}
_HEAD = {"logit_scale": 1 / 9, "head_std": 0.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "SGD in place of Muon": {**_SGD, "options": _HEAD},
    "SGD with lookahead": {**_SGD, "options": _HEAD, "lookahead_every": 5},
    "no whitening": {"options": {"whiten": False}},
    "no identity at the start": {"options": {"dirac": False}},
    "no label smoothing": {"label_smoothing": 0.0},
    "no translation": {"augment": ()},
    "no flip": {"alternating_flip": False},
    "flip at random": {"alternating_flip": False, "augment": ("random_flip", "reflect_crop:2")},
    "images that grow (24:0.5, 32)": {"resolutions": ("24:0.5", "32")},
    "batches of 500": {"batch_size": 500, "learning_rate": 0.12, "momentum": 0.8},
    "batches of 2,000": {"batch_size": 2000, "learning_rate": 0.24, "momentum": 0.6},
    "SiLU": {"options": {"act": "silu"}},
    "average (EMA 0.98)": {"ema_decay": 0.98},
}


def variant(base: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some parts changed; ``options`` are the network's."""
    fields = dict(changes)
    options = {**base.model_options, **fields.pop("options", {})}
    # Learning rate x weight decay x steps stays what it is.
    if "batch_size" in fields:
        per_image = base.learning_rate * base.weight_decay / base.batch_size
        fields["weight_decay"] = per_image * fields["batch_size"] / fields["learning_rate"]
    return base.replace(**fields, model_options=options)


def measure(recipe: Recipe, seed: int, dataset: Any) -> dict[str, float]:
    """Train, and keep the figures of the images held out."""
    runtime = make_runtime(device="cpu", preferred=recipe.precision)
    config = make_config(recipe, dataset, seed=seed, runtime=runtime, compile=True)
    records_of: list[dict[str, Any]] = []

    def observe(event: Any) -> None:
        record = getattr(event, "record", {})
        if record.get("split") == "valid":
            records_of.append(record)

    with tempfile.TemporaryDirectory() as folder:
        report = loop.train(Path(folder) / "run", config, dataset, observe=observe)
    if isinstance(report, loop.Interrupted):
        raise SystemExit("interrupted")
    return {
        "valid_accuracy": records_of[-1]["accuracy"],
        "train_seconds": report["train_seconds"],
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A line for each variant, and its difference to the first with the same seeds."""
    lines = [
        "| variant | accuracy | std | difference, 95 % interval | training |",
        "|---|---:|---:|---:|---:|",
    ]
    first = next(iter(results.values()))
    for name, runs in results.items():
        s = confidence.summarize([100 * r["valid_accuracy"] for r in runs])
        pairs = zip(runs, first, strict=False)
        d = confidence.summarize(
            [100 * (a["valid_accuracy"] - b["valid_accuracy"]) for a, b in pairs]
        )
        difference = "" if runs is first else f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})"
        seconds = confidence.summarize([r["train_seconds"] for r in runs]).mean
        lines.append(f"| {name} | {s.mean:.2f} % | {s.std:.2f} | {difference} | {seconds:.0f} s |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--widths", default="32,64,64")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--name", default="ablation", help="of the record")
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root(options.data_dir))
    speed = get("speed94")
    widths = tuple(int(width) for width in options.widths.split(","))
    base = speed.replace(
        epochs=options.epochs,
        whiten_epochs=speed.whiten_epochs * options.epochs / speed.epochs,
        model_options={**speed.model_options, "widths": widths},
        valid_fraction=0.1,
        stratify=True,
        tta="none",
    )
    chosen = ["as it is", *(options.variant or list(VARIANTS)[1:])]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in dict.fromkeys(chosen)}
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(measure(variant(base, VARIANTS[name]), seed, dataset))
            print(seed, name, runs[-1], flush=True)
            records.write(options.name, config, results)
    print(table(results))


if __name__ == "__main__":
    main()
