"""fcifar bench."""

import math
from typing import Annotated, Any

from fcifar.cli import options, output, progress

NAMES = {
    "module": "PyTorch module",
    "fcifar_eager": "fcifar",
    "fcifar_compiled": "fcifar --compile",
}


def bench(
    seconds: Annotated[
        int,
        options.option(
            "--seconds", "Total time of all measurements; compiling adds a minute or so."
        ),
    ] = 30,
    device: options.Device = None,
    threads: options.Threads = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time training steps on this machine, beside the tutorial's step in PyTorch.

    Images are synthetic and on the device, so loading them is not measured.
    Measurements of the steps are interleaved; figures are medians.
    """
    from fcifar.bench import bench as measuring
    from fcifar.bench import timing
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
    with progress.counting(quiet=quiet) as observe:
        result = measuring.run(runtime, seconds=seconds, compiled=compiled, observe=observe)
    output.result(result, _show, json)
    if notice := timing.busy_notice(result["other_processes"]):
        output.note(notice)


def _show(result: dict[str, Any]) -> None:
    environment = result["environment"]
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
    compiled = [steps.get("fcifar_compiled") for steps in result["results"].values()]
    compiling = sum(figures["first_call_seconds"] for figures in compiled if figures)
    output.stdout.print()
    output.facts(
        [
            ("times", "speed relative to the PyTorch module"),
            ("spread", "interquartile range, relative to the median"),
            ("compiling", f"{compiling:.1f} s, in no figure above"),
            ("machine", f"{environment['cpu']}, {output.count(result['threads'], 'thread')}"),
            ("device", result["device"]),
            ("torch", environment["versions"]["torch"]),
        ]
    )


def _time(seconds: float) -> str:
    """Return milliseconds with three digits."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{max(0, 2 - math.floor(math.log10(milliseconds)))}f} ms"
