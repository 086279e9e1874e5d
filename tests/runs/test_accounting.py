"""Epsilon against two packages, published values and closed forms; and runs that report it."""

import json
import math
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest

from fcifar import privacy
from fcifar.cli import render
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe, check_sizes
from fcifar.recipes.trials import make_trials
from fcifar.report import text
from fcifar.report.page import results
from fcifar.train import accounting, loop, run_dir, sweep
from fcifar.train.accounting import default_delta, poisson_epsilon, shuffled_epsilon
from fcifar.train.config import make_config, read_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training
from tests.helpers.training import after, records, train

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "epsilon.json").read_text())
PHI = NormalDist().cdf
EMPTY = {  # a report
    "test_accuracy": 0.5,
    "interval95": (0.4, 0.6),
    "test_n": 10,
    "test_loss": 1.0,
    "steps": 1,
    "images_per_second": 1.0,
    "train_seconds": 1.0,
    "epochs": 1,
    "stopped_early": False,
    "selected": {"step": 1},
    "params_digest": "0",
}
needs_accountant = pytest.mark.skipif(not accounting.is_installed(), reason="no dp-accounting")


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Of the Gaussian mechanism: Balle and Wang, https://arxiv.org/abs/1805.06530, theorem 8."""
    below, above = PHI(mu / 2 - epsilon / mu), PHI(-mu / 2 - epsilon / mu)
    return below - math.exp(epsilon) * above


def epsilon_of(case: dict[str, Any]) -> float:
    return poisson_epsilon(
        case["noise"],
        size=case["size"],
        batch_size=case["batch"],
        steps=case["steps"],
        delta=case["delta"],
    )


# Against others -----------------------------------------------------------------------------------


@needs_accountant
@pytest.mark.parametrize("case", [GOLDEN[0], GOLDEN[3]], ids=["MNIST", "CIFAR-10"])
def test_epsilon_is_that_of_two_packages(case: dict[str, Any]) -> None:
    """Opacus's is the truth and at most 0.01; Renyi accountants are above it."""
    found = epsilon_of(case)
    assert found == pytest.approx(case["pld"], rel=1e-4)
    assert case["prv"] - 0.011 < found < case["prv"] + 1e-4
    assert found < case["rdp"] < case["mironov"]


def test_the_golden_values_are_the_published_ones() -> None:
    """With the accountant of that time; there are two digits behind the point."""
    published = [case for case in GOLDEN if case["published"]]
    assert len(published) == 3
    for case in published:
        assert case["mironov"] == pytest.approx(case["published"], rel=3e-3)


@needs_accountant
@pytest.mark.parametrize(("noise", "epochs"), [(1.0, 1), (1.3, 10), (5.0, 100)])
def test_shuffled_epochs_are_one_gaussian_mechanism(noise: float, epochs: int) -> None:
    found = shuffled_epsilon(noise, epochs=epochs, delta=1e-5)
    assert gaussian_delta(math.sqrt(epochs) / noise, found) == pytest.approx(1e-5, rel=1e-4)


@needs_accountant
def test_without_amplification_sampling_is_the_gaussian_mechanism() -> None:
    found = poisson_epsilon(4.0, size=40, batch_size=40, steps=9, delta=1e-5)
    assert found == pytest.approx(shuffled_epsilon(4.0, epochs=9, delta=1e-5), rel=1e-3)
    assert found >= shuffled_epsilon(4.0, epochs=9, delta=1e-5), "rounded up"


@needs_accountant
def test_more_noise_fewer_steps_and_smaller_batches_are_more_private() -> None:
    given: dict[str, Any] = {"size": 2000, "batch_size": 100, "steps": 40, "delta": 1e-5}
    base = poisson_epsilon(1.0, **given)
    assert poisson_epsilon(1.2, **given) < base
    assert poisson_epsilon(1.0, **{**given, "batch_size": 50, "steps": 20}) < base


@needs_accountant
def test_the_overflow_is_paid_for(monkeypatch) -> None:
    """With few rows, where it matters."""
    given: dict[str, Any] = {"size": 2000, "batch_size": 100, "steps": 40, "delta": 1e-5}
    exact = poisson_epsilon(1.0, **given)
    p = privacy.sampling_probability(2000, 100)
    monkeypatch.setattr(privacy, "capacity", lambda size, batch: 153)
    overflow = 40 * privacy.overflow_probability(2000, p, 153)
    assert 1e-8 < overflow < 1e-5
    poisson_epsilon.cache_clear()
    found = poisson_epsilon(1.0, **given)
    monkeypatch.setattr(privacy, "overflow_probability", lambda *of: 0.0)
    poisson_epsilon.cache_clear()
    rest = 1e-5 - (1 + math.exp(found)) * overflow
    assert found > exact
    assert poisson_epsilon(1.0, **{**given, "delta": rest}) == pytest.approx(found, rel=1e-6)
    monkeypatch.setattr(privacy, "overflow_probability", lambda *of: 1e-3)
    poisson_epsilon.cache_clear()
    assert poisson_epsilon(1.0, **given) == math.inf
    poisson_epsilon.cache_clear()


@needs_accountant
def test_the_ends_of_the_range() -> None:
    given: dict[str, Any] = {"size": 100, "batch_size": 10, "delta": 1e-5}
    assert poisson_epsilon(1.0, steps=0, **given) == 0
    assert shuffled_epsilon(1.0, epochs=0, delta=1e-5) == 0
    assert poisson_epsilon(1e-9, steps=5, **given) == math.inf
    assert shuffled_epsilon(1e-9, epochs=5, delta=1e-5) == math.inf
    assert shuffled_epsilon(0.06, epochs=5, delta=1e-5) == math.inf
    assert poisson_epsilon(1e6, steps=5, **given) == pytest.approx(0, abs=1e-3)
    assert [default_delta(n) for n in (1, 9, 10, 45_000, 50_000)] == [0.1, 0.1, 0.01, 1e-5, 1e-5]


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def private(recipe: Recipe) -> Recipe:
    return recipe.replace(dp_clip=1.0, dp_noise=2.0, dp_sampling="poisson")


