"""Tables of ``eval``, ``influence``, ``compare`` and ``labels``, for the terminal and for pages.

Each function returns the names of the columns, and the rows as text. ``result`` is the
JSON-serializable value of the command, or its copy in a report.json.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fcifar.report.text import between, count, number, percent

Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]

_ROBUSTNESS = ("accuracy", "mean_accuracy", "mean_error", "mce")


def points(fraction: float | None) -> str:
    """``0.564`` as ``56.4``, for tables whose title has the unit."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def scaled(value: float | None, digits: int, scale: float = 1) -> str:
    """A number with ``digits`` decimals; a dash for one that is not finite."""
    return "-" if value is None else f"{scale * value:.{digits}f}"


# Corruptions: runs.robustness -------------------------------------------------------------------


def corruptions(result: Mapping[str, Any]) -> Rows:
    """Accuracy of the first model in %, a row for each corruption and a column for each severity.

    With a reference also the corruption error.
    """
    reference, levels = result["reference"], result["severities"]
    columns = [*map(str, sorted({level for each in levels.values() for level in each}))]

    def row(name: str) -> tuple[str, ...]:
        found = result["runs"][0]["corruptions"][name]
        at = dict(zip(map(str, levels[name]), found["accuracy"], strict=True))
        values = [found["mean"], *map(at.get, columns), *([found["ce"]] if reference else [])]
        return name, *map(points, values)

    return ("", "mean", *columns, *(["CE"] if reference else [])), [*map(row, levels)]


def corrupted_models(result: Mapping[str, Any]) -> Rows:
    """Accuracy in %, mean of the severities, a row for each corruption and a column for a model."""
    models = with_reference(result)
    rows = [
        (name, *(points(model["corruptions"][name]["mean"]) for model in models))
        for name in result["severities"]
    ]
    return ("", *(model["name"] for model in models)), rows


def robustness(result: Mapping[str, Any]) -> Rows:
    """The means of each model, in %."""
    head = ("", "recipe", "clean", "corrupted", "mean error", "mCE")
    return head, [
        (model["name"], model["recipe"], *(points(model[key]) for key in _ROBUSTNESS))
        for model in with_reference(result)
    ]


def with_reference(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models of a result, the reference as one of that name."""
    reference = result["reference"]
    return [*result["runs"], *([{**reference, "name": "reference"}] if reference else [])]


def corruption_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which images, and of a single model its means in words."""
    levels, runs, reference = result["severities"], result["runs"], result["reference"]
    seed = "as in the files" if result["seed"] is None else f"drawn with seed {result['seed']}"
    about = [
        ("images", f"{result['n']:,} {result['split']} images of {result['dataset']}"),
        ("corruptions", f"{len(levels)}, {seed}"),
    ]
    if len(runs) > 1:
        return about
    (run,) = runs
    error = f"{points(run['mean_error'])} %, unnormalised"
    if run["mce"] is not None:
        error = f"{points(run['mce'])} % of that of {reference['run']}; {error}"
    return [
        *about,
        ("clean", percent(run["accuracy"], 2)),
        ("corrupted", f"{percent(run['mean_accuracy'], 2)} on average"),
        ("mCE", error if run["mean_error"] else "- (needs all fifteen: --corrupt all)"),
    ]


# Attacks: runs.adversarial ----------------------------------------------------------------------


def attacks(result: Mapping[str, Any]) -> Rows:
    """Accuracy under each attack, beside the accuracy on the same images without."""

    def distance(each: Mapping[str, Any], name: str) -> str:
        if name not in each:
            return ""
        is_largest = each["norm"] == "linf"
        return f"{255 * each[name]:.2f}/255" if is_largest else f"{each[name]:.3f}"

    rows = [
        (
            each["attack"],
            percent(each["accuracy"], 2),
            between(each["interval95"], 1),
            distance(each, "mean_distance"),
            distance(each, "largest_distance"),
        )
        for each in _with_clean(result)
    ]
    return ("attack", "accuracy", "95 % interval", "mean distance", "largest"), rows


def attacks_by_class(result: Mapping[str, Any], classes: Sequence[str], most: int) -> Rows:
    """Accuracy by class without and under the last ``most`` attacks."""
    clean, *found = _with_clean(result)
    shown = [clean, *found[-most:]]
    rows = [
        (name, *(percent(each["per_class"][name]["accuracy"]) for each in shown))
        for name in classes
    ]
    return ("class", *(each["attack"] for each in shown)), rows


def attacked_images(result: Mapping[str, Any]) -> str:
    """Which images were attacked."""
    which = count(result["n"], "image")
    if result["n"] < result["of"]:
        which += f" of {result['of']:,}, drawn {result['chosen']}"
    return which


def _with_clean(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**result["clean"], "attack": "none"}, *result["found"]]


# Attributions and influence: runs.explain, runs.proponents --------------------------------------


def explained(found: Sequence[Mapping[str, Any]]) -> Rows:
    """The logit of each explained image, that of a black one, and the sum of attributions."""
    has_sum = any("integrated_gradients_sum" in each for each in found)
    keys = ("logit", "black_logit", *(["integrated_gradients_sum"] if has_sum else []))
    head = ("explained", "predicted", "logit", "of black", *(["integrated"] if has_sum else []))
    return head, [
        (each["id"], each["class"], *(f"{each[key]:.2f}" for key in keys)) for each in found
    ]


