"""What a person sees of a run that has come to its end."""

from typing import Any

from fcifar.cli import output


def _chosen(report: dict[str, Any]) -> str:
    selected, steps = report["selected"], report["steps"]
    stopped = f"; stopped early after step {steps:,}" if report["stopped_early"] else ""
    if "valid_loss" not in selected:
        return f"of the last step, {steps:,}{stopped}"
    loss = selected["valid_loss"]
    # Reports of earlier versions do not have the number.
    count = f" of {report['valid_n']:,} images" if report.get("valid_n") else ""
    return f"of step {selected['step']:,}, chosen by validation loss {loss:.4f}{count}{stopped}"


def show(report: dict[str, Any]) -> None:
    """Print a run's report."""
    low, high = report["interval95"]
    output.class_table(report["per_class"])
    output.stdout.print()
    output.facts(
        [
            (
                "test accuracy",
                f"{output.percent(report['test_accuracy'], 2)} of {report['test_n']:,} "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
            ),
            *of_views(report),
            ("test loss", f"{report['test_loss']:.4f}"),
            ("calibration", output.calibration(report)),
            ("mistakes", output.confusions(report) or "none"),
            ("network", _chosen(report)),
            (
                "training",
                f"{report['steps']:,} steps in {report['train_seconds']:.1f} s, "
                f"{report['images_per_second']:,.0f} images/s",
            ),
            ("compiling", f"{report['compile_seconds']:.1f} s"),
            (
                "clocks",
                f"{report['convention_seconds']:.1f} s by the field's convention, "
                f"{report['process_seconds']:.1f} s from the start of the process",
            ),
            ("run", report["run_dir"]),
            ("digest", report["params_digest"]),
        ]
    )


def of_views(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The line of a figure with test-time augmentation, if there is one."""
    if "tta" not in report:
        return []
    low, high = report["tta_interval95"]
    return [
        (
            f"with --tta {report['tta']}",
            f"{output.percent(report['tta_accuracy'], 2)} "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        )
    ]