@needs_accountant
def test_a_sampled_run_is_the_same_when_resumed_and_reports_its_guarantee(
    tmp_path: Path, private: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    private = private.replace(alternating_flip=True, micro_batch=3)
    whole = train(tmp_path / "whole", private, runtime, dataset)
    run = tmp_path / "run"
    train(run, private, runtime, dataset, stop=after(5))
    resumed = loop.train(run, read_config(run), dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert records(run) == records(tmp_path / "whole")
    expected = poisson_epsilon(2.0, size=42, batch_size=5, steps=27, delta=1e-2)
    found = whole["privacy"]
    assert found == {**found, "epsilon": expected, "delta": 1e-2, "sampling": "Poisson sampling"}
    assert found["accountant"].startswith("dp-accounting 0.")
    assert run_dir.read_report(run)["privacy"] == found
    assert text.privacy(whole) == f"epsilon {expected:.3g} at delta 0.01; Poisson sampling"


def test_replicas_by_vmap_are_the_runs_alone_to_rounding(
    tmp_path: Path, private: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    private = private.replace(epochs=1, dp_noise=0.5, log_every=0)
    config = make_config(private, dataset, seed=5, runtime=runtime)
    asked = sweep.Sweep(make_trials(private, {}, (5, 6)), "vmap", config)
    sweep.train(tmp_path / "group", asked, dataset)
    for trial in asked.trials:
        train(tmp_path / trial.name, trial.recipe, runtime, dataset, seed=trial.seed)
        for now, then in zip(
            records(tmp_path / "group" / trial.name), records(tmp_path / trial.name), strict=True
        ):
            assert now["loss"] == pytest.approx(then["loss"], rel=1e-3)


def test_the_guarantee_is_on_the_page_and_in_the_terminal() -> None:
    values = {"epsilon": 1.234, "delta": 1e-5, "sampling": "Poisson sampling", "note": ""}
    report = {**EMPTY, "privacy": {**values, "accountant": "dp-accounting 0.6.0"}}
    (tiles, _) = results.headline(SimpleNamespace(report=report))  # type: ignore[arg-type]
    about = "at delta 1e-05; Poisson sampling; dp-accounting 0.6.0"
    assert ("epsilon", "1.23", about) in tiles.items
    line = ("privacy", "epsilon 1.23 at delta 1e-05; Poisson sampling")
    assert line in render._figures(report)
    report["privacy"] |= {"epsilon": None, "note": "none: dp_noise is 0", "accountant": ""}
    (tiles, _) = results.headline(SimpleNamespace(report=report))  # type: ignore[arg-type]
    about = "at delta 1e-05; none: dp_noise is 0; Poisson sampling"
    assert ("epsilon", "-", about) in tiles.items
    assert ("privacy", "none: dp_noise is 0") in render._figures(report)


def test_its_batches_are_drawn_for_each_step(private: Recipe, runtime: Runtime, dataset) -> None:
    """Of the images to train on only, from any step on, and by the seed."""
    private = private.replace(valid_fraction=0.25)

    def inputs(seed: int, start: int = 0) -> list[Any]:
        config = make_config(private, dataset, runtime=runtime, seed=seed)
        training = make_training(config, dataset)
        assert training.size == 32
        return list(training.inputs(start))

    first, rest, other = inputs(0), inputs(0, 9), inputs(1)
    assert len(first) == 21  # seven steps an epoch
    rows = [tuple(each.indices[each.present].tolist()) for each in first]
    assert len({len(each.indices) for each in first}) == 1
    assert len(set(rows)) > 15
    assert len({row for each in rows for row in each}) <= 32
    assert rows[9:] == [tuple(each.indices[each.present].tolist()) for each in rest]
    assert rows != [tuple(each.indices[each.present].tolist()) for each in other]


def test_a_run_without_the_package_says_how_to_get_epsilon(
    monkeypatch, private: Recipe, recipe: Recipe
) -> None:
    monkeypatch.setattr(accounting, "is_installed", lambda: False)
    line = "dp-accounting is not installed"
    assert line in accounting.missing(private)
    assert "pip install 'fcifar[privacy]'" in accounting.missing(private)
    assert accounting.missing(recipe) == accounting.missing(private.replace(dp_noise=0.0)) == ""
    found = accounting.report(private, 42, 27)
    assert found["privacy"]["epsilon"] is None
    assert text.privacy(found).startswith(f"epsilon is not computed: {line}")


@needs_accountant
def test_other_reports(private: Recipe) -> None:
    quiet = accounting.report(private.replace(dp_noise=0.0), 42, 27)
    assert text.privacy(quiet) == "none: dp_noise is 0"
    weak = accounting.report(private.replace(dp_noise=1e-6), 42, 27)
    assert (weak["privacy"]["epsilon"], "too large" in text.privacy(weak)) == (None, True)
    shuffled = private.replace(dp_sampling="shuffle", dp_delta=1e-3)
    found = accounting.report(shuffled, 42, 28)["privacy"]  # the fourth epoch has begun
    assert found["epsilon"] == shuffled_epsilon(2.0, epochs=4, delta=1e-3)
    assert "no amplification by sampling" in text.privacy({"privacy": found})


def test_several_processes_are_refused(private: Recipe) -> None:
    with pytest.raises(UsageError, match=r"dp_sampling is poisson, .* there are 2; start one, or"):
        check_sizes(private.replace(batch_size=4), "tiny", 40, 0, 0, 2)
