"""Several views of an image: what they are, and the mean of what a network makes of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import losses, random, tree
from fcifar.augment import tta
from fcifar.augment.tta import Views
from fcifar.models import Model, Variables
from fcifar.precision import FP64
from fcifar.step import Batch, make_eval_step, normalize
from fcifar.train.evaluate import evaluate
from tests.helpers.small import make_model

NORMALIZE = normalize()


@pytest.fixture(params=["lenet", "speednet", "resnet18"])
def network(request: pytest.FixtureRequest) -> tuple[Model, Variables]:
    model = make_model(request.param)
    return model, tree.map(lambda v: v.double(), model.init(random.key(0)))


def noise(*shape: int) -> Tensor:
    return random.normal(random.key(0), shape)


@pytest.mark.parametrize("name", tta.VIEWS)
def test_weights_add_up_to_one_for_as_many_views(name: str) -> None:
    views = tta.VIEWS[name]
    assert sum(views.weights) == 1
    image = noise(3, 20, 28)
    assert views.of(image).shape == (len(views.weights), 3, 20, 28)
    kept = image.clone()
    assert torch.equal(views.of(image)[0], image)
    assert torch.equal(image, kept)
    images = noise(5, 3, 16, 16)
    mapped = torch.vmap(views.of)(images)
    assert torch.equal(mapped, torch.stack([views.of(image) for image in images]))


def test_there_is_a_name_for_each() -> None:
    assert tta.VIEWS == {"none": tta.NONE, "mirror": tta.MIRROR, "translate": tta.TRANSLATE}


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 7, 9)])
def test_views_are_what_they_say(shape: tuple[int, int, int]) -> None:
    image = noise(*shape)
    _, height, width = shape
    assert torch.equal(tta.NONE.of(image), image[None])
    assert torch.equal(tta.MIRROR.of(image), torch.stack([image, torch.flip(image, [2])]))
    padded = F.pad(image[None], (1, 1, 1, 1), mode="reflect")[0]
    up_left = padded[:, 2:, 2:]  # content moved up and to the left
    down_right = padded[:, :height, :width]
    assert torch.equal(up_left[:, :-1, :-1], image[:, 1:, 1:])
    assert torch.equal(down_right[:, 1:, 1:], image[:, :-1, :-1])
    expected = [v for x in (image, up_left, down_right) for v in (x, x.flip(-1))]
    assert torch.equal(tta.TRANSLATE.of(image), torch.stack(expected))


def test_the_mean_counts_each_view_by_its_weight() -> None:
    logits = noise(6, 10).double()
    assert torch.equal(tta.combine(tta.NONE, logits[:1]), logits[0])
    halves = tta.combine(tta.MIRROR, logits[:2])
    torch.testing.assert_close(halves, logits[:2].mean(0), rtol=1e-14, atol=0)
    found = tta.combine(tta.TRANSLATE, logits)
    expected = 0.5 * logits[:2].mean(0) + 0.5 * logits[2:].mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def plain(network: tuple[Model, Variables], images: Tensor) -> Tensor:
    """Logits of normalised images, without any of it."""
    model, variables = network
    return model.apply(variables, images)[0]


def by_views(network: tuple[Model, Variables], images: Tensor, views: str) -> Tensor:
    mirrored = images.flip(-1)
    one = (plain(network, images) + plain(network, mirrored)) / 2
    if views == "none":
        return plain(network, images)
    if views == "mirror":
        return one
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [padded[..., 2:, 2:], padded[..., :-2, :-2]]
    both = [(plain(network, x) + plain(network, x.flip(-1))) / 2 for x in moved]
    return one / 2 + sum(both) / 4


@pytest.mark.parametrize("name", tta.VIEWS)
def test_an_eval_step_gives_the_mean_of_plain_evaluations(network, name: str, make_batch) -> None:
    model, variables = network
    batch = make_batch(9)
    step = make_eval_step(model, policy=FP64, views=tta.VIEWS[name])
    found = step(variables, batch)
    expected = by_views(network, NORMALIZE(batch.images).double(), name)
    torch.testing.assert_close(found.logits, expected, rtol=1e-10, atol=1e-12)
    loss = losses.cross_entropy(expected, batch.labels)
    torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.correct, expected.argmax(1) == batch.labels)


def test_no_views_are_what_an_eval_step_does_by_itself(network, make_batch) -> None:
    model, variables = network
    batch = make_batch(5)
    without = make_eval_step(model, policy=FP64)(variables, batch)
    assert tree.equal(make_eval_step(model, policy=FP64, views=tta.NONE)(variables, batch), without)


@pytest.mark.parametrize("name", tta.VIEWS)
@pytest.mark.parametrize("batch_size", [4, 23, 30])
def test_every_example_counts_exactly_once(name: str, batch_size: int, make_batch) -> None:
    model = make_model("lenet")
    variables, data = model.init(random.key(0)), make_batch(23)
    step = make_eval_step(model, views=tta.VIEWS[name])
    found = evaluate(step, variables, data, batch_size=batch_size)
    whole = step(variables, data)
    assert len(found.loss) == 23
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_mirror_image_is_seen_the_same(make_batch) -> None:
    """With the mirror among the views, an image and its mirror image are one."""
    model = make_model("lenet")
    variables, (images, labels) = model.init(random.key(0)), make_batch(6)
    for views in (tta.MIRROR, tta.VIEWS["translate"]):
        step = make_eval_step(model, views=views)
        there, here = (step(variables, Batch(x, labels)) for x in (images.flip(-1), images))
        if views is tta.MIRROR:  # the moves of the other go along a diagonal that is not mirrored
            torch.testing.assert_close(there.logits, here.logits, rtol=1e-5, atol=1e-6)
        else:
            assert not torch.allclose(there.logits, here.logits, rtol=1e-5, atol=1e-6)


def test_views_may_be_ones_own(make_batch) -> None:
    thrice = Views((0.25, 0.5, 0.25), lambda image: torch.stack([image, -image, image]))
    model, batch = make_model("lenet"), make_batch(3)
    variables = model.init(random.key(0))
    found = make_eval_step(model, views=thrice)(variables, batch).logits
    x = NORMALIZE(batch.images)
    expected = (model.apply(variables, x)[0] + model.apply(variables, -x)[0]) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