def influences(image: Mapping[str, Any]) -> Rows:
    """The proponents of an image and its opponents, the strongest first."""

    def cells(entry: Mapping[str, Any] | None) -> tuple[str, str, str]:
        if entry is None:
            return "", "", ""
        score = entry["score"]
        return entry["id"], entry["label"], "not finite" if score is None else f"{score:+#.3g}"

    head = ("proponent", "class", "score", "opponent", "class", "score")
    pairs = zip_longest(image["proponents"], image["opponents"])
    return head, [(*cells(proponent), *cells(opponent)) for proponent, opponent in pairs]


def influenced(image: Mapping[str, Any]) -> str:
    """An image in a line: its class, the prediction and the loss."""
    verdict = f"predicted {image['prediction']} with {percent(image['confidence'])}"
    return f"{image['id']}: {image['label']}, {verdict}, loss {number(image['loss'])}"


def influence_method(result: Mapping[str, Any]) -> str:
    """How scores of influence were computed."""
    if result["method"] == "gauss_newton":
        return (
            f"gauss_newton, damping {result['damping']:g}, curvature of "
            f"{result['curvature_images']:,} images; {result['iterations']} iterations to a "
            f"residual of {result['residual']:.2g}"
        )
    steps = [each["step"] for each in result["checkpoints"]]
    if steps == [None]:
        return "tracin, of the final model alone, because the run has no checkpoints"
    if len(steps) == 1:
        return f"tracin, of one checkpoint, after step {steps[0]:,}"
    return f"tracin, of {len(steps)} checkpoints, after steps {steps[0]:,} to {steps[-1]:,}"


# Between runs: runs.landscape -------------------------------------------------------------------


def ends(result: Mapping[str, Any]) -> Rows:
    """The runs themselves, on the same images."""
    return ("", "seed", "accuracy", "loss"), [
        (run["name"], str(run["seed"]), percent(run["accuracy"], 2), number(run["loss"]))
        for run in result["runs"]
    ]


def barriers(result: Mapping[str, Any]) -> Rows:
    """The rise of loss (nats) and error (points) on the line, as trained and matched."""

    def cells(barrier: Mapping[str, Any], digits: int, scale: float) -> tuple[str, str, str]:
        interval = " to ".join(scaled(end, digits, scale) for end in barrier["interval95"])
        return scaled(barrier["height"], digits, scale), interval, f"{barrier['weight']:.2f}"

    head = ("", "loss", "95 % interval", "at", "error", "95 % interval", "at")
    return head, [
        (
            "matched" if curve["matched"] else "as trained",
            *cells(curve["loss_barrier"], 3, 1),
            *cells(curve["error_barrier"], 2, 100),
        )
        for curve in result["curves"]
    ]


def plane_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The size of the grid, and the extremes on it."""
    losses = [value for row in result["loss"] for value in row if value is not None]
    accuracies = [value for row in result["accuracy"] for value in row]
    return [
        ("grid", f"{result['points']} x {result['points']} points"),
        ("loss", f"{min(losses):.4f} to {max(losses):.4f} nats" if losses else "not finite"),
        ("accuracy", f"{percent(min(accuracies), 2)} to {percent(max(accuracies), 2)}"),
    ]


def matching_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many units were put into another order; empty without matching."""
    matching = result["matching"]
    if matching is None:
        return []
    units = f"of {matching['units']:,} units in {count(matching['groups'], 'group')}"
    facts = [
        (
            f"{run['name']} matched",
            f"{run['moved']:,} {units} moved, in {count(run['sweeps'], 'sweep')}; distance "
            f"{run['before']:.2f}, then {run['distance']:.2f}",
        )
        for run in matching["runs"]
    ]
    fixed = matching["fixed_by"]
    return [*facts, *([("in order", ", ".join(fixed))] if fixed else [])]


# Label errors: runs.folds -----------------------------------------------------------------------


def suspects(images: Sequence[Mapping[str, Any]]) -> Rows:
    """Images whose labels are likely to be wrong, with both classes and probabilities."""
    return ("image", "given", "suggested", "given has", "suggested has"), [
        (
            each["image"],
            each["given"],
            each["suggested"],
            percent(each["self_confidence"], 2),
            percent(each["suggested_probability"], 1),
        )
        for each in images
    ]


def suspect_pairs(pairs: Sequence[Mapping[str, Any]]) -> Rows:
    """Pairs of classes, with the number of images found and the estimate."""
    return ("given", "suggested", "found", "estimated"), [
        (pair["given"], pair["suggested"], f"{pair['found']:,}", f"{pair['estimated']:,}")
        for pair in pairs
    ]


def suspect_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many images were examined, and how many labels of them are likely to be wrong."""
    n, found, estimated = result["examined"], result["found"], result["estimated"]
    of = "" if n == result["n"] else f", of {result['n']:,}: no run held out the others"
    return [
        ("examined", f"{n:,} training images{of}"),
        ("found", f"{found:,} of them ({percent(found / n, 2)})"),
        ("estimated", f"{estimated:,} label errors ({percent(estimated / n, 2)})"),
        ("accuracy", f"{percent(result['accuracy'], 2)} of held-out images"),
    ]
