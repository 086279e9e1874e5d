"""The end of a training run: choose the network, measure it, and report."""

import time
from typing import Any

from fcifar import tree
from fcifar.runs import directory, jsonfiles
from fcifar.runs.evaluate import of_views
from fcifar.runs.process import since_process_start
from fcifar.runs.saving import Place, read_network
from fcifar.runs.selection import best_epoch
from fcifar.runs.session import Session, measure, save_network


def finish(session: Session, place: Place, valid_losses: list[float]) -> dict[str, Any]:
    """Choose the network to end with, measure it on the test images, and report.

    Returns:
        The report, as values that JSON holds; ``report.json`` has it, sealed.
    """
    run, program, recipe = session.run, session.program, session.recipe
    running, clock, mark = place
    step = int(running.state.step)
    variables, chosen = program.value(running.state), step
    selected: dict[str, Any] = {"by": "last epoch", "step": step}
    if recipe.restore_best:
        epoch = best_epoch(valid_losses)
        chosen = (epoch + 1) * program.steps_per_epoch
        variables = read_network(run / directory.BEST, like=variables)
        selected = {
            "by": "lowest validation loss",
            "step": chosen,
            "valid_loss": valid_losses[epoch],
        }
    started = time.perf_counter()
    summary, mark = measure(session, variables, "test", chosen, mark)
    eval_seconds = time.perf_counter() - started
    views: dict[str, Any] = {}
    if recipe.tta != "none":
        started = time.perf_counter()
        seen, mark = measure(session, variables, "test", chosen, mark, views=recipe.tta)
        eval_seconds = time.perf_counter() - started  # the field's clock has this one alone
        views = {"tta": recipe.tta, **of_views(seen)}
    save_network(session, directory.FINAL, variables)
    epochs = step / program.steps_per_epoch
    report = {
        "run_dir": str(run),
        "recipe": recipe.name,
        "dataset": session.dataset.name,
        "seed": session.runtime.seed,
        "device": session.runtime.device,
        "steps": step,
        "epochs": int(epochs) if epochs.is_integer() else epochs,
        "stopped_early": step < program.total_steps,
        "selected": selected,
        "test_accuracy": summary["accuracy"],
        "test_loss": summary["loss"],
        "test_n": summary["n"],
        "valid_n": len(program.valid.labels),
        **views,
        **{name: summary[name] for name in summary if name not in ("accuracy", "loss", "n")},
        "train_seconds": clock.train,
        "safeguard_seconds": clock.safeguards,
        "valid_seconds": clock.valid,
        "compile_seconds": clock.compile,
        "eval_seconds": eval_seconds,
        "convention_seconds": clock.adapt + clock.train + eval_seconds,
        "process_seconds": since_process_start(),
        "images_per_second": program.images_per_epoch * epochs / clock.train,
        "params_digest": tree.digest(variables.params),
        "log": mark._asdict(),
    }
    jsonfiles.write_sealed(run / directory.REPORT, report)
    return report
