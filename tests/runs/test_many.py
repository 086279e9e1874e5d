"""A group: each run is what it is alone, and the group goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import ensembles
from fcifar.data import Dataset
from fcifar.errors import DamagedError, UserError, WorldError
from fcifar.recipes import Recipe
from fcifar.runs import (
    checkpoint,
    directory,
    group,
    group_checks,
    jsonfiles,
    loop,
    many,
    reproduce,
    saving,
)
from fcifar.runs.evaluate import read_predictions
from fcifar.runs.group import Group
from fcifar.runs.runtime import Runtime
from fcifar.runs.safeguards import Safeguards

METHODS = ["loop", "vmap"]


@pytest.fixture
def ask(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Callable[..., Group]:
    def ask(
        method: str = "loop",
        seeds: tuple[int, ...] = (5, 6),
        sweep: dict[str, list[Any]] | None = None,
        changes: dict[str, Any] | None = None,
        **safeguards: Any,
    ) -> Group:
        base = recipe.replace(**(changes or {}))
        axes = {
            name: [(value, base.replace(**{name: value})) for value in values]
            for name, values in (sweep or {}).items()
        }
        return Group(
            members=group.plan(base, axes, seeds),
            method=method,
            runtime=runtime,
            compiled=False,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest,
            safeguards=Safeguards(**safeguards),
        )

    return ask


def after(steps: int, every: int = 1) -> Callable[[], int | None]:
    asked = iter(range(steps))
    return lambda: None if next(asked, None) is not None else 15


def digests(summary: Any) -> list[str]:
    assert isinstance(summary, dict)
    return [member["params_digest"] for member in summary["members"]]


def test_in_a_loop_each_run_is_bit_for_bit_the_run_alone(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, recipe: Recipe
) -> None:
    asked = ask(changes={"alternating_flip": True, "valid_fraction": 0.2})
    summary = many.train(tmp_path / "group", asked, dataset)
    for member, digest in zip(asked.members, digests(summary), strict=True):
        alone = loop.train(
            tmp_path / member.name, member.recipe, Runtime(threads=1, seed=member.seed), dataset
        )
        assert isinstance(alone, dict)
        assert alone["params_digest"] == digest
        ours, theirs = (
            [{k: v for k, v in r.items() if k != "seconds"} for r in directory.read_records(run)]
            for run in (tmp_path / "group" / member.name, tmp_path / member.name)
        )
        assert ours == theirs


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_at_once_each_run_is_the_run_alone_to_rounding(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, schedule: str
) -> None:
    """Also where the last batch is short, flips alternate, and images are held out."""
    changes = {"alternating_flip": True, "valid_fraction": 0.2, "schedule": schedule}
    asked = ask("vmap", (5, 6, 7), changes=changes)
    summary = many.train(tmp_path / "vmap", asked, dataset)
    assert len(set(digests(summary))) == 3
    many.train(tmp_path / "loop", asked._replace(method="loop"), dataset)
    for member in asked.members:
        a, b = (
            checkpoint.read(tmp_path / method / member.name / directory.FINAL)[0]
            for method in METHODS
        )
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-5)
        ours, theirs = (
            directory.read_records(tmp_path / method / member.name) for method in METHODS
        )
        for x, y in zip(ours, theirs, strict=True):
            assert (x["kind"], x["step"], x["count"]) == (y["kind"], y["step"], y["count"])
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_trains_each_cell_as_the_run_with_its_values(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, method: str
) -> None:
    """Two numbers that one step is mapped or called with, and a width that needs its own."""
    sweep = {"learning_rate": [0.001, 0.02], "momentum": [0.0, 0.9], "batch_size": [5, 7]}
    asked = ask(method, (5,), sweep, {"valid_fraction": 0.2})
    assert [(len(p.members), p.traced) for p in group.parts(asked.members)] == [
        (4, ("learning_rate", "momentum"))
    ] * 2
    summary = many.train(tmp_path / "group", asked, dataset)
    assert isinstance(summary, dict)
    for member in asked.members[::3]:
        alone = loop.train(tmp_path / member.name, member.recipe, asked.runtime, dataset)
        assert isinstance(alone, dict)
        a, b = (
            checkpoint.read(run / directory.FINAL)[0]
            for run in (tmp_path / "group" / member.name, tmp_path / member.name)
        )
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-5)
    best = max(summary["cells"], key=lambda cell: cell["valid_accuracy"]["mean"])
    assert summary["best"] == best["name"]
    assert [cell["changes"] for cell in summary["cells"]] == [m.changes for m in asked.members]


def test_without_images_held_out_nothing_is_chosen(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    summary = many.train(tmp_path, ask(sweep={"learning_rate": [0.1, 0.2]}), dataset)
    assert isinstance(summary, dict)
    assert summary["best"] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [0, 4, 11, 30])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, method: str, steps: int
) -> None:
    asked = ask(method)
    whole = many.train(tmp_path / "whole", asked, dataset)
    run = tmp_path / "run"
    stopped = many.train(run, asked, dataset, stop=after(steps))
    if method == "vmap" and steps == 30:
        assert digests(stopped) == digests(whole)  # it had come to its end
        return
    assert isinstance(stopped, loop.Interrupted)
    assert stopped.signum == 15
    if not group.is_group(run):  # it had not begun
        assert not run.exists()
        return
    resumed = many.train(run, group.read(run), dataset, resume=True)
    assert digests(resumed) == digests(whole)
    assert group.read_summary(run) == jsonfiles.finite(resumed)


def test_a_lockstep_goes_on_from_the_last_step_that_all_have(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    """As after a kill between the checkpoints of two runs."""
    asked = ask("vmap", checkpoint_every="4", keep_checkpoints=9)
    whole = many.train(tmp_path / "whole", asked, dataset)
    run = tmp_path / "run"
    many.train(run, asked, dataset, stop=after(13))
    first, second = (run / member.name for member in asked.members)
    assert list(saving.list_checkpoints(first)) == [13, 12, 8, 4]
    saving.path_of(second, 13).unlink()
    saving.path_of(first, 12).unlink()
    resumed = many.train(run, asked, dataset, resume=True)
    assert digests(resumed) == digests(whole)
    saving.path_of(second, 24).unlink()  # and with nothing in common, from the beginning
    for member in asked.members:
        (run / member.name / directory.REPORT).unlink()
    for path in saving.list_checkpoints(first).values():
        path.unlink()
    assert digests(many.train(run, asked, dataset, resume=True)) == digests(whole)


@pytest.mark.parametrize("method", METHODS)
def test_runs_that_had_ended_stay_as_they_are(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, method: str
) -> None:
    asked = ask(method)
    whole = many.train(tmp_path, asked, dataset)
    report = (tmp_path / "seed5" / directory.REPORT).read_bytes()
    (tmp_path / "seed6" / directory.REPORT).unlink()
    for path in saving.list_checkpoints(tmp_path / "seed6").values():
        path.unlink()
    assert digests(many.train(tmp_path, asked, dataset, resume=True)) == digests(whole)
    assert (tmp_path / "seed5" / directory.REPORT).read_bytes() == report


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_stops_and_the_others_go_on(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, method: str
) -> None:
    asked = ask(method, (5,), {"learning_rate": [0.001, 1e20, 0.01]})
    notes: list[str] = []
    summary = many.train(tmp_path, asked, dataset, observe=lambda event: notes.append(str(event)))
    assert isinstance(summary, dict)
    fine, failed, also_fine = summary["members"]
    assert "test_accuracy" in fine
    assert "test_accuracy" in also_fine
    assert failed["failed"] == "the loss was not finite at step 2"
    assert any("learning_rate=1e+20: the loss is not finite" in note for note in notes)
    assert [cell["failed"] for cell in summary["cells"]] == [0, 1, 0]
    again = many.train(tmp_path, asked, dataset, resume=True)
    assert isinstance(again, dict)
    assert again["members"] == summary["members"]
    if method == "loop":  # mapped over three, and over two, it rounds otherwise
        two = ask(method, (5,), {"learning_rate": [0.001, 0.01]})
        ends = [member["params_digest"] for member in (fine, also_fine)]
        assert digests(many.train(tmp_path / "two", two, dataset)) == ends


def test_a_group_of_which_nothing_ends_says_so(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    with pytest.raises(WorldError, match=r"no run of .* came to its end: the loss was not finite"):
        many.train(tmp_path, ask(changes={"learning_rate": 1e20}), dataset)


def test_the_summary_says_what_the_networks_say_together(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    summary = many.train(tmp_path, ask(seeds=(1, 2, 3)), dataset)
    assert isinstance(summary, dict)
    found = [read_predictions(tmp_path / f"seed{i}" / directory.PREDICTIONS)[0] for i in (1, 2, 3)]
    logits = torch.stack([examples.logits for examples in found])
    (cell,) = summary["cells"]
    assert cell["together"] == ensembles.summarize_replicas(logits, dataset.test_labels)
    accuracies = [member["test_accuracy"] for member in summary["members"]]
    assert cell["together"]["accuracies"] == pytest.approx(accuracies)
    assert summary["test_accuracy"] == pytest.approx(sum(accuracies) / 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_group_reproduces_and_a_change_is_found(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset, method: str
) -> None:
    asked = ask(method)
    many.train(tmp_path / "group", asked, dataset)
    result = group_checks.reproduce(tmp_path / "group", dataset)
    assert isinstance(result, dict)
    assert result["identical"]
    assert result["expected"]
    other = asked._replace(members=asked.members[::-1][:1] + asked.members[:1])
    renamed = [
        member._replace(name=name)
        for member, name in zip(other.members, ("seed5", "seed6"), strict=True)
    ]
    many.train(tmp_path / "other", asked._replace(members=tuple(renamed)), dataset)
    (tmp_path / "other" / group.FILE).write_bytes((tmp_path / "group" / group.FILE).read_bytes())
    result = group_checks.reproduce(tmp_path / "other", dataset)
    assert isinstance(result, dict)
    assert not result["identical"]
    assert [run["first_difference"]["step"] for run in result["runs"]] == [4, 4]


def test_a_run_of_a_loop_reproduces_alone_and_one_of_a_map_says_why_not(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    for method, doubt in (("loop", None), ("vmap", "one of 4 that were trained at once")):
        asked = ask(method, (5, 6), {"learning_rate": [0.001, 0.02]})
        many.train(tmp_path / method, asked, dataset)
        original = reproduce.read(tmp_path / method / asked.members[1].name)
        assert original.settings.traced == ("learning_rate",)
        assert [doubt in text for text in original.doubts] == ([True] if doubt else [])
        if method == "loop":
            result = reproduce.reproduce(original, dataset)
            assert isinstance(result, dict)
            assert result["identical"]


def test_a_changed_file_of_a_group_is_found_and_named(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    many.train(tmp_path, ask(), dataset)
    assert group_checks.check(tmp_path) == []
    for name in (f"seed5/{directory.FINAL}", f"seed6/{directory.REPORT}", group.SUMMARY):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
        (problem,) = group_checks.check(tmp_path)
        assert problem.startswith(str(tmp_path / name))
        (tmp_path / name).write_bytes(before)
    text = (tmp_path / group.FILE).read_text()
    (tmp_path / group.FILE).write_text(text.replace('"loop"', '"vmap"'))
    with pytest.raises(DamagedError, match="was changed after it was written"):
        group_checks.check(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("members"), "is not complete"),
        (lambda v: v.update(format=9), "is not of format 1"),
        (lambda v: v["members"][0].update(name="../../x"), "is no name of a run"),
        (lambda v: v["members"][0].update(name=".."), "is no name of a run"),
        (lambda v: v["members"][0].update(name=7), "is not complete"),
        (lambda v: v["members"][0].update(recipe=[]), "not a recipe"),
        (lambda v: v.update(runtime=3), "is not complete"),
    ],
)
def test_a_hostile_group_is_refused_in_one_line(
    tmp_path: Path, ask: Callable[..., Group], change: Callable[[Any], Any], message: str
) -> None:
    group.write(tmp_path, ask(), {})
    values = json.loads((tmp_path / group.FILE).read_text())
    values.pop(jsonfiles.SEAL)
    change(values)
    jsonfiles.write_sealed(tmp_path / group.FILE, values)
    with pytest.raises(UserError, match=message) as caught:
        group.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read_back(tmp_path: Path, ask: Callable[..., Group]) -> None:
    asked = ask("vmap", (1, 2), {"batch_size": [3, 4]}, {"augment": ("random_flip",)})
    group.write(tmp_path, asked, {"argv": []})
    assert group.read(tmp_path) == asked


def test_names_are_names_of_folders(recipe: Recipe) -> None:
    axes = {"augment": [(text, recipe) for text in ("random_crop:4", "random_flip")]}
    names = [member.name for member in group.plan(recipe, axes, [3])]
    assert names == ["cell000", "augment=random_flip"]
    assert [m.name for m in group.plan(recipe, {}, [3])] == ["seed3"]
    lr = {"lr": [(0.1, recipe)]}
    assert [m.name for m in group.plan(recipe, lr, [0, 1])] == ["lr=0.1-seed0", "lr=0.1-seed1"]
    with pytest.raises(UserError, match="10,001 runs; a group has at most 10,000"):
        group.plan(recipe, {}, range(10_001))


def test_values_of_one_cell_do_not_undo_each_other(recipe: Recipe) -> None:
    wide = recipe.replace(model="conv3", model_options={"dropout": 0.1})
    dropped = [(p, wide.replace(model_options={"dropout": p})) for p in (0.2, 0.3)]
    longer = [(n, wide.replace(epochs=n)) for n in (4, 5)]
    found = [m.recipe for m in group.plan(wide, {"dropout": dropped, "epochs": longer}, [0])]
    assert [(r.model_options["dropout"], r.epochs) for r in found] == [
        *((0.2, 4), (0.2, 5), (0.3, 4), (0.3, 5))
    ]


def test_another_data_set_is_refused_and_nothing_written(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    asked = ask()._replace(dataset_digest="0" * 64)
    with pytest.raises(UserError, match="is not the one that"):
        many.train(tmp_path / "group", asked, dataset)
    with pytest.raises(UserError, match="batch_size is 100"):
        many.train(tmp_path / "group", ask(changes={"batch_size": 100}), dataset)
    assert not (tmp_path / "group").exists()


def test_paths_expand_to_the_runs_that_have_ended(
    tmp_path: Path, ask: Callable[..., Group], dataset: Dataset
) -> None:
    asked = ask()
    many.train(tmp_path / "group", asked, dataset, stop=after(30))
    ended = tmp_path / "group" / "seed5"
    assert group.expand([tmp_path / "x", tmp_path / "group"]) == [tmp_path / "x", ended]
    group.write(tmp_path, asked, {})
    with pytest.raises(UserError, match=r"no run of .* has come to its end"):
        group.expand([tmp_path])
