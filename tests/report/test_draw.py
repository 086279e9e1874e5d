"""The figures of an evaluation, of per-example scores, of influence and of a group: of what."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fcifar import random
from fcifar.analysis import ensembles
from fcifar.analysis.example_scores import Scores
from fcifar.analysis.predictions import summarize
from fcifar.analysis.score_tables import Examined
from fcifar.report import draw
from fcifar.report.figures import bars, grids, sweep
from fcifar.report.figures.canvas import save
from fcifar.report.figures.grids import RIGHT, WRONG
from fcifar.runs.proponents import Influences, ranked
from fcifar.step import Batch, EvalOutput

CLASSES = ("cat", "dog", "$hip_$")


def examined(networks: int, size: int = 30) -> tuple[Tensor, Examined]:
    """Grey images, the shade of which is the row, and made-up answers of so many networks."""
    images = (torch.arange(size) * 8).byte()[:, None, None, None].expand(-1, 3, 32, 32)
    logits = 3 * random.normal(random.key(0), (networks, size, 3))
    labels = torch.arange(size) % 3
    loss = torch.nn.functional.cross_entropy(logits[0], labels, reduction="none")
    right = logits[0].argmax(-1) == labels
    made = Scores(loss, right, logits[0].argmax(-1), (-loss).exp(), -loss, loss, loss)
    together = ensembles.examine(logits, labels) if networks > 1 else None
    return images, Examined([f"test/{i:05}" for i in range(size)], labels, made, together)


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """What is put on each labelled sheet, by the file's name."""
    seen: dict[str, dict] = {}

    def keep(images: Tensor, captions: list[str], **rest: object) -> dict:
        return {"rows": (images[:, 0, 0, 0] // 8).tolist(), "titles": captions, **rest}

    def save_unless_grid(drawn, path: Path) -> Path:
        if isinstance(drawn, dict):
            seen[path.name] = drawn
            return path
        return save(drawn, path)

    monkeypatch.setattr(grids, "image_grid", keep)
    monkeypatch.setattr(draw, "save", save_unless_grid)
    return seen


def test_one_networks_hardest_images(tmp_path: Path, sheets: dict[str, dict]) -> None:
    images, found = examined(1)
    for name in ("disputed.png", "networks.png"):
        (tmp_path / name).write_text("of an evaluation before")
    draw.examples(tmp_path, images, found, CLASSES, title="blitz")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]
    sheet = sheets.pop("hardest.png")
    assert not sheets
    order = found.scores.loss.argsort(descending=True)[: draw._SCORED].tolist()
    assert sheet["rows"] == order
    said, true = (CLASSES[int(v[order[0]])] for v in (found.scores.prediction, found.labels))
    loss = found.scores.loss[order[0]].item()
    assert sheet["titles"][0] == f"{said} ({true})\nloss {loss:.2f}\ntest/{order[0]:05}"
    assert sheet["colors"][0] == WRONG
    assert sheet["heading"].startswith("blitz: highest loss")


def test_several_networks_hardest_and_most_disputed(
    tmp_path: Path, sheets: dict[str, dict]
) -> None:
    images, found = examined(4)
    together = found.together
    assert together is not None
    draw.examples(tmp_path, images, found, CLASSES, title="blitz")
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "networks.png"}
    rates = [together.error_rate[row].item() for row in sheets["hardest.png"]["rows"]]
    assert rates == sorted(rates, reverse=True)
    row, title = sheets["hardest.png"]["rows"][0], sheets["hardest.png"]["titles"][0]
    assert title.split("\n")[1:] == [
        f"{round(4 * rates[0])} of 4 wrong",
        f"loss {together.mean_loss[row].item():.2f}",
        f"test/{row:05}",
    ]
    disagreement = [together.disagreement[row].item() for row in sheets["disputed.png"]["rows"]]
    assert disagreement == sorted(disagreement, reverse=True)
    for row, title in zip(*(sheets["disputed.png"][k] for k in ("rows", "titles")), strict=True):
        _, *votes, name = title.split("\n")
        assert name == found.names[row]
        named = dict(vote.rsplit(" ", 1) for vote in votes)
        expected = zip(CLASSES, together.votes[row].tolist(), strict=True)
        assert {c: int(v) for c, v in named.items()} == {c: v for c, v in expected if v}
        assert sorted(named.values(), reverse=True) == list(named.values())


def test_sheets_of_fewer_images_than_a_row_are_drawn(tmp_path: Path) -> None:
    images, found = examined(2, size=3)
    draw.examples(tmp_path, images, found, CLASSES, title="$a$ and $b")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("hardest.png", "disputed.png", "scores.png", "networks.png")
    }


@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_the_figures_of_an_evaluation(tmp_path: Path, count: int) -> None:
    labels = torch.arange(count).repeat(2)
    predictions = labels.clone()
    predictions[count::2] += 1
    predictions %= count
    logits = 5.0 * torch.nn.functional.one_hot(predictions, count)
    output = EvalOutput(torch.ones(2 * count), predictions == labels, logits)
    names = [f"class number {i}" for i in range(count)]
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    draw.evaluation(tmp_path, Batch(images, labels), output, names, title="many")
    figures = summarize(output, labels, names)
    save(bars.per_class(figures["per_class"], title="many"), tmp_path / "per_class.png")
    assert {path.stem for path in tmp_path.iterdir()} == {
        *("confusion", "reliability", "predictions", "mistakes", "channels", "per_class")
    }
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            image.load()
            assert max(image.size) < 7000, path


