"""An image as numbers: every pixel in its cell, its value in a readable colour."""

import math

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from fcifar import random
from fcifar.errors import ExternalError, UsageError
from fcifar.report.figures import channels
from fcifar.report.figures.canvas import save
from fcifar.report.figures.channels import (
    BOTTOM,
    CELL,
    GAP,
    LEFT,
    TOP,
    as_grey,
    value_range,
    value_text,
)


def _cells(path, height: int, width: int) -> Tensor:
    """float [3, H, W, CELL, CELL]: what is drawn for each pixel of each channel, red of RGB."""
    sheet = torch.from_numpy(imread(path))[..., 0] * 255
    channels = []
    for channel in range(3):
        left = LEFT + channel * (width * CELL + GAP)
        part = sheet[TOP : TOP + height * CELL, left : left + width * CELL]
        channels.append(part.reshape(height, CELL, width, CELL).transpose(1, 2))
    return torch.stack(channels)


def test_each_pixel_has_its_grey_and_readable_ink_inside_its_cell(tmp_path):
    image = random.randint(random.key(0), (3, 5, 7), 0, 256).to(torch.uint8)
    image[0, 0, 0], image[0, 0, 1] = 0, 255
    cells = _cells(save(channels.draw(image, title="$x$"), tmp_path / "c.png"), 5, 7)
    border = torch.cat([cells[..., :2, :].flatten(3), cells[..., -2:, :].flatten(3)], -1)
    assert torch.equal(border.amin(-1).round().to(torch.uint8), image)
    assert torch.equal(border.amax(-1).round().to(torch.uint8), image)
    inked = (cells - image[..., None, None].float()).abs().amax((-1, -2))
    assert inked.min() > 100  # each cell holds a number that stands out from its ground


def test_a_cifar_picture_is_large_and_whole(tmp_path):
    image = random.randint(random.key(1), (3, 32, 32), 0, 256).to(torch.uint8)
    path = save(channels.draw(image, title="a picture"), tmp_path / "c.png")
    assert CELL >= 32
    size = (TOP + 32 * CELL + BOTTOM, 2 * LEFT + 2 * GAP + 3 * 32 * CELL)
    assert imread(path).shape[:2] == size
    assert list(tmp_path.iterdir()) == [path]


def test_normalised_values_go_from_black_to_white():
    image = torch.tensor([-2.0, 0.0, 2.0, math.nan, math.inf])
    assert value_range(image) == (-2.0, 2.0)
    assert as_grey(image, -2.0, 2.0).tolist() == [0, 128, 255, 0, 0]
    assert as_grey(torch.ones(2), 1.0, 1.0).tolist() == [0, 0]
    assert value_range(torch.full((2,), math.nan)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"),
        (-1.0, "-1.00"),
        (-0.001, "0.00"),
        (-12.34, "-12.3"),
        (12345.0, "1e+04"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_values_are_written_short(value, text):
    assert value_text(value, torch.float32) == text
    assert len(text) <= 5
    assert value_text(255, torch.uint8) == "255"


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_floating_picture_of_one_value_is_drawn(tmp_path, value):
    cells = _cells(
        save(channels.draw(torch.full((3, 2, 2), value), title="flat"), tmp_path / "c.png"), 2, 2
    )
    assert (cells.amin((-1, -2)) == 0).all()
    assert (cells.amax((-1, -2)) > 200).all()


def test_what_is_no_picture_is_refused(tmp_path):
    for image in (
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.int64),
        torch.zeros(3, 65, 32, dtype=torch.uint8),
        torch.zeros(3, 0, 32, dtype=torch.uint8),
    ):
        with pytest.raises(UsageError, match="at most 64 x 64"):
            save(channels.draw(image, title=""), tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", refuse)
    with pytest.raises(ExternalError, match="No space left"):
        save(channels.draw(torch.zeros(3, 2, 2), title=""), tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
