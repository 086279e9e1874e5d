"""Heat maps over images, and the charts of attacks."""

from typing import Any

import pytest
import torch

from fcifar.report.figures import adversarial, heat_maps


def test_what_raises_the_score_is_vermilion_and_what_lowers_it_blue() -> None:
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    maps = torch.zeros(2, 3, 8, 8)
    maps[0, :, 0, :4], maps[0, :, 0, 4:] = 1.0, -1.0
    maps[0, 0, 7], maps[0, 1, 7] = 1.0, -1.0  # adds up to 0
    drawn = heat_maps.overlay(images, maps)
    assert (drawn.shape, drawn.dtype) == (images.shape, torch.uint8)
    red, green, blue = drawn[0, :, 0, 0].tolist()
    assert red > green > blue
    red, green, blue = drawn[0, :, 0, 7].tolist()
    assert red < green < blue
    # Without attribution, the image in grey; a map of zeros has no strongest pixel.
    assert drawn[0, :, 7].unique().tolist() == drawn[1].unique().tolist()
    assert len(drawn[1].unique()) == 1
    unsigned = heat_maps.overlay(images, maps, signed=False)
    assert torch.equal(unsigned[0, :, 0, 0], unsigned[0, :, 0, 7])
    assert not torch.equal(unsigned[0, :, 7], drawn[0, :, 7]), "the largest magnitude of a channel"
    of_places = heat_maps.overlay(images, maps.mean(1))
    assert torch.equal(of_places, drawn)


def attack(name: str, eps: float, steps: int, norm: str = "linf") -> dict[str, Any]:
    values = {"name": name, "eps": eps, "steps": steps, "norm": norm, "restarts": 1}
    return {**values, "accuracy": 0.5, "interval95": [0.4, 0.6]}


def test_each_norm_has_a_chart_and_each_kind_of_attack_a_line() -> None:
    clean = {"accuracy": 0.9, "interval95": [0.8, 0.95]}
    found = [attack("fgsm", 8 / 255, 1), attack("fgsm", 4 / 255, 1), attack("pgd", 0.5, 20, "l2")]
    many = [attack("pgd", 8 / 255, steps) for steps in range(1, 10)]
    figure = adversarial.curve({"n": 100, "clean": clean, "found": [*found, *many]}, title="of a")
    linf, l2 = figure.axes
    labels = [text.get_text() for text in linf.get_legend().get_texts()]
    assert labels == ["FGSM", "PGD, 1 step", *(f"PGD, {i} steps" for i in range(2, 10))]
    line = linf.containers[0].lines[0]
    assert line.get_xdata() == pytest.approx([0, 4, 8])
    assert line.get_ydata() == pytest.approx([90, 50, 50])
    assert line.get_linestyle() == "-"
    assert l2.containers[0].lines[0].get_linestyle() == "None", "one attack is a point"
