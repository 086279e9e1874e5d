"""Two settings of a run: the step and the operation that differ are those that were changed."""

import contextlib
import itertools
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import models, tree
from fcifar.data import Dataset
from fcifar.errors import DamagedError, ExternalError, UsageError
from fcifar.models import Model
from fcifar.recipes import Recipe
from fcifar.runs import replay, reproduce, trace_file
from fcifar.runs.reproduce import Original
from fcifar.step_transforms import LoopState
from fcifar.train import runtime as runtimes
from fcifar.train.config import CheckpointConfig
from fcifar.train.loop import Interrupted
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training
from tests.helpers.training import train

KEEP = CheckpointConfig(checkpoint_every="4", keep_checkpoints=9)
PLACE = 7  # of the logits
ULPS = 1000  # one would not change the loss
STEP = 6


class Environment:
    """What ``nudge`` depends on: the setting, and the images of the step at which it shows."""

    changed = False
    images: Tensor | None = None
    calls = 0


@torch.library.custom_op("fcifar_tests::nudge", mutates_args=())
def nudge(logits: Tensor, images: Tensor) -> Tensor:
    """Return ``logits``, in a changed environment with one element farther from 0."""
    result = logits.clone()
    if Environment.images is not None and torch.equal(images, Environment.images):
        Environment.calls += 1
        if Environment.changed:
            result.view(-1).view(torch.int32)[PLACE] += ULPS
    return result


nudge.register_fake(lambda logits, images: torch.empty_like(logits))


class Nudge(torch.autograd.Function):
    """``nudge`` with the gradient of the identity, under ``torch.func``."""

    @staticmethod
    def forward(logits: Tensor, images: Tensor) -> Tensor:
        return nudge(logits, images)

    @staticmethod
    def setup_context(*_: Any) -> None:
        pass

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Any:
        return gradient, None


def nudging() -> Model:
    """LeNet with ``nudge`` behind it."""
    plain = models.lenet()

    def apply(variables: Any, images: Tensor, *, key: Any = None, train: bool = False) -> Any:
        logits, buffers = plain.apply(variables, images, key=key, train=train)
        return Nudge.apply(logits, images) if train else logits, buffers

    return plain._replace(apply=apply)