# Groups ------------------------------------------------------------------------------------------


def summary(rates: tuple[float, ...], momenta: tuple[float, ...], fail: bool = False) -> dict:
    """A summary of a sweep of two runs a point."""
    cells, members = [], []
    for i, rate in enumerate(rates):
        for momentum in momenta:
            name = f"lr {rate}, momentum {momentum}"
            runs = [f"{name}-{seed}" for seed in (0, 1)]
            accuracies = [0.1 * i + 0.2, 0.1 * i + 0.3]
            members += [
                {"name": run, "test_accuracy": value}
                for run, value in zip(runs, accuracies, strict=True)
            ]
            figures = {"mean": 0.1 * i + 0.25, "least": accuracies[0], "most": accuracies[1]}
            figures |= {"low": -0.5, "high": None if i else 1.5}
            failed = fail and i == 0
            cells.append(
                {
                    "name": name,
                    "changes": {"lr": rate, **({"momentum": momentum} if len(momenta) > 1 else {})},
                    "runs": runs,
                    "valid_accuracy": None,
                    "test_accuracy": None if failed else figures,
                    "together": {"std_accuracy": 0.07, "std_independent": 0.01},
                }
            )
    swept = ["lr", "momentum"] if len(momenta) > 1 else ["lr"]
    return {"cells": cells, "members": members, "swept": swept}


def test_dots_are_accuracies_and_an_interval_stays_inside_0_to_100() -> None:
    axes = sweep.accuracies(summary((0.1, 0.2), (0.5,))).axes[0]
    dots, interval, second = axes.lines
    assert list(dots.get_xdata()) == pytest.approx([20, 30])
    assert list(interval.get_xdata()) == [0, 100]
    assert list(second.get_xdata()) == pytest.approx([30, 40]), "without an interval"
    _, bars_of = sweep.spread(summary((0.1, 0.2), (0.5,)), title="two").axes
    assert [bar.get_width() for bar in bars_of.patches] == pytest.approx([7, 1, 7, 1])


def test_one_swept_value_is_a_line_and_two_are_a_grid() -> None:
    (axes,) = sweep.points(summary((0.1, 0.2), (0.5,), fail=True)).axes
    assert [text.get_text() for text in axes.texts] == ["failed", "35.00"]
    (axes,) = sweep.points(summary((0.1, 0.2), (0.5, 0.9), fail=True), title="a").axes
    assert [text.get_text() for text in axes.texts] == ["failed", "failed", "35.00", "35.00"]
    assert axes.get_xlabel() == "momentum"
    large = summary(tuple(i / 100 for i in range(50)), (0.5, 0.9))
    assert len(sweep.points(large).axes[0].get_yticks()) == sweep.LARGEST


def test_proponents_and_opponents(tmp_path: Path, sheets: dict[str, dict]) -> None:
    """A row of proponents and one of opponents for each image, filled up with white."""
    images, _ = examined(1)
    rows, labels = torch.arange(2, 12), torch.arange(10) % 3
    names = [f"train/{row:05}" for row in rows.tolist()]
    of = torch.tensor([29, 28])
    test_labels = torch.tensor([0, 2])
    scores = torch.tensor([[3.0, 2, 1, -1, -2, -3, -4, -5, -6, -7], [0.5, *[0.0] * 9]])
    found = Influences(
        ["test/00029", "test/00028"], images[of], test_labels, names, rows, labels, scores
    )

    def listed(image: int, chosen: Tensor) -> list[dict]:
        return [
            {"id": names[i], "label": CLASSES[int(labels[i])], "score": scores[image, i].item()}
            for i in chosen.tolist()
        ]

    of_images = []
    for i, name in enumerate(found.names):
        proponents, opponents = (listed(i, chosen) for chosen in ranked(scores[i]))
        true = CLASSES[int(test_labels[i])]
        of_images.append(
            {"id": name, "label": true, "prediction": "dog", "proponents": proponents}
            | {"opponents": opponents}
        )
    result = {"recipe": "blitz", "dataset": "tiny", "method": "tracin", "images": of_images}
    draw.influence(tmp_path, found, images, result)
    sheet, white = sheets.pop("influence.png"), 255 // 8
    assert sheet["columns"] == 8
    assert sheet["rows"][:8] == [29, 2, 3, 4, *[white] * 4]
    assert sheet["rows"][8:16] == [white, 11, 10, 9, 8, 7, 6, 5]
    assert sheet["rows"][16:] == [28, 2, *[white] * 14]
    titles = list(sheet["titles"])
    assert titles[:2] == ["cat\npredicted dog\ntest/00029", "cat\n+3.00\ntrain/00002"]
    assert titles[8:10] == ["opponents", "cat\n-7.00\ntrain/00011"]
    assert [color == RIGHT for color in sheet["colors"][1:4]] == [True, False, False]
    assert sheet["heading"] == "blitz on tiny: proponents and opponents by tracin"
