"""What other commands found of the runs of a page: their report.json and figures, as sections.

``fcifar eval`` (corruptions, attacks, attributions), ``influence``, ``compare`` (path, plane) and
``labels`` write them with ``--out``.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcifar.errors import ExternalError, UsageError
from fcifar.io import parse_json
from fcifar.report import rows
from fcifar.report.figures import adversarial as adversarial_figure
from fcifar.report.figures import landscape as landscape_figure
from fcifar.report.figures import robustness as robustness_figure
from fcifar.report.page.blocks import Facts, Folded, Section, Sheet, Table, chart

_REPORT = "report.json"
_BY_CLASS, _SUSPECTS, _PAIRS = 4, 20, 10  # attacks by class, images and pairs of classes
_COMMANDS = "fcifar eval --corrupt, --attack or --explain, influence, compare --path or labels"


def sections(folders: Sequence[Path], digests: set[str]) -> list[Section]:
    """Return the sections of folders that commands wrote with ``--out``.

    Args:
        digests: of the parameters of the runs of the page; a folder must be of one of them.

    Raises:
        UsageError: a folder has no such report, or one of other parameters.
        ExternalError: a file is damaged.
    """
    found = [section for folder in folders for section in _of_folder(folder, digests)]
    seen: dict[str, int] = {}
    for i, section in enumerate(found):
        seen[section.anchor] = number = seen.get(section.anchor, 0) + 1
        if number > 1:
            found[i] = section._replace(anchor=f"{section.anchor}-{number}")
    return found


def _of_folder(folder: Path, digests: set[str]) -> list[Section]:
    path = folder / _REPORT
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--add {folder} has no {_REPORT} that can be read ({error.strerror}); give a folder "
            f"that {_COMMANDS} wrote with --out"
        ) from error
    values = parse_json(content, path)
    try:
        made = [make(values, folder) for is_one, make in _KINDS if is_one(values)]
        own = _digests(values)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ExternalError(f"{path} holds values that fcifar did not write: {error!r}") from error
    if not made:
        raise UsageError(
            f"{path} has no corruptions, attacks, attributions, influence, path, plane or labels; "
            f"give a folder that {_COMMANDS} wrote with --out"
        )
    if not own & digests:
        of, ours = (", ".join(sorted(each[:12] for each in some)) for some in (own, digests))
        raise UsageError(
            f"{path} is of the parameters {of or 'of a run that it does not name'}, and not of "
            f"those of this page, {ours}; run its command again on one of the runs"
        )
    return made


def _digests(values: Mapping[str, Any]) -> set[str]:
    """The digests of the parameters that a report is of."""
    runs = [run for run in values.get("runs", []) if isinstance(run, dict)]
    single = [each["params_digest"] for each in (values, *runs) if "params_digest" in each]
    return {*single, *values.get("params_digests", [])}


def _corruptions(values: Mapping[str, Any], folder: Path) -> Section:
    result = values["robustness"]
    several = len(result["runs"]) > 1
    title = "Accuracy, mean of severities, %" if several else "Accuracy by severity, %"
    table = rows.corrupted_models(result) if several else rows.corruptions(result)
    caption = "Accuracy on corrupted images, %, against severity; 0 are clean images."
    blocks = [
        chart(robustness_figure.draw(result), caption, "accuracy by corruption and severity"),
        Facts(rows.corruption_facts(result)),
        *([Table("The means, %", *rows.robustness(result), is_wide=True)] if several else []),
        Folded(title, [Table(title, *table, is_wide=True)]),
        *_sheet(folder, "corruptions.png", "One image with each corruption"),
    ]
    return Section("corruptions", "Corrupted images", blocks)


def _attacks(values: Mapping[str, Any], folder: Path) -> Section:
    result = values["attacks"]
    caption = f"Under attack, {rows.attacked_images(result)}"
    classes = [*result["clean"]["per_class"]]
    by_class = rows.attacks_by_class(result, classes, _BY_CLASS)
    blocks = [
        Table(caption, *rows.attacks(result), is_wide=True),
        *(
            [
                chart(
                    adversarial_figure.curve(result),
                    "Accuracy against eps; bars are 95 % intervals",
                    "accuracy under attack",
                )
            ]
            if len(result["found"]) > 1
            else []
        ),
        Folded("By class", [Table("Accuracy under attack by class", *by_class, is_wide=True)]),
        *_sheet(folder, "adversarial.png", "Images before and after attacks; predicted (true)"),
    ]
    return Section("attacks", "Adversarial images", blocks)


def _explained(values: Mapping[str, Any], folder: Path) -> Section:
    found = values["explained"]
    caption = "The logit of the predicted class, that of a black image, and the sum of the"
    blocks = [
        *_sheet(folder, "explained.png", "Attributions of the most confident mistakes"),
        Folded("Logits", [Table(f"{caption} attributions", *rows.explained(found), is_wide=True)]),
    ]
    return Section("attributions", "Attributions", blocks)


def _influence(values: Mapping[str, Any], folder: Path) -> Section:
    size = f"of {values['train_n']:,} training images of {values['dataset']}"
    blocks = [
        Facts([("method", rows.influence_method(values)), ("scores", size)]),
        *_sheet(folder, "influence.png", "Images with their proponents and opponents"),
        *(
            Folded(
                rows.influenced(each),
                [Table("Proponents and opponents", *rows.influences(each), is_wide=True)],
            )
            for each in values["images"]
        ),
    ]
    return Section("influence", "Influence of training images", blocks)


def _between_runs(values: Mapping[str, Any], folder: Path) -> Section:
    is_path = values["kind"] == "path"
    images = f"{values['n']:,} {values['split']} images of {values['dataset']}"
    runs = [(run["name"], run["run"]) for run in values["runs"]]
    if is_path:
        caption = "Barrier: the rise of the loss in nats, of the error in points"
        figure, where = landscape_figure.path(values), "the line between two runs"
        barriers = [Table(caption, *rows.barriers(values), is_wide=True)]
    else:
        figure, where = landscape_figure.plane(values), "the plane through three runs"
        barriers = [Facts(rows.plane_facts(values))]
    blocks = [
        chart(figure, f"Loss and accuracy on {where}, {images}", f"loss and accuracy on {where}"),
        *barriers,
        Table("The runs", *rows.ends(values)),
        Facts([*runs, *rows.matching_facts(values)]),
    ]
    return Section("between", "Between runs", blocks)


def _labels(values: Mapping[str, Any], folder: Path) -> Section:
    images, pairs = values["images"][:_SUSPECTS], values["pairs"][:_PAIRS]
    blocks = [
        Facts(rows.suspect_facts(values)),
        *_sheet(folder, "sheet.png", "The first: given and suggested class"),
        *([Table("Pairs of classes", *rows.suspect_pairs(pairs))] if pairs else []),
        *(
            [Folded("The first images", [Table("Images", *rows.suspects(images))])]
            if images
            else []
        ),
    ]
    return Section("labels", "Labels likely to be wrong", blocks)


_KINDS: Sequence[
    tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], Path], Section]]
] = (
    (lambda values: "robustness" in values, _corruptions),
    (lambda values: "attacks" in values, _attacks),
    (lambda values: bool(values.get("explained")), _explained),
    (lambda values: "train_n" in values and "method" in values, _influence),
    (lambda values: values.get("kind") in ("path", "plane"), _between_runs),
    (lambda values: "pairs" in values and "examined" in values, _labels),
)


def _sheet(folder: Path, name: str, caption: str) -> list[Sheet]:
    """A PNG file as a block; none if there is no such file."""
    from PIL import Image, UnidentifiedImageError

    path = folder / name
    if not path.exists():
        return []
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["png"]) as image:
            image.load()
            size = image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ExternalError(f"{path} is damaged: {error}") from error
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return [Sheet(caption, source, size)]
