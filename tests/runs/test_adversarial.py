"""Accuracy under attack: what is parsed, which images are attacked, and how they are counted."""

import pytest
import torch

from fcifar import random, recipes
from fcifar.data import Split, make_dataset
from fcifar.errors import UsageError
from fcifar.runs import adversarial, inference
from fcifar.runs.adversarial import Spec, make_plan, parse
from fcifar.runs.inference import Trained
from fcifar.step import Batch
from fcifar.train.runtime import Runtime

CLASSES = tuple("abcdefghij")
RUNTIME = Runtime(threads=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fgsm:8/255", ("fgsm", 8 / 255, 1, "linf")),
        ("fgsm:0.03137", ("fgsm", 0.03137, 1, "linf")),
        ("fgsm:0.5,l2", ("fgsm", 0.5, 1, "l2")),
        ("pgd:8/255", ("pgd", 8 / 255, 20, "linf")),
        ("pgd:8/255,7", ("pgd", 8 / 255, 7, "linf")),
        ("pgd:1.5,7,l2", ("pgd", 1.5, 7, "l2")),
        ("pgd:1,l2,7", ("pgd", 1.0, 7, "l2")),
        ("pgd:1e-3,linf", ("pgd", 1e-3, 20, "linf")),
    ],
)
def test_attacks_by_name(text: str, expected: tuple[object, ...]) -> None:
    assert parse(text) == Spec(text, *expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("fgsm", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("cw:0.1", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("fgsm:8/255,20", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("fgsm:8/0", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("fgsm:nan", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("pgd:0.1,20,30", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("pgd:0.1,l2,linf", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("pgd:0.1,-3", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("pgd:0.1,²", "it must be fgsm:EPS or pgd:EPS,STEPS"),
        ("pgd:0.1,0", "the number of steps of --attack 'pgd:0.1,0' is 0"),
        ("fgsm:8", "above 0 and at most 1, such as 8/255"),
        ("fgsm:0", "above 0 and at most 1"),
        ("fgsm:inf,l2", "above 0"),
        ("fgsm:-1/255", "above 0 and at most 1"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_need_an_attack_that_takes_them() -> None:
    assert make_plan([]) == ([], 1, adversarial.IMAGES, 0)
    assert make_plan(["pgd:0.1", "fgsm:0.1"], 3, 10, 7)[1:] == (3, 10, 7)
    for words, message in (
        (([], 2), "--restarts is of --attack, which is not given"),
        (([], None, 2), "--attack-images is of --attack, which is not given"),
        ((["fgsm:0.1"], 2), "fgsm has no random start"),
        ((["pgd:0.1"], 0), "--restarts is 0"),
        ((["pgd:0.1"], None, 0), "--attack-images is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            make_plan(*words)


@pytest.fixture(scope="module")
def linear_like():
    """An untrained model, and a data set whose labels are what it predicts, but for every third."""
    recipe = recipes.get("blitz")
    model = recipes.make_model(recipe, 10)
    variables = model.init(random.key(3))
    trained = Trained(recipe, model, variables, CLASSES, "tiny", "", 0)
    images = random.randint(random.key(1), (40, 3, 32, 32), 0, 256).byte()
    predicted = inference.predict(trained, RUNTIME, images).argmax(-1)
    labels = (predicted + (torch.arange(40) % 3 == 0)) % 10
    train = Split(images, labels)
    return trained, make_dataset("tiny", train, Split(images, labels), CLASSES, "tests")


def test_an_image_is_right_if_it_is_right_before_and_after(linear_like) -> None:
    trained, data = linear_like
    _, clean = inference.evaluate(trained, RUNTIME, data, "test")
    plan = make_plan(["fgsm:1e-7", "pgd:0.2,3", "pgd:5,2,l2"], restarts=2, images=25)
    result, attacked = adversarial.evaluate(trained, RUNTIME, data, "test", clean, plan)
    assert (result["n"], result["of"], result["chosen"]) == (25, 40, "at random, by seed 0")
    right = round(25 * result["clean"]["accuracy"])
    nothing, strong, far = result["found"]
    assert nothing["accuracy"] == result["clean"]["accuracy"]
    assert nothing["fooled"] == 0
    for each, largest in ((nothing, 1e-7), (strong, 0.2), (far, 5)):
        assert round(25 * each["accuracy"]) + each["fooled"] == right
        assert 0 < each["mean_distance"] <= each["largest_distance"] <= largest * 1.001 + 1e-7
        totals = [of_class["total"] for of_class in each["per_class"].values()]
        assert sum(totals) == 25
    assert strong["accuracy"] < 0.2
    assert (nothing["restarts"], strong["restarts"]) == (1, 2)
    # For the figure: images that are right before.
    assert attacked.clean.correct.all()
    assert len(attacked.batch.labels) == 6
    again = inference.examine(trained, RUNTIME, Batch(attacked.images[1], attacked.batch.labels))
    torch.testing.assert_close(again.logits, attacked.outputs[1].logits)


def test_an_image_is_attacked_alike_whichever_are_attacked(linear_like) -> None:
    """The fewer are the first of the more, with the same starts."""
    trained, data = linear_like
    _, clean = inference.evaluate(trained, RUNTIME, data, "test")
    shown = []
    for images in (20, 39, 1000):
        plan = make_plan(["pgd:0.02,2"], images=images)
        result, attacked = adversarial.evaluate(trained, RUNTIME, data, "test", clean, plan)
        assert result["n"] == min(images, 40)
        shown.append(attacked)
    assert result["chosen"] == "all"
    for other in shown[1:]:
        assert torch.equal(other.batch.images, shown[0].batch.images)
        torch.testing.assert_close(other.images[0], shown[0].images[0], rtol=0, atol=1e-5)