@pytest.fixture
def nudged(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> Iterator[Original]:
    """A run of ``nudging``. With two threads the environment is a changed one, and only that."""
    models.registry.register("nudging", nudging)
    activate = runtimes.activate

    @contextlib.contextmanager
    def emulated(runtime: Runtime) -> Generator[None]:
        with activate(Runtime(threads=1)):
            Environment.changed = runtime.threads == 2
            yield
            Environment.changed = False

    monkeypatch.setattr(replay, "activate", emulated)
    run = tmp_path / "run"
    train(run, recipe.replace(model="nudging", model_options={}), runtime, dataset, checkpoint=KEEP)
    original = reproduce.read(run)
    training = make_training(original.config, dataset)
    inputs = next(itertools.islice(training.inputs(STEP - 1), 1))
    from fcifar import normalize

    Environment.images = normalize()(dataset.train_images[inputs.indices])
    yield original
    Environment.images = None


def compare(original: Original, dataset: Dataset, settings: str, **options: Any) -> dict[str, Any]:
    found = replay.compare_settings(original, dataset, settings, **options)
    assert isinstance(found, dict)
    json.dumps(found, allow_nan=False)
    return found


def check_nudge(found: dict[str, Any]) -> None:
    operation = found["operation"]
    assert operation["name"] == "fcifar_tests.nudge.default"
    assert operation["line"].partition(":")[0].endswith("test_replay.py")
    assert not operation["backward"]
    assert found["output"]["shape"] == [5, 10]
    assert found["other_operation"]["number"] == operation["number"]
    assert [o["number"] for o in found["origins"]] == [operation["number"]]


def test_the_step_and_the_operation_are_named(nudged: Original, dataset: Dataset) -> None:
    found = compare(nudged, dataset, "threads=2")
    assert not found["identical"]
    assert found["step"] == STEP
    assert found["sides"] == ["cpu, 1 thread, fp32, eager", "cpu, 2 threads, fp32, eager"]
    check_nudge(found)
    amount = found["amount"]
    assert (amount["elements"], amount["differing"], amount["ulps"]) == (50, 1, ULPS)
    assert 0 < amount["largest"] < 1e-4
    assert any(t["tensor"].endswith("trace.fc3.weight") for t in found["differing"])
    assert found["differing_operations"] > 1


def test_a_step_that_is_given(nudged: Original, dataset: Dataset) -> None:
    """It starts from the checkpoint before it, of step 4."""
    check_nudge(compare(nudged, dataset, "threads=2", step=STEP))
    before = compare(nudged, dataset, "threads=2", step=STEP - 1)
    assert before["identical"]
    assert before["step"] is None
    with pytest.raises(UsageError, match=r"--step is 99; the run has steps 1 to 27"):
        compare(nudged, dataset, "threads=2", step=99)


def test_steps_up_to_one(nudged: Original, dataset: Dataset) -> None:
    found = compare(nudged, dataset, "threads=2", until=STEP - 1)
    assert (found["identical"], found["steps"]) == (True, STEP - 1)
    stopped = replay.compare_settings(nudged, dataset, "threads=2", stop=lambda: 2)
    assert stopped == Interrupted(2, 0)


def test_the_state_before_a_step_is_that_of_the_run(nudged: Original, dataset: Dataset) -> None:
    """From a checkpoint, and from the beginning, to the same bits."""
    side = replay.make_side(nudged, dataset)
    assert 4 in nudged.checkpoints
    a = replay.state_before(side, nudged, STEP)
    b = replay.state_before(side, nudged._replace(checkpoints={}), STEP)
    assert int(a.state.step) == STEP - 1
    assert tree.equal(a.state, b.state)


def test_a_run_against_itself(nudged: Original, dataset: Dataset) -> None:
    found = compare(nudged, dataset, "same", until=8)
    assert found["identical"]
    assert Environment.calls > 0


def test_results_that_change_while_they_are_recorded_are_an_error(
    nudged: Original, dataset: Dataset
) -> None:
    a, b = (replay.make_side(nudged, dataset, text) for text in ("same", "threads=2"))
    state = replay.state_before(a, nudged, STEP)
    step = replay.compare_step(a, b, STEP, state)
    assert replay.locate(a, b, step)["amount"]["differing"] == 1
    with pytest.raises(ExternalError, match="while its operations are recorded"):
        replay.locate(a, b, step._replace(differing=step.differing[:1]))


def test_an_initialisation_that_differs(nudged: Original, dataset: Dataset) -> None:
    a, b = (replay.make_side(nudged, dataset, text) for text in ("same", "threads=2"))
    init = b.training.init

    def scaled() -> LoopState:
        state = init()
        state.state.variables.params["fc3.bias"].mul_(1 + 2**-20)
        return state

    b = b._replace(training=b.training._replace(init=scaled))
    step, compared = replay.first_step(a, b)
    assert step is not None
    assert (step.number, compared) == (0, 0)
    assert [t["tensor"] for t in step.differing] == ["variables.params.fc3.bias"]
    found = replay.locate(a, b, step)
    assert found["operation"] is None
    assert found["other_operation"]["name"] == "aten.mul_.Tensor", "one more than the other has"


# Files -------------------------------------------------------------------------------------------


def test_a_trace_is_compared_elsewhere(nudged: Original, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    written = trace_file.make_trace(nudged, dataset, path, step=STEP)
    assert written["step"] == STEP
    assert written["bytes"] < 2e6
    same = trace_file.compare_trace(nudged, dataset, path)
    assert same["identical"]
    assert same["operation"] is None
    elsewhere = nudged._replace(config=replay.parse_settings(nudged.config, "threads=2"))
    found = trace_file.compare_trace(elsewhere, dataset, path)
    assert not found["identical"]
    check_nudge(found)
    assert found["amount"] is None, "the file has no values"
    number = found["operation"]["number"]
    trace_file.make_trace(nudged, dataset, path, step=STEP, value=number)
    amount = trace_file.compare_trace(elsewhere, dataset, path)["amount"]
    assert (amount["differing"], amount["ulps"]) == (1, ULPS)
    json.dumps(found, allow_nan=False)


def test_a_trace_starts_from_its_own_state(
    nudged: Original, dataset: Dataset, tmp_path: Path
) -> None:
    """The other machine has had another history: its own state before the step is not used."""
    path = tmp_path / "trace.safetensors"
    trace_file.make_trace(nudged, dataset, path, step=STEP + 3)
    elsewhere = nudged._replace(
        config=replay.parse_settings(nudged.config, "threads=2"), checkpoints={}
    )
    assert trace_file.compare_trace(elsewhere, dataset, path)["identical"]


def test_traces_that_do_not_fit(nudged: Original, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    trace_file.make_trace(nudged, dataset, path)
    other = nudged._replace(config=nudged.config.replace(seed=77))
    with pytest.raises(UsageError, match="another seed"):
        trace_file.compare_trace(other, dataset, path)
    with pytest.raises(UsageError, match="operations 1 to"):
        trace_file.make_trace(nudged, dataset, tmp_path / "b.safetensors", value=10**6)
    with pytest.raises(DamagedError, match="not a trace"):
        trace_file.compare_trace(nudged, dataset, nudged.run / "final.safetensors")


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads=many", "not a number"),
        ("threads=0", "--threads"),
        ("thread=2", "did you mean 'threads='"),
        ("eager", "which the run was trained with"),
        ("threads=1", "which the run was trained with"),
        ("precision=fp7", "--precision"),
        ("", "it must be"),
    ],
)
def test_wrong_settings_are_refused(text: str, message: str, config) -> None:
    with pytest.raises(UsageError, match=message):
        replay.parse_settings(config, text)


def test_settings_change_what_they_name(config) -> None:
    changed = replay.parse_settings(config, "threads=3, compiled,fast,precision=bf16")
    runtime = Runtime(threads=3, deterministic=False, precision="bf16")
    assert changed == config.replace(runtime=runtime, compile=True)
    assert replay.parse_settings(config, "same") == config


def test_a_run_of_several_processes_is_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe.replace(epochs=1), runtime, dataset)
    original = reproduce.read(tmp_path)
    config = original.config.replace(runtime=Runtime(threads=1, processes=2))
    with pytest.raises(UsageError, match="2 processes"):
        replay.make_side(original._replace(config=config), dataset)


