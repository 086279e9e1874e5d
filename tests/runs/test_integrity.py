"""One bit changed anywhere in a run is found, and named; nonsense for a file is refused in a line.

The fuzz tests take the readers of a run directory: the manifest, the log, and safetensors files.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcifar.data import Dataset
from fcifar.errors import DamagedError, UserError, WorldError
from fcifar.recipes import Recipe
from fcifar.runs import checkpoint, directory, integrity, jsonfiles, log, loop, manifest, trained
from fcifar.runs.log import Mark
from fcifar.runs.runtime import Runtime
from fcifar.runs.safeguards import Safeguards

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FLIPS = 80  # bits of a large file


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Path:
    """A finished run, with a checkpoint of the middle and a best network."""
    recipe = recipe.replace(valid_fraction=0.2)
    keep = Safeguards(checkpoint_every="10", keep_checkpoints=9)
    loop.train(tmp_path / "run", recipe, runtime, dataset, safeguards=keep)
    return tmp_path / "run"


def bits_of(content: bytes) -> list[int]:
    """All bits of a small file; of a large one those of its head, and a sample."""
    bits = 8 * len(content)
    if bits < 4000:
        return list(range(bits))
    sample = random.Random(0).sample(range(bits), FLIPS)
    return sample + random.Random(1).sample(range(min(bits, 8 * 4000)), FLIPS)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_an_untouched_run_is_as_it_was_written(run: Path) -> None:
    assert integrity.check(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "report.json",
        "final.safetensors",
        "best.safetensors",
        "predictions.safetensors",
        "checkpoint-00000010.safetensors",
        "checkpoint-00000021.safetensors",
    ],
)
def test_one_bit_changed_is_found_and_named(name: str, run: Path) -> None:
    content, said = (run / name).read_bytes(), directory.read_report(run)
    bits = bits_of(content)
    unseen = 0
    for bit in bits:
        (run / name).write_bytes(flip(content, bit))
        problems = integrity.check(run)
        if not problems:
            # It may change no meaning: the case of an exponent's or an escape's letter.
            unseen += 1
            assert name == "report.json"
            assert directory.read_report(run) == said
            continue
        assert any(str(run / name) in problem for problem in problems), (bit, problems)
        assert all("\n" not in problem for problem in problems)
    assert unseen < 0.01 * len(bits)


def test_one_bit_changed_in_the_manifest_is_found_and_named(run: Path) -> None:
    """Or it changes nothing that it says."""
    content, said = (run / "manifest.json").read_bytes(), directory.read_manifest(run)
    found = 0
    for bit in range(0, 8 * len(content), 13):
        (run / "manifest.json").write_bytes(flip(content, bit))
        try:
            assert directory.read_manifest(run) == said
        except WorldError as error:
            found += 1
            assert str(run / "manifest.json") in str(error)  # noqa: PT017
    assert found > 0.99 * len(range(0, 8 * len(content), 13))


def test_lines_of_a_log_cannot_be_lost_added_or_moved(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for other in (
        lines[1:],
        lines[:-1],
        lines[:3] + lines[4:],
        [*lines, lines[-1]],
        [lines[1], lines[0], *lines[2:]],
        [],
    ):
        (run / "metrics.jsonl").write_text("".join(other))
        assert "metrics.jsonl" in "".join(integrity.check(run))


def test_a_file_of_another_run_does_not_pass(
    run: Path, tmp_path: Path, recipe: Recipe, dataset: Dataset
) -> None:
    loop.train(tmp_path / "other", recipe, Runtime(threads=1, seed=6), dataset)
    for name in ("metrics.jsonl", "final.safetensors", "report.json"):
        before = (run / name).read_bytes()
        (run / name).write_bytes((tmp_path / "other" / name).read_bytes())
        assert integrity.check(run), name
        (run / name).write_bytes(before)
    (run / "final.safetensors").unlink()
    assert "is missing, though the run came to its end" in integrity.check(run)[0]


# Nonsense -----------------------------------------------------------------------------------------


def ours(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it raised an error of ours, in one line."""
    try:
        return read()
    except (UserError, WorldError) as error:
        assert str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["recipe", "runtime", "compile", "dataset", "safeguards", "environment", "format"]
)


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_for_a_json_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "report.json").write_bytes(content)
    ours(lambda: manifest.read_settings(tmp_path))
    ours(lambda: directory.read_report(tmp_path))


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "1" * 10_000, "\ufeff{}"])
def test_json_that_exhausts_a_parser(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        manifest.read_settings(tmp_path)


def test_a_json_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)  # bytes that take no room on the disk
    with pytest.raises(DamagedError, match="is larger than"):
        manifest.read_settings(tmp_path)


