"""The hardest test images on a page, as small pictures inside it."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar.analysis import calibration, ensembles
from fcifar.report.page.gathering import Pictures, Run, on_same_images
from fcifar.report.page.html import Html, tag

SHOWN = 24


class Hard(NamedTuple):
    """A test image, and what was made of it."""

    row: int
    true: str
    verdict: str  # what was said
    about: str  # how wrong that was


def hardest(runs: Sequence[Run], pictures: Pictures) -> Html:
    """The images with the highest loss; of several runs, those that most of them get wrong."""
    classes = list(runs[0].report["per_class"])
    if not on_same_images(runs):
        return _note("The predictions that would tell are gone, or are of different images.")
    found = _of_one(runs[0], classes) if len(runs) == 1 else _of_several(runs, classes)
    order = "Highest loss first" if len(runs) == 1 else "Those that most runs get wrong first"
    caption = tag("figcaption", f"{order}: what was predicted, and what it is.")
    if pictures.images is None:
        note = _note(f"Without pictures, for {pictures.why_not}.")
        return tag("figure", caption, note, _list(found, None))
    return tag("figure", caption, _list(found, pictures.images))


def _of_one(run: Run, classes: Sequence[str]) -> list[Hard]:
    assert run.predictions is not None
    examples, labels = run.predictions
    confidence, predicted = calibration.softmax_confidence(examples.logits)
    rows = ensembles.ranked(examples.loss)[:SHOWN].tolist()
    return [
        Hard(
            row,
            classes[int(labels[row])],
            f"{classes[int(predicted[row])]}, {100 * confidence[row].item():.0f} %",
            f"loss {examples.loss[row].item():.2f}",
        )
        for row in rows
    ]


def _of_several(runs: Sequence[Run], classes: Sequence[str]) -> list[Hard]:
    found = [run.predictions for run in runs if run.predictions is not None]
    logits, labels = torch.stack([examples.logits.float() for examples, _ in found]), found[0][1]
    together = ensembles.examine(logits, labels)
    rows = ensembles.ranked(together.error_rate, together.mean_loss)[:SHOWN].tolist()

    def votes(row: int) -> str:
        count, number = together.votes[row].sort(descending=True, stable=True)
        ranked = zip(number.tolist(), count.tolist(), strict=True)
        return ", ".join(f"{classes[n]} {c}" for n, c in list(ranked)[:3] if c)

    return [
        Hard(
            row,
            classes[int(labels[row])],
            votes(row),
            f"{round(together.error_rate[row].item() * len(runs))} of {len(runs)} wrong, "
            f"loss {together.mean_loss[row].item():.2f}",
        )
        for row in rows
    ]


def _list(found: Sequence[Hard], images: Tensor | None) -> Html:
    return tag("ol", *(_item(each, images) for each in found), class_="pictures")


def _item(hard: Hard, images: Tensor | None) -> Html:
    parts = []
    if images is not None:
        picture = images[hard.row]
        alt = f"test image {hard.row}, {hard.true}, taken for {hard.verdict}"
        height, width = picture.shape[-2:]
        parts.append(tag("img", src=data_uri(picture), alt=alt, width=width, height=height))
    return tag(
        "li",
        *parts,
        tag("span", hard.verdict, class_="said"),
        tag("span", f"is {hard.true}"),
        tag("span", hard.about, class_="soft"),
        tag("span", f"test/{hard.row:05}", class_="soft"),
    )


def data_uri(image: Tensor) -> str:
    """A picture, uint8 [3, H, W], as a PNG inside an address."""
    from PIL import Image

    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _note(words: str) -> Html:
    return tag("p", words, class_="note")
