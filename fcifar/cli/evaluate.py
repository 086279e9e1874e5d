"""fcifar eval."""

import functools
from json import loads as parse
from pathlib import Path
from typing import Annotated, Any

from fcifar.cli import models, options, output, progress, render
from fcifar.cli.options import option
from fcifar.errors import UsageError

_robustness = functools.partial(option, rich_help_panel="Corrupted and adversarial images")


def evaluate(
    runs: Annotated[
        list[Path],
        options.runs_argument(
            "A run or a group of runs, by path or name; a final.safetensors, or a "
            "state_dict. Several are evaluated as an ensemble, too."
        ),
    ],
    dataset: Annotated[str | None, options.dataset_option("the run's, else cifar10")] = None,
    split: Annotated[str, option("--split", "Which images.", "test|train|valid")] = "test",
    tta: Annotated[
        str, option("--tta", "Also evaluate with test-time augmentation.", "none|mirror|translate")
    ] = "none",
    per_example: Annotated[
        Path | None,
        option(
            "--per-example", "Scores of each image: .csv, .npz or .parquet.", "FILE", dir_okay=False
        ),
    ] = None,
    corrupt: Annotated[
        list[str] | None,
        _robustness(
            "--corrupt",
            "Also on corrupted images: the fifteen corruptions of CIFAR-10-C (all), four more "
            "(extra), or some, such as fog,snow:3.",
            "NAME[:SEVERITY]",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        _robustness(
            "--reference",
            "The run whose errors are the unit of the mean corruption error (mCE).",
            "RUN",
            callback=options.locate_run,
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        _robustness(
            "--attack",
            "Also on adversarial images: fgsm:EPS or pgd:EPS,STEPS, with ,l2 for that norm. "
            "Several times: several attacks.",
            "NAME:EPS",
        ),
    ] = None,
    restarts: Annotated[
        int | None, _robustness("--restarts", "Random starts of pgd on each image.", None, "1")
    ] = None,
    attack_images: Annotated[
        int | None,
        _robustness("--attack-images", "How many images to attack, drawn at random.", None, "1000"),
    ] = None,
    seed: Annotated[
        int | None, _robustness("--seed", "The seed of --corrupt and --attack.", default="0")
    ] = None,
    explain: options.Explain = None,
    calibrate: Annotated[
        bool,
        option(
            "--calibrate",
            "Fit a temperature on the run's validation images, and keep it in calibration.json.",
        ),
    ] = False,
    out: Annotated[Path | None, option("--out", "A folder for report.json and figures.")] = None,
    average: models.Average = False,
    model: models.Model = None,
    recipe: models.RecipeName = None,
    changes: models.Changes = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Evaluate a trained model: loss, accuracy with its interval, and accuracy by class.

    With --per-example also loss, probability, margin, gradient norm and error
    norm of each image (without --tta), and the disagreement of several models.
    With --calibrate also loss and calibration with logits divided by the
    temperature, which predict and export use with --calibrated.

    --corrupt measures all models at five severities of each corruption, as a
    data set that is CIFAR-10-C does. --attack, --explain and --per-example are
    of the first model. EPS is a distance of images in [0, 1]: the largest
    difference of a value, or with ,l2 the Euclidean distance. --explain is of
    the most confident mistakes.

    [dim]fcifar eval runs/a
    fcifar eval runs/a --tta translate --out evaluated/
    fcifar eval runs/a runs/b runs/c --per-example scores.csv
    fcifar eval runs/a --corrupt all --out evaluated/
    fcifar eval runs/a --attack fgsm:8/255 --attack pgd:8/255,20 --out attacked/
    fcifar eval runs/a --explain all --out explained/
    fcifar eval cifar_net.pth --model lenet[/]
    """
    from fcifar.cli.data import begin_to_read, open_dataset, opening_dataset

    if name := (dataset or _dataset_of(runs[0])):
        begin_to_read(name, data_dir)
    from fcifar.analysis import ensembles
    from fcifar.cli import analyses
    from fcifar.export import tables
    from fcifar.io import write_json
    from fcifar.recipes import check_seed
    from fcifar.report import draw
    from fcifar.runs import adversarial, inference, robustness, temperature
    from fcifar.runs import explain as explaining
    from fcifar.train import sweep
    from fcifar.train.runtime import make_runtime

    inference.find_views(tta)
    chosen = robustness.parse(corrupt or [])
    if seed is not None and not chosen and not attack:
        raise UsageError("--seed is that of --corrupt and --attack; give one of them, too")
    draws_seed = check_seed(seed or 0)
    if per_example is not None:
        tables.check(per_example)
    methods = explaining.parse(explain, out)
    plan = adversarial.make_plan(attack or [], restarts, attack_images, draws_seed)
    runs = sweep.expand(runs)
    if calibrate:
        temperature.check(runs, split)
    found = models.load_all(runs, models.recipe_of(model, recipe, changes), average=average)
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=found[0].recipe.precision,
        deterministic=deterministic,
    )
    name = dataset or models.dataset_of(found)
    with opening_dataset(name, data_dir, quiet=quiet) as data:
        first, *others = models.with_classes(found, data.classes)
        inference.check_images([first, *others], data, split)
        if reference is not None and not chosen and not robustness.is_corrupted(data):
            raise UsageError("--reference is that of --corrupt; give that, too")
        images = inference.images_of(first, data, split)
        with progress.doing("evaluating", quiet=quiet):
            figures, examples = inference.evaluate(first, runtime, data, split)
            views = inference.evaluate_views(first, runtime, data, split, tta)
            logits = inference.stack_logits(examples, others, runtime, images)
    result: dict[str, Any] = {
        "run": str(runs[0]),
        "recipe": first.recipe.name,
        "dataset": data.name,
        "split": split,
        **({"of": "average"} if average else {}),
        **figures,
        **views,
    }
    if others:
        together = ensembles.summarize_replicas(logits, images.labels)
        result["networks"] = {"runs": list(map(str, runs)), **together}
    evaluated = analyses.Evaluated(
        runs, first, others, runtime, data, split, images, examples, logits, quiet
    )
    more: list[analyses.Analysis] = []
    if chosen or robustness.is_corrupted(data):
        unit = models.load_all([reference], None) if reference else []
        unit = models.with_classes(unit, data.classes)
        more.append(analyses.corruptions(evaluated, chosen, draws_seed, reference, unit))
    if plan.specs:
        more.append(analyses.attacks(evaluated, plan))
    if methods:
        more.append(analyses.explanations(evaluated, methods, out))
    if calibrate:
        same = first.dataset in ("", data.name)
        own = data if same else open_dataset(first.dataset, data_dir, quiet=quiet)
        more.append(analyses.calibration(evaluated, own, average=average))
    if per_example is not None:
        more.append(analyses.scores(evaluated, per_example))
    result |= {each.name: each.values for each in more}
    if out is not None:
        write_json(out / "report.json", result)
        title = f"{first.recipe.name} on {data.name}, {split} images"
        with progress.doing("drawing the figures", quiet=quiet):
            draw.evaluation(out, images, examples, data.classes, title=title)
            for each in more:
                each.draw(out, title)
    output.result(result, _show, json)
    if not json:
        for each in more:
            output.stdout.print()
            each.show()


def _dataset_of(run: Path) -> str | None:
    """The data set of a run, read without torch; None for anything else."""
    try:
        return str(parse((run / "manifest.json").read_bytes())["dataset"]["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _show(result: dict[str, Any]) -> None:
    output.class_table(result["per_class"])
    output.stdout.print()
    name = "first accuracy" if "networks" in result else "accuracy"
    output.facts(
        [
            *render.measured(name, result, f" of {result['n']:,} {result['split']} images"),
            ("digest", result["params_digest"]),
            *render.ensemble_facts(result),
        ]
    )
