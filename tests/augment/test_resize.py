"""Images made smaller and larger, against torchvision's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import functional
from tests.helpers import twin

SIZES = [16, 20, 24, 28, 31, 48]


def noise(*shape: int) -> Tensor:
    """Uniform uint8 images, which leave nothing out that a resampling could get wrong."""
    return random.bits(random.key(7), shape).to(torch.uint8)


def by_twin(images: Tensor, size: int) -> Tensor:
    bilinear = twin.InterpolationMode.BILINEAR
    return twin.resize(images, [size, size], interpolation=bilinear, antialias=True)


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 32, 32), (2, 1, 20, 33)])
@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_torchvisions(size: int, shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    for dtype, atol in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        floating = (images / 255).to(dtype)
        found = functional.resize(floating, size)
        assert found.dtype == dtype
        assert found.shape == (*shape[:-2], size, size)
        torch.testing.assert_close(found, by_twin(floating, size), rtol=0, atol=atol)
    found = functional.resize(images, size)
    assert found.dtype == torch.uint8
    difference = (found.int() - by_twin(images, size).int()).abs()
    assert difference.max() <= 1
    exact = functional.resize(images.double(), size)
    assert (found - exact).abs().max() < 0.501, "rounded once, at the end"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_flat_stays_flat(size: int, dtype: torch.dtype) -> None:
    images = torch.full((2, 3, 32, 32), 100, dtype=dtype)
    found = functional.resize(images, size)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.full_like(found, 100), rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [16, 32])
def test_the_same_size_is_the_same_image(side: int) -> None:
    for images in (noise(2, 3, side, side), noise(2, 3, side, side).bfloat16()):
        assert functional.resize(images, side) is images


def test_half_the_size_keeps_the_mean_of_a_centred_spot() -> None:
    image = torch.zeros(1, 8, 8, dtype=torch.float64)
    image[0, 3:5, 3:5] = 1.0
    small = functional.resize(image, 4)
    assert torch.equal(small, small.flip(-1))
    assert torch.equal(small, small.flip(-2))
    assert torch.equal(small, small.mT)
    torch.testing.assert_close(small.sum() * 4, image.sum())


def test_it_maps_over_images_and_has_a_gradient() -> None:
    images = noise(5, 3, 32, 32) / 255
    whole = functional.resize(images, 24)
    mapped = torch.vmap(lambda x: functional.resize(x, 24))(images)
    torch.testing.assert_close(mapped, whole, rtol=1e-6, atol=1e-6)
    grad = torch.func.grad(lambda x: functional.resize(x, 24).sum())(images)
    torch.testing.assert_close(grad.sum((2, 3)), torch.full((5, 3), 24.0**2))


def test_it_compiles_to_one_graph_and_never_again() -> None:
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda x: functional.resize(x, 24), backend=counting, fullgraph=True, dynamic=False
    )
    for i in range(3):
        images = noise(2, 3, 32, 32) + i
        assert torch.equal(compiled(images), functional.resize(images, 24))
    assert len(graphs) == 1


@pytest.mark.parametrize("size", [0, -3])
def test_misuse_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"resize needs a size from 1 up, not {size}"):
        functional.resize(noise(1, 3, 8, 8), size)


@pytest.mark.cuda
def test_the_same_on_cuda() -> None:
    images = noise(4, 3, 32, 32) / 255
    on_gpu = functional.resize(images.cuda(), 24)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), functional.resize(images, 24), rtol=0, atol=1e-5)