@FUZZ
@given(field=FIELDS, value=JSON, inner=st.none() | st.sampled_from(["name", "device", "epochs"]))
def test_any_values_in_a_well_sealed_manifest(
    field: str, value: Any, inner: str | None, tmp_path: Path, recipe: Recipe
) -> None:
    about = {
        "format": directory.FORMAT,
        "recipe": json.loads(json.dumps(_recipe_values(recipe))),
        "runtime": {"device": "cpu", "threads": 1, "seed": 0},
        "compile": False,
        "dataset": {"name": "tiny", "digest": "0" * 64},
        "safeguards": {},
    }
    if inner and isinstance(about.get(field), dict):
        about[field][inner] = value
    else:
        about[field] = value
    jsonfiles.write_sealed(tmp_path / "manifest.json", about)
    settings_ = ours(lambda: manifest.read_settings(tmp_path))
    if settings_ is not None:
        assert isinstance(settings_.compiled, bool)
        assert isinstance(settings_.dataset_name, str)
        assert isinstance(settings_.runtime.seed, int)


def _recipe_values(recipe: Recipe) -> dict[str, Any]:
    from fcifar import recipes

    return recipes.to_dict(recipe)


@FUZZ
@given(content=st.binary(max_size=300) | st.lists(JSON, max_size=5))
def test_any_bytes_for_a_log(content: bytes | list[Any], tmp_path: Path) -> None:
    if isinstance(content, list):
        content = "".join(json.dumps(value) + "\n" for value in content).encode()
    (tmp_path / "metrics.jsonl").write_bytes(content)
    records = ours(lambda: log.read(tmp_path, "start"))
    assert records is None or (records == [] and b"\n" not in content)
    ours(lambda: log.rewind(tmp_path, "start", Mark(2, "0" * 16)))
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


@FUZZ
@given(records=st.lists(st.dictionaries(st.text(max_size=8), JSON, min_size=1), max_size=6))
def test_a_log_gives_back_what_it_was_given(records: list[dict], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    mark, marks = Mark(0, "start"), []
    for record in records:
        mark = log.append(tmp_path, record, mark)
        marks.append(mark)
    expected = json.loads(json.dumps(jsonfiles.finite(records)))
    assert log.read(tmp_path, "start") == expected
    assert log.read_checks(tmp_path, "start") == ["start", *(m.check for m in marks)]
    for i, mark in reversed(list(enumerate(marks, 1))):
        assert log.rewind(tmp_path, "start", mark) == expected[:i]
        assert len(log.read(tmp_path, "start")) == i


def safetensors(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length % 2**64) + text + body


ENTRIES = st.dictionaries(
    st.text(max_size=8) | st.just("__metadata__"),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "I64", "BOOL", "BF16", "F8_E4M3", "F4", "X", ""]),
            "shape": st.lists(st.integers(-3, 2**70), max_size=4),
            "data_offsets": st.lists(st.integers(-8, 2**70), max_size=3),
        }
    )
    | JSON,
    max_size=4,
)


@FUZZ
@given(
    content=st.binary(max_size=400)
    | st.builds(safetensors, ENTRIES, st.binary(max_size=64))
    | st.builds(safetensors, ENTRIES, st.binary(max_size=64), st.integers(0, 2**64))
)
def test_any_bytes_for_a_safetensors_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    path.write_bytes(content)
    assert ours(lambda: checkpoint.read(path)) is None, "nothing of this has a checksum that fits"
    assert ours(lambda: trained.load(path)) is None


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "U64", "C64", "F64"])
def test_strange_dtypes_of_a_safetensors_file(dtype: str, tmp_path: Path) -> None:
    entry = {"dtype": dtype, "shape": [16], "data_offsets": [0, 128]}
    for size in (8, 12, 16, 128):
        entry["data_offsets"] = [0, size]
        (tmp_path / "a.safetensors").write_bytes(safetensors({"x": entry}, bytes(size)))
        assert ours(lambda: checkpoint.read(tmp_path / "a.safetensors")) is None


@FUZZ
@given(
    name=st.sampled_from(
        ["recipe", "classes", "seed", "dataset", "dataset_digest", "params_digest"]
    ),
    value=JSON.map(json.dumps) | st.text(max_size=30),
)
def test_any_metadata_of_a_well_sealed_network(name: str, value: str, run_file: Path) -> None:
    tensors, metadata = checkpoint.read(run_file)
    path = run_file.parent / "changed.safetensors"
    checkpoint.save(path, tensors, metadata | {name: value})
    network = ours(lambda: trained.load(path))
    if network is not None:
        assert isinstance(network.seed, int)
        assert all(isinstance(name, str) for name in network.classes)


@pytest.fixture
def run_file(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Path:
    loop.train(tmp_path / "run", recipe.replace(epochs=1), runtime, dataset)
    return tmp_path / "run" / "final.safetensors"


def test_the_same_values_make_the_same_bytes(tmp_path: Path) -> None:
    metadata = {name: name for name in "abcdefgh"}
    files = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for file in files:
        checkpoint.save(file, {"x": torch.ones(2)}, metadata)
    assert len({file.read_bytes() for file in files}) == 1
