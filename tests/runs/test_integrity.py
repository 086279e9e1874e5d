"""One bit changed anywhere in a run is found, and named; nonsense for a file is refused in a line.

The fuzz tests take the readers of a run directory: the manifest, the log, and safetensors files.
"""

import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcifar import io, recipes, tensor_files
from fcifar.data import Dataset
from fcifar.errors import DamagedError, ExternalError, UsageError
from fcifar.recipes import Recipe
from fcifar.runs import inference, listing, reproduce
from fcifar.runs.verify import verify
from fcifar.train import metrics_log, run_dir
from fcifar.train.config import CheckpointConfig, read_config
from fcifar.train.metrics_log import MetricsLog, Position
from fcifar.train.runtime import Runtime
from tests.helpers.training import after, train

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FLIPS = 10  # bits of a large file


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Path:
    """A finished run, with a checkpoint of the middle and a best network."""
    recipe = recipe.replace(valid_fraction=0.2)
    keep = CheckpointConfig(checkpoint_every="10", keep_checkpoints=9)
    train(tmp_path / "run", recipe, runtime, dataset, checkpoint=keep)
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


def problems_of(run: Path) -> list[str]:
    """What ``verify`` says, a line each, whether it could go on or not."""
    try:
        problems = verify(run)
    except ExternalError as error:
        problems = [str(error)]
    assert all("\n" not in problem for problem in problems)
    return problems


def test_an_unchanged_run_has_no_problems(run: Path) -> None:
    assert verify(run) == []


FILES = [
    *("manifest.json", "metrics.jsonl", "digests.jsonl", "report.json", "SHA256SUMS"),
    *("final.safetensors", "best.safetensors", "predictions.safetensors"),
    *("checkpoint-00000010.safetensors", "checkpoint-00000021.safetensors"),
]


@pytest.mark.parametrize("name", FILES)
def test_one_bit_changed_is_found_and_named(name: str, run: Path) -> None:
    assert {path.name for path in run.iterdir() if path.name[0] != "."} - set(FILES) == {
        "checkpoint-00000007.safetensors",  # of the best epochs
        "checkpoint-00000014.safetensors",
        "checkpoint-00000020.safetensors",
    }
    content = (run / name).read_bytes()
    for bit in bits_of(content):
        (run / name).write_bytes(flip(content, bit))
        problems = problems_of(run)
        assert any(name in problem for problem in problems), (bit, problems)
    (run / name).write_bytes(content)
    assert verify(run) == []


def test_a_bit_flip_in_the_checksums_is_found(tmp_path: Path) -> None:
    """Also that of a line's end, which Python would take for another end of a line."""
    for name in ("manifest.json", "report.json", "final.safetensors"):
        (tmp_path / name).write_text(name)
    run_dir.write_checksums(tmp_path, ["manifest.json", "report.json", "final.safetensors"])
    assert run_dir.check_files(tmp_path) == []
    content = (tmp_path / "SHA256SUMS").read_bytes()
    for bit in range(8 * len(content)):
        (tmp_path / "SHA256SUMS").write_bytes(flip(content, bit))
        assert "SHA256SUMS" in "".join(run_dir.check_files(tmp_path)), bit
    (tmp_path / "SHA256SUMS").unlink()
    assert run_dir.check_files(tmp_path) == [
        f"{tmp_path / 'SHA256SUMS'} is missing, or does not list report.json"
    ]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no program sha256sum")
def test_sha256sum_finds_damage(run: Path) -> None:
    def check() -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"],
            cwd=run,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert listed == {p.name for p in run.iterdir()} - {"SHA256SUMS", ".lock"}
    assert set(FILES) - {"SHA256SUMS"} < listed
    for name in listed:
        content = (run / name).read_bytes()
        (run / name).write_bytes(flip(content, 4 * len(content)))
        done = check()
        assert done.returncode == 1
        failed = [line for line in done.stdout.splitlines() if not line.endswith(": OK")]
        assert failed == [f"{name}: FAILED"]
        (run / name).write_bytes(content)


@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_lines_of_a_log_cannot_be_lost_added_or_moved(name: str, run: Path) -> None:
    """Of a finished run by ``SHA256SUMS``; and without that by the checkpoints, as they say."""
    lines = (run / name).read_text().splitlines(keepends=True)
    for other in (
        lines[1:],
        lines[:-1],
        lines[:3] + lines[4:],
        [*lines, lines[-1]],
        [lines[1], lines[0], *lines[2:]],
        [],
    ):
        (run / name).write_text("".join(other))
        assert name in "".join(verify(run))
        if other not in (lines[:-1], [*lines, lines[-1]]):  # written after the last checkpoint
            forge_checksums(run)
            assert name in "".join(verify(run))
            (run / name).write_text("".join(lines))
            forge_checksums(run)
            assert verify(run) == []


