"""The built-in data set: the same bits everywhere, balanced, and told apart by form alone."""

import pytest
import torch
from torch import Tensor

from fcifar import random, tree
from fcifar.data import shapes10

DIGEST = "be783eb4b15779a39901f10b6eda75db850ac445b559d94889071735295f571a"
DIGEST_OF_TWO_CHUNKS = "f5a20cda499de6813cd692166252f459e82ec6f0b28849f336637cf76fba933b"


def _small() -> shapes10.Images:
    return shapes10.generate(train_size=200, test_size=50)


def test_the_published_set_has_not_changed():
    assert tree.digest(_small()) == DIGEST


def test_a_class_drawn_in_two_chunks_has_not_changed():
    images = shapes10.generate(train_size=5200, test_size=0)
    assert shapes10.CHUNK < 5200 // 10
    assert tree.digest(images) == DIGEST_OF_TWO_CHUNKS


def test_the_number_of_threads_does_not_matter():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert tree.digest(_small()) == DIGEST
    finally:
        torch.set_num_threads(threads)


def test_generate_leaves_its_key_and_the_global_generator_alone():
    key = random.key(3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = shapes10.generate(key, train_size=30, test_size=10)
    two = shapes10.generate(key, train_size=30, test_size=10)
    assert tree.equal(one, two)
    assert torch.equal(key, random.key(3))
    assert torch.equal(before, torch.get_rng_state())


def test_another_key_gives_other_images_and_another_order():
    one = shapes10.generate(random.key(1), train_size=100, test_size=20)
    two = shapes10.generate(random.key(2), train_size=100, test_size=20)
    assert not _rows(one.train_images) & _rows(two.train_images)
    assert not torch.equal(one.train_labels, two.train_labels)


def test_shapes_dtypes_and_ranges():
    images = _small()
    assert images.train_images.shape == (200, 3, 32, 32)
    assert images.test_images.shape == (50, 3, 32, 32)
    assert images.train_images.dtype == images.test_images.dtype == torch.uint8
    assert images.train_labels.shape == (200,)
    assert images.train_labels.dtype == images.test_labels.dtype == torch.int64
    assert len(shapes10.CLASSES) == len(set(shapes10.CLASSES)) == 10
    assert images.train_images.min() < 10
    assert images.train_images.max() > 245


def test_classes_are_balanced_to_within_one_and_in_random_order():
    images = shapes10.generate(train_size=203, test_size=50)
    counts = torch.bincount(images.train_labels, minlength=10)
    assert sorted(counts.tolist()) == [20] * 7 + [21] * 3
    assert torch.bincount(images.test_labels).tolist() == [5] * 10
    assert len(set(images.train_labels[:20].tolist())) > 5


def test_an_empty_split_is_empty():
    images = shapes10.generate(train_size=10, test_size=0)
    assert images.test_images.shape == (0, 3, 32, 32)
    assert images.test_labels.shape == (0,)


def test_every_shape_is_itself_and_about_as_large_as_the_others():
    along = torch.arange(-1500, 1500, 20, dtype=torch.int32)
    masks = torch.stack(
        [shape(along[None, :], along[:, None]) for shape in shapes10.SHAPES.values()]
    ).flatten(1)
    areas = masks.sum(1) * 20 * 20 / shapes10.ONE**2
    assert areas.min() > 1.4
    assert areas.max() < 1.8
    assert not masks.reshape(10, 150, 150)[:, [0, -1]].any()  # none reaches the edge of the grid
    for i in range(10):
        for j in range(i):
            overlap = (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
            assert overlap < 0.85


def test_turning_by_a_quarter_turns_the_picture():
    centre = torch.full((1, 1, 1, 1), 16 * shapes10.PIXEL)
    radius = torch.full((1, 1, 1, 1), 12 * shapes10.PIXEL)
    upright, turned = (
        shapes10._coverage(
            shapes10.SHAPES["arrow"], centre, centre, radius, radius, torch.full_like(centre, angle)
        )
        for angle in (0, shapes10.TURN // 4)
    )
    clockwise = torch.rot90(upright, -1, (-2, -1))
    # Rounding goes one way, hence points right on an outline may change sides.
    assert (clockwise - turned).abs().sum() < 0.03 * upright.sum()
    assert (upright - turned).abs().sum() > 0.3 * upright.sum()
    assert upright.max() == 4
    assert upright.min() == 0


@pytest.fixture(scope="module")
def sample() -> shapes10.Images:
    return shapes10.generate(train_size=2000, test_size=1000)


def test_no_image_comes_twice(sample):
    train, test = _rows(sample.train_images), _rows(sample.test_images)
    assert len(train) == 2000
    assert len(test) == 1000
    assert not train & test


def test_colour_does_not_tell_the_class(sample):
    train, test = (x.double().mean((2, 3)) / 255 for x in sample[::2])
    assert _linear_accuracy(train, sample.train_labels, test, sample.test_labels) < 0.15


def test_class_means_tell_little(sample):
    train, test = (x.double().flatten(1) / 255 for x in sample[::2])
    means = torch.stack([train[sample.train_labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(test, means).argmin(1)
    accuracy = (nearest == sample.test_labels).double().mean()
    assert 0.13 < accuracy < 0.35  # some, for a network must have something to begin with


def _linear_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> float:
    train, test = (torch.nn.functional.pad(x, (0, 1), value=1.0) for x in (train, test))
    targets = torch.nn.functional.one_hot(train_labels, 10).double()
    weights = torch.linalg.lstsq(train, targets).solution
    return float(((test @ weights).argmax(1) == test_labels).double().mean())


def _rows(images: Tensor) -> set[bytes]:
    return {tree.leaf_bytes(image) for image in images}
