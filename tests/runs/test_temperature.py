"""A temperature of a run: what it is fitted to, where it is kept, and when it is refused."""

import json
from pathlib import Path

import pytest
import torch

from fcifar import tree
from fcifar.analysis.calibration import fit_temperature
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.export import exporting
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.report import page
from fcifar.runs import inference, soup, temperature
from fcifar.runs.verify import verify
from fcifar.train import run_dir
from fcifar.train.config import extend_config, read_config
from fcifar.train.runtime import Runtime
from tests.helpers.training import train


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Path:
    """A run that holds out ten images, and has an average."""
    own = recipe.replace(epochs=2, valid_fraction=0.25, learning_rate=0.02, ema_decay=0.5)
    train(tmp_path / "run", own, runtime, dataset)
    return tmp_path / "run"


def test_a_page_has_the_reliability_with_it(
    run: Path, runtime: Runtime, dataset: Dataset, tmp_path: Path
) -> None:
    plain = page.make([run], tmp_path)
    fitted = temperature.fit(inference.load(run), runtime, dataset)
    temperature.save(run, fitted)
    found = page.make([run], tmp_path)
    caption = f"With the temperature {fitted['temperature']:.4f}, fitted to 10 validation images."
    assert (caption in plain, caption in found) == (False, True)
    assert found.count("Expected calibration error") == 2 * plain.count(
        "Expected calibration error"
    )


def test_it_is_fitted_to_validation_images_and_kept(
    run: Path, runtime: Runtime, dataset: Dataset
) -> None:
    trained = inference.load(run)
    fitted = temperature.fit(trained, runtime, dataset)
    data = inference.images_of(trained, dataset, "valid")
    logits = inference.predict(trained, runtime, data.images)
    assert fitted["temperature"] == fit_temperature(logits, data.labels).item()
    assert (fitted["n"], fitted["split"]) == (10, "valid")
    assert fitted["after"]["loss"] <= fitted["before"]["loss"]
    sums = run_dir.read_checksums(run)
    for _ in range(2):  # written, and replaced
        file = temperature.save(run, fitted)
        assert json.loads(file.read_text()) == {"final": fitted}
        assert run_dir.read_checksums(run).keys() == {*sums, "calibration.json"}
        assert verify(run) == []
    of_average = temperature.fit(inference.load(run, average=True), runtime, dataset)
    temperature.save(run, of_average, average=True)
    assert verify(run) == []
    for average, each in ((False, fitted), (True, of_average)):
        plain = inference.load(run, average=average)
        scaled = temperature.load(run, average=average)
        assert scaled.temperature == each["temperature"]
        one, other = (inference.predict(m, runtime, dataset.test_images) for m in (plain, scaled))
        assert torch.equal(other, one / each["temperature"])
        assert torch.equal(other.argmax(1), one.argmax(1))
        again = temperature.fit(scaled, runtime, dataset)
        assert again["temperature"] == pytest.approx(1, abs=1e-5)  # the logits are float32


def test_rescaling_an_evaluation_is_evaluating_the_scaled_model(
    run: Path, runtime: Runtime, dataset: Dataset
) -> None:
    trained, data = inference.load(run), inference.Batch(dataset.test_images, dataset.test_labels)
    examples = inference.examine(trained, runtime, data)
    expected = inference.examine(inference.with_temperature(trained, 1.7), runtime, data)
    found = temperature.rescale(examples, data.labels, 1.7)
    assert tree.equal(found, expected)


def test_a_file_of_other_parameters_is_refused(
    run: Path, runtime: Runtime, dataset: Dataset
) -> None:
    with pytest.raises(UsageError, match="has no temperature; fit one first with fcifar eval"):
        temperature.load(run)
    fitted = temperature.fit(inference.load(run), runtime, dataset)
    temperature.save(run, {**fitted, "params_digest": "0" * 64})
    with pytest.raises(UsageError, match="fitted to other parameters"):
        temperature.load(run)
    (problem,) = verify(run)
    assert problem.startswith(f"{run / 'calibration.json'} was fitted to other parameters")
    with pytest.raises(UsageError, match=r"has no temperature; .* --calibrate --average"):
        temperature.load(run, average=True)
    (run / "calibration.json").write_text("{}")
    (problem,) = verify(run)
    assert "calibration.json is damaged" in problem


def test_a_run_that_goes_on_has_no_temperature(
    run: Path, runtime: Runtime, dataset: Dataset
) -> None:
    temperature.save(run, temperature.fit(inference.load(run), runtime, dataset))
    extend_config(run, read_config(run), 3)
    assert not (run / "calibration.json").exists()
    assert verify(run) == []


def test_without_validation_images(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path / "run", recipe.replace(epochs=1), runtime, dataset)
    trained = inference.load(tmp_path / "run")
    with pytest.raises(UsageError, match="none in tiny; train with --valid-fraction"):
        temperature.fit(trained, runtime, dataset)
    held_out = trained._replace(recipe=recipe.replace(valid_fraction=0.25))
    still = Variables(
        {name: torch.zeros_like(value) for name, value in trained.variables.params.items()}, {}
    )
    with pytest.raises(UsageError, match="on the validation images: every label has the largest"):
        temperature.fit(held_out._replace(variables=still), runtime, dataset)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2", ".onnx"])
def test_exported_logits_are_divided(
    run: Path, runtime: Runtime, dataset: Dataset, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    plain = inference.load(run)
    scaled = inference.with_temperature(plain, 2.5)
    path = tmp_path / f"net{suffix}"
    agreement = exporting.export(scaled, path, dataset.test_images)
    assert agreement.different == 0
    expected = inference.predict(plain, runtime, dataset.test_images) / 2.5
    if suffix == ".safetensors":
        loaded = inference.load(path)
        assert loaded.temperature == 2.5
        found = inference.predict(loaded, runtime, dataset.test_images)
        assert torch.equal(found, expected)
        with pytest.raises(UsageError, match="has a temperature, which is of one model"):
            soup.check([path, path], [loaded, loaded], "mean")
        return
    found = exporting.FORMATS[suffix].read(path, scaled)(dataset.test_images)
    torch.testing.assert_close(found, expected)
    assert exporting.describe(scaled)["temperature"] == "2.5"
    assert "temperature" not in exporting.describe(plain)


def test_a_pth_has_no_place_for_it(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    scaled = inference.with_temperature(inference.load(run), 2.0)
    with pytest.raises(UsageError, match="without the temperature; choose"):
        exporting.export(scaled, tmp_path / "net.pth", dataset.test_images)
    assert not (tmp_path / "net.pth").exists()