def forge_checksums(run: Path) -> None:
    """Of the files as they are, as somebody might who changed one and knows of them."""
    run_dir.write_checksums(run, list(run_dir.read_checksums(run)))


@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_the_log_of_an_unfinished_run_is_checked_up_to_its_checkpoint(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(14))
    assert list(run_dir.read_checksums(run)) == ["manifest.json"]
    assert verify(run) == []
    content = (run / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), FLIPS):
        (run / name).write_bytes(flip(content, bit))
        problems = verify(run)
        assert any(problem.startswith(str(run / name)) for problem in problems), (bit, problems)
    (run / name).write_bytes(content + content[:20])
    assert verify(run) == [], "a torn line after it will be cut away"


def test_a_file_of_another_run_does_not_pass(
    run: Path, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Nor with checksums that fit it: a run's files are about each other."""
    other = tmp_path / "other"
    train(other, recipe.replace(valid_fraction=0.2), runtime, dataset, seed=6)
    for name in (*FILES[:4], *FILES[5:8]):
        before = (run / name).read_bytes()
        (run / name).write_bytes((other / name).read_bytes())
        assert any(name in problem for problem in problems_of(run)), name
        if name in ("metrics.jsonl", "digests.jsonl", "report.json", "final.safetensors"):
            forge_checksums(run)
            assert verify(run), name
        (run / name).write_bytes(before)
        forge_checksums(run)
    assert verify(run) == []
    (run / "final.safetensors").unlink()
    (problem,) = verify(run)
    assert "final.safetensors is missing, and " in problem
    forge_checksums(run)
    (problem,) = verify(run)
    assert problem.endswith("final.safetensors is missing, though the run is finished")


@pytest.mark.parametrize("found", [2, 1, 4, None, "3", [3], "x" * 500])
def test_a_manifest_of_another_format_is_refused_in_one_line(found: Any, run: Path) -> None:
    """As every other version of fcifar writes it: with a format, and without ``SHA256SUMS``."""
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "SHA256SUMS").unlink()
    io.write_json(run / "manifest.json", {**manifest, "format": found, "seal": "0" * 64})
    message = r"manifest\.json is of format .*, and this fcifar reads format 3; use the version"
    for read in (read_config, run_dir.read_manifest, verify, inference.load, reproduce.read):
        with pytest.raises(UsageError, match=message) as caught:
            read(run)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(run)) + 300
    assert listing.describe(run).state == "damaged"


# Nonsense -----------------------------------------------------------------------------------------


