"""fcifar bench."""

import math
from typing import Annotated, Any

import typer

from fcifar.cli import options, output

NAMES = {
    "module": "PyTorch module",
    "fcifar_eager": "fcifar",
    "fcifar_compiled": "fcifar --compile",
}


def bench(
    seconds: Annotated[
        int,
        typer.Option(
            "--seconds", help="To spend on measuring; making and compiling the steps is extra."
        ),
    ] = 30,
    device: options.Device = None,
    threads: options.Threads = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure training steps on this machine, beside the tutorial's step in PyTorch.

    The images are synthetic and lie on the device; loading them is not in it. Steps
    are measured in turns; what is shown are medians.
    """
    import logging

    from fcifar.bench import bench as measuring
    from fcifar.cli import progress
    from fcifar.errors import UsageError
    from fcifar.train import environment
    from fcifar.train.runtime import make_runtime

    measuring.check_seconds(seconds)
    runtime = make_runtime(device=device or "auto", threads=threads, deterministic=deterministic)
    compiled = True
    try:
        environment.check_compiler(runtime.device)
    except UsageError:
        compiled = False
        output.note("without fcifar --compile, which needs a C++ compiler")
    # A machine with nvcc and without a GPU gets a warning about that from torch.compile.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with progress.counting(quiet=quiet) as observe:
        result = measuring.run(runtime, seconds=seconds, compiled=compiled, observe=observe)
    if json:
        output.document(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    about = result["environment"]
    output.table(
        ("training step", "", "a step", "images/s", "times", "spread"),
        [
            (
                group.removeprefix("step ") if name == "module" else "",
                NAMES[name],
                _time(figures["median_seconds"]),
                f"{figures['images_per_second']:,.0f}",
                f"{figures['times_module']:.2f}",
                f"{100 * figures['spread']:.0f} %",
            )
            for group, implementations in result["results"].items()
            for name, figures in implementations.items()
        ],
    )
    output.stdout.print()
    output.facts(
        [
            ("times", "as fast as the PyTorch module"),
            ("spread", "the middle half of the measurements, of their median"),
            ("compiling", f"{_compiling(result):.1f} s, in no figure above"),
            ("machine", f"{about['cpu']}, {output.count(result['threads'], 'thread')}"),
            ("device", result["device"]),
            ("torch", about["versions"]["torch"]),
        ]
    )


def _compiling(result: dict[str, Any]) -> float:
    return sum(
        implementations["fcifar_compiled"]["first_call_seconds"]
        for implementations in result["results"].values()
        if "fcifar_compiled" in implementations
    )


def _time(seconds: float) -> str:
    """Three digits, in ms: from a few microseconds to a few seconds."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{max(0, 2 - math.floor(math.log10(milliseconds)))}f} ms"