# Real differences --------------------------------------------------------------------------------


def test_another_precision_differs_at_the_first_conversion(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe.replace(epochs=1), runtime, dataset)
    found = compare(reproduce.read(tmp_path), dataset, "precision=bf16")
    assert found["step"] == 1
    assert found["other_operation"]["name"] == "aten._to_copy.default"
    assert found["why"] == "from here on the two call different operations"


@pytest.mark.slow  # two threads of a busy machine wait for each other
def test_two_threads(tmp_path: Path, recipe: Recipe, runtime: Runtime, make_batch) -> None:
    """A sum over 64 images of 28 x 28 gradients is cut in two."""
    from fcifar.data import Split, make_dataset

    data = make_dataset(
        "more",
        Split(*make_batch(64, seed=1)),
        Split(*make_batch(5, seed=2)),
        tuple("abcdefghij"),
        "",
    )
    train(tmp_path, recipe.replace(batch_size=64, epochs=1), runtime, data)
    found = compare(reproduce.read(tmp_path), data, "threads=2")
    if found["identical"]:
        pytest.skip("two threads give the bits of one on this machine")
    assert found["step"] == 1
    assert found["amount"]["differing"] > 0
    assert found["amount"]["largest"] < 1e-4
    assert found["origins"]
    assert found["origins"][0]["number"] == found["operation"]["number"]


@pytest.mark.slow
def test_an_eager_and_a_compiled_step_are_compared_by_value(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe.replace(epochs=1), runtime, dataset)
    found = compare(reproduce.read(tmp_path), dataset, "compiled")
    assert found["kinds"] == ["eager", "compiled"]
    assert found["operation"]["line"]
    assert found["output"]["dtype"] == found["other_output"]["dtype"]
    assert found["amount"]["largest"] < 1e-4


@pytest.mark.slow
def test_the_kernel_of_a_compiled_step_is_named(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    """The images are multiplied by ones, of which one is larger by an ulp on the other side."""
    factors = [torch.ones(3, 32, 32)]
    models.registry.register("scaling", lambda: _scaling(factors))
    config = recipe.replace(model="scaling", model_options={}, epochs=1)
    train(tmp_path, config, runtime, dataset)
    original = reproduce.read(tmp_path)
    original = original._replace(config=original.config.replace(compile=True))
    a = replay.make_side(original, dataset)
    step = replay.Step(1, a.training.init(), next(a.training.inputs(0)), [])
    first = replay.tracer(a, step)
    factors[0] = factors[0].clone()  # the first program has the old tensor
    factors[0][1, 2, 3] = 1 + 2**-23
    second = replay.tracer(replay.make_side(original, dataset), step)
    monkeypatch.setattr(replay, "tracer", lambda side, _: first if side is a else second)
    found = replay.locate(a, a._replace(), step)
    assert found["operation"]["name"].startswith("cpp_fused")
    assert found["output"]["shape"] == [5, 3, 32, 32]
    assert 0 < found["amount"]["differing"] <= 5
    assert 1 <= found["amount"]["ulps"] <= 2, "x (1 + 2**-23) is one or two units from x"


def _scaling(factors: list[Tensor]) -> Model:
    plain = models.lenet()

    def apply(variables: Any, images: Tensor, **options: Any) -> Any:
        return plain.apply(variables, images * factors[0].to(images.device), **options)

    return plain._replace(apply=apply)
