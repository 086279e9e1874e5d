"""Wide layers in bfloat16: the kernels of ``fcifar`` beside the library's, and the whole step.

    python -m benchmarks.bench_wide [--batch-size 500] [--threads 2] [--seconds 0.5]
        [--recipe speed94] [--no-step] [--name wide]

The convolutions of speed94 and some of resnet18, forward and backward, with the max-pool behind
where there is one; batch norm with GELU; and a training step of the recipe, compiled by inductor
alone and with the kernels. All in turns. Of each layer also the error of y, dx and dw relative to
their norms, against double precision; the library rounds only the results. Writes
bench_results/NAME.json.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import records, script
from benchmarks.render.tables import group_table
from fcifar import layers, random, recipes
from fcifar.bench import bench, timing
from fcifar.bench.timing import Candidate
from fcifar.kernels import build, norm_gelu, wide_conv, winograd
from fcifar.kernels.winograd import Shape
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_training

LAYERS = {
    "24 to 64, 31x31, pooled": Shape(24, 64, 31, 31, True),
    "64 to 64, 15x15": Shape(64, 64, 15, 15, False),
    "64 to 256, 15x15, pooled": Shape(64, 256, 15, 15, True),
    "256 to 256, 7x7": Shape(256, 256, 7, 7, False),
    "256 to 256, 7x7, pooled": Shape(256, 256, 7, 7, True),
    "256 to 256, 3x3": Shape(256, 256, 3, 3, False),
    "64 to 64, 32x32 (resnet18)": Shape(64, 64, 32, 32, False),
    "512 to 512, 4x4 (resnet18)": Shape(512, 512, 4, 4, False),
}
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
aten = torch.ops.aten
Functions = dict[str, dict[str, Callable[[], Any]]]


def images(seed: int, *shape: int) -> Tensor:
    values = random.normal(random.key(seed), shape).bfloat16()
    return values.contiguous(memory_format=torch.channels_last)


def functions(shape: Shape, count: int) -> Functions:
    """Forward and backward of a layer, by the library and by the kernels."""
    c, o, h, w, pool, _ = shape
    x, weight = images(0, count, c, h, w), images(1, o, c, 3, 3) / (3 * c**0.5)
    settings = ([o], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])

    def library() -> Any:
        y = F.conv2d(x, weight, padding=1)
        return F.max_pool2d(y, 2, return_indices=True) if pool else (y, None)

    result, indices = library()
    y = F.conv2d(x, weight, padding=1)
    gradient = images(2, *result.shape)

    def library_backward() -> Any:
        dy = gradient
        if pool:
            dy = aten.max_pool2d_with_indices_backward(gradient, y, *POOL, indices)
        return aten.convolution_backward(dy, x, weight, *settings)[:2]

    if not pool:
        return {
            "forward": {"library": library, "fcifar": lambda: (winograd.conv(x, weight), None)},
            "backward": {
                "library": library_backward,
                "fcifar": lambda: winograd.conv_backward(gradient, x, weight, True, True),
            },
        }
    _, which = winograd.conv_pool(x, weight)
    is_best = winograd.is_best_behind_pool(shape)
    backward = winograd.conv_pool_backward if is_best else wide_conv.wide_conv_backward
    arguments = (gradient, which, x, weight, True, True)
    return {
        "forward": {"library": library, "fcifar": lambda: winograd.conv_pool(x, weight)},
        "backward": {
            "library": library_backward,
            "fcifar": lambda: backward(*arguments),
        },
    }


def errors(shape: Shape) -> dict[str, dict[str, float]]:
    """Relative errors of y, dx and dw without a pool: its choices depend on rounding."""
    plain = shape._replace(pool=False)
    c, o, h, w, *_ = plain
    made = functions(plain, 8)
    x, weight = images(0, 8, c, h, w), images(1, o, c, 3, 3) / (3 * c**0.5)
    inputs = [t.double().requires_grad_() for t in (x, weight)]
    y = F.conv2d(*inputs, padding=1)
    truth = (y.detach(), *torch.autograd.grad(y, inputs, images(2, *y.shape).double()))
    found = {}
    for name in ("library", "fcifar"):
        ours = (made["forward"][name]()[0], *made["backward"][name]())
        found[name] = {
            what: float((a.double() - b).norm() / b.norm())
            for what, a, b in zip(("y", "dx", "dw"), ours, truth, strict=True)
        }
    return found


def normalise(count: int) -> Functions:
    """Batch norm with GELU of 64 channels of 15x15, compiled by inductor, and by the kernels."""
    x, dz = images(0, count, 64, 15, 15), images(1, count, 64, 15, 15)
    scale, shift, a, b, c = random.normal(random.key(2), (5, 64))
    norm = layers.BatchNorm(64)
    values = {name: torch.ones(64) for name in ("weight", "bias", "running_mean", "running_var")}

    def plain(x: Tensor) -> Tensor:
        return F.gelu(torch.func.functional_call(norm, values, (x, True))[0])

    compiled = torch.compile(lambda x, dz: torch.func.vjp(plain, x)[1](dz)[0])
    forward = torch.compile(plain)

    def ours() -> Tensor:
        norm_gelu.moments(x)
        return norm_gelu.norm_gelu(x, scale, shift)

    def ours_backward() -> Tensor:
        # Inductor's function recomputes the forward pass, so this does as well.
        norm_gelu.moments(x)
        norm_gelu.norm_gelu_sums(dz, x, scale, shift)
        return norm_gelu.norm_gelu_backward(dz, x, scale, shift, a, b, c)

    return {
        "forward": {"inductor": lambda: forward(x), "fcifar": ours},
        "backward": {"inductor": lambda: compiled(x, dz), "fcifar": ours_backward},
    }


def steps(name: str, runtime: Any) -> dict[str, Candidate]:
    """A training step of a recipe."""
    recipe = recipes.get(name).replace(epochs=1)
    dataset = bench.synthetic(2 * recipe.batch_size)

    def candidate(*, kernels: bool) -> Candidate:
        config = make_config(recipe, dataset, runtime=runtime, compile=kernels)
        training = make_training(config, dataset)
        step, inputs, state = training.stages[0], bench.repeated(training.inputs), training.init()
        step = step if kernels else torch.compile(step, fullgraph=True)

        def once() -> None:
            nonlocal state
            state, _ = step(state, next(inputs))

        return Candidate(once)

    return {"inductor": candidate(kernels=False), "fcifar": candidate(kernels=True)}


def main() -> None:
    defaults = {"batch_size": 500, "threads": int, "seconds": 0.5, "repetitions": 5}
    parser = script.parser(__doc__, **defaults, recipe="speed94", name="wide")
    parser.add_argument("--no-step", action="store_true")
    options = parser.parse_args()
    if reason := winograd.why_not():
        raise SystemExit(f"there are no such kernels here: {reason}")
    runtime = make_runtime(device="cpu", threads=options.threads, precision="bf16")
    results: dict[str, Any] = {}
    with activate(runtime):
        made: dict[str, Functions] = {
            name: functions(shape, options.batch_size) for name, shape in LAYERS.items()
        }
        made["batch norm and GELU, 64 channels of 15x15"] = normalise(options.batch_size)
        for name, ways in made.items():
            for way, each in ways.items():
                candidates = {who: Candidate(function) for who, function in each.items()}
                found = timing.measure(
                    candidates, seconds=options.seconds, repetitions=options.repetitions
                )
                results[f"{name}, {way}"] = found
                print(f"{name}, {way}\n{group_table(found)}", flush=True)
        if not options.no_step:
            candidates = steps(options.recipe, runtime)
            found = timing.measure(candidates, seconds=10, repetitions=options.repetitions)
            results[f"a step of {options.recipe}"] = found
            print(f"a step of {options.recipe}\n{group_table(found)}", flush=True)
        relative = {name: errors(shape) for name, shape in LAYERS.items()}
    config = {**vars(options), "threads": runtime.threads, "float16": build.has_float16()}
    print(records.write(options.name, {**config, "errors": relative}, results))


if __name__ == "__main__":
    main()
