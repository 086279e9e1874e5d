"""Figures of single examples: who is on them, bars as high as they should be, odd scores."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from torch import Tensor

from fcifar import random
from fcifar.analysis import ensembles
from fcifar.analysis.example_scores import Scores
from fcifar.analysis.score_tables import Examined
from fcifar.errors import UsageError
from fcifar.report import examples, scores
from fcifar.report.figures import BLUE, VERMILION
from fcifar.report.scores import BINS, histogram, score_histograms

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

    def keep(images: Tensor, titles: list[str], path: Path, **rest: object) -> Path:
        seen[path.name] = {"rows": (images[:, 0, 0, 0] // 8).tolist(), "titles": titles, **rest}
        return path

    monkeypatch.setattr(examples, "labelled_grid", keep)
    return seen


def test_one_networks_hardest_images(tmp_path: Path, sheets: dict[str, dict]) -> None:
    images, found = examined(1)
    for name in ("disputed.png", "networks.png"):
        (tmp_path / name).write_text("of an evaluation before")
    examples.draw(tmp_path, images, found, CLASSES, title="blitz")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.png"]
    sheet = sheets.pop("hardest.png")
    assert not sheets
    order = found.scores.loss.argsort(descending=True)[: examples.PICTURES].tolist()
    assert sheet["rows"] == order
    said, true = (CLASSES[int(v[order[0]])] for v in (found.scores.prediction, found.labels))
    loss = found.scores.loss[order[0]].item()
    assert sheet["titles"][0] == f"{said} ({true})\nloss {loss:.2f}\ntest/{order[0]:05}"
    assert sheet["colors"][0] == examples.WRONG
    assert sheet["heading"].startswith("blitz: highest loss")


def test_several_networks_hardest_and_most_disputed(
    tmp_path: Path, sheets: dict[str, dict]
) -> None:
    images, found = examined(4)
    together = found.together
    assert together is not None
    examples.draw(tmp_path, images, found, CLASSES, title="blitz")
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
    examples.draw(tmp_path, images, found, CLASSES, title="$a$ and $b")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("hardest.png", "disputed.png", "scores.png", "networks.png")
    }


def test_bars_are_what_a_loop_counts() -> None:
    values = random.normal(random.key(1), (500,)).double()
    correct = random.bernoulli(random.key(2), 0.6, (500,))
    middles, width, counts = histogram(values, correct)
    assert len(middles) == BINS
    assert counts.sum(1).tolist() == [int(correct.sum()), int((~correct).sum())]
    for middle, right, wrong in zip(middles, *counts.tolist(), strict=True):
        inside = (values - middle).abs() < width / 2
        assert abs(int((inside & correct).sum()) - right) <= 1, "but for those on the edge"
        assert abs(int((inside & ~correct).sum()) - wrong) <= 1


def test_few_values_have_a_bar_each() -> None:
    values = torch.tensor([0.0, 1 / 3, 1 / 3, 1.0]).double()
    correct = torch.tensor([True, True, False, False])
    middles, width, counts = histogram(values, correct)
    assert middles == pytest.approx([0, 1 / 3, 1])
    assert width == pytest.approx(0.8 / 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1]]
    middles, _, counts = histogram(torch.tensor([0.0, 1e-9, 1.0]).double(), correct[:3])
    assert len(middles) == BINS, "bars that are near each other would be too narrow to be seen"
    assert counts.sum() == 3


def test_wrong_stands_on_right(tmp_path: Path) -> None:
    correct = torch.arange(100) < 75
    path = score_histograms({"one": torch.zeros(100)}, correct, tmp_path / "s.png", title="")
    rgb = torch.from_numpy(imread(path))[170:, :, :3]
    heights = [
        int(((rgb - torch.tensor(to_rgb(c))).abs() < 2e-3).all(-1).sum(0).max())
        for c in (BLUE, VERMILION)
    ]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.05)
    assert sum(heights) == pytest.approx(scores.HEIGHT * 160 / 1.08, abs=3)


@pytest.mark.parametrize(
    "values",
    [
        [math.nan] * 3,
        [math.inf, -math.inf, 1.0],
        [1e38, -1e38, 0.0],
        [0.0, 1e-45, 1e-40],
        [5.0, 5.0, 5.0],
        [1e9, 1e9 + 64, 1e9 + 128],
    ],
    ids=["nan", "infinite", "huge", "tiny", "alike", "far from 0"],
)
def test_whatever_came_out_is_drawn(tmp_path: Path, values: list[float]) -> None:
    correct = torch.tensor([True, False, True])
    found = {f"$a$ {i}": torch.tensor(values) for i in range(4)}
    path = score_histograms(found, correct, tmp_path / "s.png", title="$b")
    assert list(tmp_path.iterdir()) == [path]
    assert imread(path).shape[1] == 1920


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    correct = torch.ones(3).bool()
    with pytest.raises(UsageError, match="at least one score"):
        score_histograms({}, correct, tmp_path / "s.png", title="")
    with pytest.raises(UsageError, match=r"each of 3 examples, not \[\[2\]\]"):
        score_histograms({"loss": torch.ones(2)}, correct, tmp_path / "s.png", title="")
    assert not list(tmp_path.iterdir())