def ours(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it raised an error of ours, in one line."""
    try:
        return read()
    except (UsageError, ExternalError) as error:
        assert str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("format", "recipe", "seed", "runtime", "compile", "dataset", "checkpoint"),
        *("traced_hparams", "vmap_size", "earlier_ends", "environment"),
    ]
)


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_for_a_json_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "report.json").write_bytes(content)
    ours(lambda: read_config(tmp_path))
    ours(lambda: run_dir.read_report(tmp_path))


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, "1" * 10_000, "\ufeff{}"])
def test_json_that_exhausts_a_parser(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises((DamagedError, UsageError), match=r"manifest\.json"):
        read_config(tmp_path)


def test_an_oversized_json_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)  # bytes that take no room on the disk
    with pytest.raises(DamagedError, match="is larger than"):
        read_config(tmp_path)


@FUZZ
@given(field=FIELDS, value=JSON, inner=st.none() | st.sampled_from(["name", "device", "epochs"]))
def test_any_values_in_a_manifest_with_its_checksum(
    field: str, value: Any, inner: str | None, tmp_path: Path, recipe: Recipe
) -> None:
    about = {
        "format": run_dir.FORMAT,
        "recipe": json.loads(json.dumps(recipes.to_dict(recipe))),
        "seed": 0,
        "runtime": {"device": "cpu", "threads": 1},
        "compile": False,
        "dataset": {"name": "tiny", "digest": "0" * 64},
        "checkpoint": {},
        "traced_hparams": [],
        "vmap_size": 0,
        "earlier_ends": [],
    }
    if inner and isinstance(about.get(field), dict):
        about[field][inner] = value
    else:
        about[field] = value
    io.write_json(tmp_path / "manifest.json", about)
    run_dir.write_checksums(tmp_path, ["manifest.json"])
    config = ours(lambda: read_config(tmp_path))
    if config is not None:
        assert isinstance(config.compile, bool)
        assert isinstance(config.dataset, str)
        assert isinstance(config.seed, int)
        assert isinstance(config.vmap_size, int)
        assert all(isinstance(end, int) for end in config.earlier_ends)


EMPTY = Position()


@FUZZ
@given(content=st.binary(max_size=300) | st.lists(JSON, max_size=5))
def test_any_bytes_for_a_log(content: bytes | list[Any], tmp_path: Path) -> None:
    if isinstance(content, list):
        content = "".join(json.dumps(value) + "\n" for value in content).encode()
    for name in ("metrics.jsonl", "digests.jsonl"):
        (tmp_path / name).write_bytes(content)
    records = ours(lambda: metrics_log.read(tmp_path))
    if records is not None:
        assert len(records) == content.count(b"\n")
        assert all({"step", "split"} <= record.keys() for record in records)
    ours(lambda: metrics_log.read_digests(tmp_path))
    for position in (EMPTY._replace(metrics_bytes=2), EMPTY._replace(digests_bytes=2)):
        assert ours(lambda p=position: MetricsLog(tmp_path).rewind(p)) is None
        with pytest.raises(DamagedError, match="does not begin with the 2 bytes written to it"):
            metrics_log.read_prefixes(tmp_path, position)
    for name in ("metrics.jsonl", "digests.jsonl"):
        assert (tmp_path / name).read_bytes() == content


@FUZZ
@given(records=st.lists(st.dictionaries(st.text(max_size=8), JSON), max_size=6))
def test_a_log_gives_back_what_it_was_given(records: list[dict], tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "digests.jsonl"):
        (tmp_path / name).unlink(missing_ok=True)
    log, positions = MetricsLog(tmp_path), [EMPTY]
    records = [{**record, "step": i, "split": "train"} for i, record in enumerate(records)]
    for record in records:
        log.append(record, {"digest": f"{record['step']:04}", **record})
        positions.append(log.position)
    expected = json.loads(json.dumps(io.finite(records)))
    assert metrics_log.read(tmp_path) == expected
    digests = [{**record, "digest": f"{record['step']:04}"} for record in expected]
    assert metrics_log.read_digests(tmp_path) == [
        d | r for d, r in zip(digests, expected, strict=True)
    ]
    for i, position in reversed(list(enumerate(positions))):
        metrics_log.read_prefixes(tmp_path, position)
        again = MetricsLog(tmp_path)
        again.rewind(position)
        assert again.position == position
        assert metrics_log.read(tmp_path) == expected[:i]
        assert len(metrics_log.read_digests(tmp_path)) == i


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
    assert ours(lambda: tensor_files.read(path)) is None, "nothing of this has a checksum that fits"
    assert ours(lambda: inference.load(path)) is None


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "U64", "C64", "F64"])
def test_any_dtype_of_a_safetensors_file(dtype: str, tmp_path: Path) -> None:
    entry = {"dtype": dtype, "shape": [16], "data_offsets": [0, 128]}
    for size in (8, 12, 16, 128):
        entry["data_offsets"] = [0, size]
        (tmp_path / "a.safetensors").write_bytes(safetensors({"x": entry}, bytes(size)))
        assert ours(lambda: tensor_files.read(tmp_path / "a.safetensors")) is None


@FUZZ
@given(
    name=st.sampled_from(
        ["recipe", "classes", "seed", "dataset", "dataset_digest", "params_digest"]
    ),
    value=JSON.map(json.dumps) | st.text(max_size=30),
)
def test_any_metadata_of_a_model_with_its_checksum(name: str, value: str, run_file: Path) -> None:
    tensors, metadata = tensor_files.read(run_file)
    path = run_file.parent / "changed.safetensors"
    tensor_files.save(path, tensors, metadata | {name: value})
    network = ours(lambda: inference.load(path))
    if network is not None:
        assert isinstance(network.seed, int)
        assert all(isinstance(name, str) for name in network.classes)


@pytest.fixture
def run_file(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Path:
    train(tmp_path / "run", recipe.replace(epochs=1), runtime, dataset)
    return tmp_path / "run" / "final.safetensors"


def test_the_same_values_make_the_same_bytes(tmp_path: Path) -> None:
    metadata = {name: name for name in "abcdefgh"}
    files = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for file in files:
        tensor_files.save(file, {"x": torch.ones(2)}, metadata)
    assert len({file.read_bytes() for file in files}) == 1
