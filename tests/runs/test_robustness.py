"""Accuracy on corrupted images: which are chosen, and the corruption errors of known figures."""

import pytest
import torch

from fcifar import random, recipes
from fcifar.augment.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from fcifar.data import Split, make_dataset
from fcifar.errors import UsageError
from fcifar.runs import inference, robustness
from fcifar.step import Batch
from fcifar.train import evaluate as evaluation
from fcifar.train.runtime import Runtime

RUNTIME = Runtime(threads=1)
CLASSES = tuple("abcdefghij")
IMAGES = random.randint(random.key(1), (30, 3, 1, 1), 0, 256).byte().repeat(1, 1, 32, 32)
LABELS = torch.arange(30) % 10


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 30)


def trained(seed: int) -> inference.Trained:
    recipe = recipes.get("blitz")
    model = recipes.make_model(recipe, 10)
    variables = model.init(random.key(seed))
    # Predictions of the initial model do not vary; they shall depend on the image.
    variables = variables._replace(params={k: 8 * v for k, v in variables.params.items()})
    return inference.Trained(recipe, model, variables, CLASSES, "tiny", "", seed)


def test_what_is_chosen() -> None:
    assert robustness.parse([]) == {}
    assert robustness.parse(["all"]) == dict.fromkeys(BENCHMARK, SEVERITIES)
    assert robustness.parse(["all,extra"]) == dict.fromkeys(CORRUPTIONS, SEVERITIES)
    assert robustness.parse(["extra:2"]) == dict.fromkeys(EXTRA, (2,))
    assert robustness.parse(["fog:5, snow", "fog:1"]) == {"snow": SEVERITIES, "fog": (1, 5)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fogg", "it must be all, extra, gaussian_noise, .*; did you mean 'fog'"),
        ("", "--corrupt is ''; it must be"),
        ("fog:6", "a severity is a whole number from 1 to 5, such as fog:3"),
        ("fog:", "a severity is"),
        ("all:1.5", "a severity is"),
    ],
)
def test_what_cannot_be_chosen(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        robustness.parse([word])
    assert "\n" not in str(caught.value)


def test_images_are_corrupted_alike_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = robustness.corrupted(IMAGES, "snow", 4, seed=7)
    key = random.fold_in(random.fold_in(random.key(7), 7), 4)
    assert torch.equal(whole, corrupt("snow", 4)(key, IMAGES))
    monkeypatch.setattr(robustness, "_ROWS", 7)
    assert torch.equal(robustness.corrupted(IMAGES, "snow", 4, seed=7), whole)
    assert torch.equal(robustness.corrupted(IMAGES[:3], "snow", 4, seed=7), whole[:3])
    assert not torch.equal(robustness.corrupted(IMAGES, "snow", 4, seed=8), whole)


def results(*rows: float) -> list[dict]:
    """Models whose accuracy falls from a value by 0.02 for each severity of each corruption."""
    return [
        {
            "run": "r",
            "recipe": "x",
            "accuracy": row,
            "corruptions": {name: [row - 0.02 * s for s in SEVERITIES] for name in CORRUPTIONS},
        }
        for row in rows
    ]


def test_corruption_errors() -> None:
    """The errors are 0.26 and 0.46 on average: 0.26 / 0.46 of the reference."""
    chosen = dict.fromkeys(CORRUPTIONS, SEVERITIES)
    found = robustness.summarize(results(0.8, 0.6), chosen, has_reference=True)
    (run,), reference = found["runs"], found["reference"]
    assert run["name"] == "A"
    assert run["mean_accuracy"] == pytest.approx(0.74)
    assert run["mean_error"] == pytest.approx(0.26)
    assert run["mce"] == pytest.approx(0.26 / 0.46)
    assert run["corruptions"]["fog"]["mean"] == pytest.approx(0.74)
    assert run["corruptions"]["fog"]["ce"] == pytest.approx(0.26 / 0.46)
    assert reference["mce"] == pytest.approx(1)


def test_the_mean_is_over_the_fifteen_and_of_ratios() -> None:
    chosen = dict.fromkeys(CORRUPTIONS, SEVERITIES)
    rows = results(0.8, 0.6)
    for name in EXTRA:
        rows[0]["corruptions"][name] = [0.0] * 5
    rows[1]["corruptions"]["fog"] = [0.9] * 5
    (run,) = robustness.summarize(rows, chosen, has_reference=True)["runs"]
    assert run["mce"] == pytest.approx((14 * 0.26 / 0.46 + 0.26 / 0.1) / 15)
    assert run["mean_error"] == pytest.approx(0.26)
    assert run["mean_accuracy"] == pytest.approx(15 / 19 * 0.74)


def test_errors_that_are_not_known() -> None:
    chosen = dict.fromkeys(CORRUPTIONS, SEVERITIES)
    alone = robustness.summarize(results(0.8), chosen)
    assert alone["reference"] is alone["runs"][0]["mce"] is None
    assert alone["runs"][0]["mean_error"] == pytest.approx(0.26)
    perfect = results(0.8, 0.6)
    perfect[1]["corruptions"]["fog"] = [1.0] * 5
    (run,) = robustness.summarize(perfect, chosen, has_reference=True)["runs"]
    assert run["corruptions"]["fog"]["ce"] is run["mce"] is None
    some = dict.fromkeys(BENCHMARK[1:], SEVERITIES)
    rows = [{**r, "corruptions": {n: r["corruptions"][n] for n in some}} for r in results(0.8, 0.6)]
    (run,) = robustness.summarize(rows, some, has_reference=True)["runs"]
    assert run["mean_error"] is run["mce"] is None
    assert run["corruptions"]["fog"]["ce"] == pytest.approx(0.26 / 0.46)


def test_files_and_functions_agree() -> None:
    """A data set of corrupted images, block by block, has the accuracies of corrupting them."""
    models, chosen = [trained(0), trained(1)], {"snow": (2, 5), "contrast": (2, 5)}
    paths = ["a", "b"]
    clean = make_dataset("tiny", Split(IMAGES, LABELS), Split(IMAGES, LABELS), CLASSES, "tests")

    def logits(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        data = Batch(images, labels)
        return torch.stack([inference.examine(m, RUNTIME, data).logits for m in models])

    of_clean = logits(IMAGES, LABELS)
    drawn = robustness.evaluate(paths, models, RUNTIME, clean, "test", chosen, of_clean[:1], seed=3)
    assert (drawn["n"], drawn["seed"]) == (30, 3)
    images = torch.cat([robustness.corrupted(IMAGES, n, s, 3) for n in chosen for s in (2, 5)])
    labels = LABELS.repeat(4)
    blocks = {"corruptions": ["snow", "contrast"], "severities": [2, 5]}
    files = make_dataset("c", Split(IMAGES, LABELS), Split(images, labels), CLASSES, "tests")
    assert not robustness.is_corrupted(files)
    files = files._replace(preparation=blocks)
    assert robustness.is_corrupted(files)
    of_files = logits(images, labels)
    read = robustness.evaluate(paths, models, RUNTIME, files, "test", {}, of_files)
    assert (read["n"], read["seed"], read["severities"]) == (30, None, drawn["severities"])
    for a, b, own, corrupt_own in zip(read["runs"], drawn["runs"], of_clean, of_files, strict=True):
        assert a["corruptions"] == b["corruptions"]
        assert a["accuracy"] is None
        assert b["accuracy"] == (own.argmax(-1) == LABELS).double().mean()
        assert a["mean_accuracy"] == pytest.approx(
            (corrupt_own.argmax(-1) == labels).double().mean().item()
        )
    with pytest.raises(UsageError, match="images of c are corrupted already; leave --corrupt out"):
        robustness.evaluate(paths, models, RUNTIME, files, "test", chosen, of_files)
    assert len(of_clean[0].argmax(-1).unique()) > 1
