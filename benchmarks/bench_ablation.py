"""Ablation of the speed recipes: one change at a time, for the same epochs and the same seconds.

    python -m benchmarks.bench_ablation [--dataset cifar10] [--recipe speed94] [--epochs 3]
        [--widths 32,64,64] [--seeds 3] [--changes parts] [--variant NAME ...] [--resume]
        [--name ablation]
    python -m benchmarks.bench_ablation --recipe speed90 --epochs 4 --widths 64,128,128
        --changes additions --name additions

``parts`` changes what the recipe has; in a small model, so that it takes an hour and not a day.
``additions`` adds what it has not: augmentation, an average, SAM. A variant whose epochs are faster
or slower is also trained for as many epochs as take the time of the recipe's. The seconds of an
epoch are those of its steps, timed in turns before anything is trained. The accuracy is measured on
a tenth of the training images, held out; the test images are not used. Writes
bench_results/NAME.json, which --resume completes without timing the variants again, and prints a
table.
"""

import functools
import itertools
from typing import Any

from benchmarks import records, script
from benchmarks.render.tables import markdown
from fcifar import data
from fcifar.analysis import confidence
from fcifar.bench import timing
from fcifar.bench.timing import Candidate
from fcifar.data import Dataset
from fcifar.recipes import Recipe, get
from fcifar.runs import inference
from fcifar.step_transforms import LoopState, LoopStep
from fcifar.train.config import RunConfig, make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import Training, make_training

# Published rates for the sum of the losses over a batch of 1,024.
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

PARTS: dict[str, dict[str, Any]] = {
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
ADDITIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "TrivialAugment": {"augment": ("reflect_crop:2", "trivial_augment")},
    "mixup (0.2)": {"augment": ("reflect_crop:2", "mixup:0.2")},
    "CutMix (1)": {"augment": ("reflect_crop:2", "cutmix:1")},
    "average (EMA 0.98)": {"ema_decay": 0.98},
    "SAM (0.05)": {"sam_rho": 0.05},
}
CHANGES = {"parts": PARTS, "additions": ADDITIONS}
VARIANTS = PARTS | ADDITIONS


def variant(base: Recipe, changes: dict[str, Any]) -> Recipe:
    """Return the recipe with changed fields; ``options`` are added to those of the model."""
    fields = dict(changes)
    options = {**base.model_options, **fields.pop("options", {})}
    # Keep learning rate x weight decay x steps.
    if "batch_size" in fields:
        per_image = base.learning_rate * base.weight_decay / base.batch_size
        fields["weight_decay"] = per_image * fields["batch_size"] / fields["learning_rate"]
    return base.replace(**fields, model_options=options)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe with more or fewer epochs."""
    whiten = recipe.whiten_epochs * epochs / recipe.epochs
    return recipe.replace(epochs=epochs, whiten_epochs=whiten)


def config_of(recipe: Recipe, dataset: Dataset, seed: int = 0) -> RunConfig:
    """Return the configuration of a run."""
    runtime = make_runtime(device="cpu", preferred=recipe.precision)
    return make_config(recipe, dataset, seed=seed, runtime=runtime, compile=True)


def epoch_seconds(made: dict[str, Recipe], dataset: Dataset) -> dict[str, float]:
    """Return the seconds that the steps of an epoch take, by the name of the recipe."""
    candidates, parts = {}, {}
    for name, recipe in made.items():
        training = make_training(config_of(recipe, dataset), dataset)
        starts = [*training.stages, training.total_steps]
        for start, end in itertools.pairwise(starts):
            once = functools.partial(_step, training.stages[start], training, [training.init()])
            candidates[f"{name} {start}"] = Candidate(once)
            parts[f"{name} {start}"] = (end - start) / recipe.epochs
    measured = timing.measure(candidates, seconds=2.0)
    return {
        name: sum(
            steps * measured[part]["median_seconds"]
            for part, steps in parts.items()
            if part.rpartition(" ")[0] == name
        )
        for name in made
    }


def _step(step: LoopStep, training: Training, states: list[LoopState]) -> None:
    """Take a step from the last state, which the step may overwrite."""
    states[0], _ = step(states[0], next(training.inputs(0)))


def measure(recipe: Recipe, seed: int, dataset: Dataset) -> dict[str, float]:
    """Train; return the accuracy on the held-out images, of the average if any, and the seconds."""
    config = config_of(recipe, dataset, seed)
    with script.trained(config, dataset) as (report, run):
        trained = inference.load(run, average=bool(recipe.average))
    with activate(config.runtime):
        figures, _ = inference.evaluate(trained, config.runtime, dataset, "valid")
    return {"valid_accuracy": figures["accuracy"], "train_seconds": report["train_seconds"]}


def table(results: dict[str, list[dict[str, float]]], seconds: dict[str, float]) -> str:
    """Return a row for each variant, with its difference from the first for the same seeds.

    Args:
        seconds: of the steps of a whole run.
    """
    columns = ("variant", "accuracy", "std", "difference, 95 % interval", "steps")
    first = [100 * run["valid_accuracy"] for run in next(iter(results.values()))]
    rows = []
    for name, runs in results.items():
        accuracies = [100 * run["valid_accuracy"] for run in runs]
        s = confidence.summarize(accuracies)
        d = confidence.summarize([a - b for a, b in zip(accuracies, first, strict=False)])
        difference = f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})" if rows else ""
        cells = (f"{s.mean:.2f} %", f"{s.std:.2f}", difference, f"{seconds[name]:.0f} s")
        rows.append((name, *cells))
    return markdown(columns, rows)


def main() -> None:
    defaults = {"dataset": "cifar10", "recipe": "speed94", "epochs": 3, "widths": "32,64,64"}
    parser = script.parser(__doc__, **defaults, seeds=3, name="ablation")
    parser.add_argument("--changes", choices=list(CHANGES), default="parts")
    parser.add_argument("--variant", action="append", choices=[*VARIANTS])
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    speed = get(options.recipe)
    widths = tuple(int(width) for width in options.widths.split(","))
    base = with_epochs(speed, options.epochs).replace(
        model_options={**speed.model_options, "widths": widths},
        valid_fraction=0.1,
        stratify=True,
        tta="none",
    )
    names = dict.fromkeys(["as it is", *(options.variant or CHANGES[options.changes])])
    made = {name: variant(base, VARIANTS[name]) for name in names}
    results: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    if options.resume:
        record = records.read(records.RESULTS / f"{options.name}.json")
        results, seconds = record["results"], record["config"]["epoch_seconds"]

    def run(names: list[str]) -> None:
        for seed, name in itertools.product(range(options.seeds), names):
            if len(results.setdefault(name, [])) > seed:
                continue
            results[name].append(measure(made[name], seed, dataset))
            print(seed, name, results[name][-1], flush=True)
            records.write(options.name, {**vars(options), "epoch_seconds": seconds}, results)

    if not set(names) <= set(seconds):
        with activate(config_of(base, dataset).runtime):
            seconds = epoch_seconds(made, dataset)
    print(seconds, flush=True)
    for name in names:
        epochs = max(1, round(options.epochs * seconds["as it is"] / seconds[name]))
        if epochs != options.epochs:
            made[f"{name}, {epochs} epochs"] = with_epochs(made[name], epochs)
            seconds[f"{name}, {epochs} epochs"] = seconds[name]
    run(list(made))
    times = {name: seconds[name] * recipe.epochs for name, recipe in made.items()}
    print(table({name: results[name] for name in made}, times))


if __name__ == "__main__":
    main()
