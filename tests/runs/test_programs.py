"""Compiled runs load what an earlier one compiled, bit for bit; damaged programs are rebuilt."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import data, kernels, recipes, tensor_files
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.kernels import aot
from fcifar.recipes import Recipe
from fcifar.train import environment, programs
from fcifar.train.events import Noted
from fcifar.train.runtime import Runtime
from tests.helpers.training import SEED, records, train

pytestmark = pytest.mark.skipif(
    aot.why_not() is not None, reason=f"no programs here: {aot.why_not()}"
)


@pytest.fixture
def short(recipe: Recipe) -> Recipe:
    return recipe.replace(drop_last=True, epochs=1)


FILLING = "filling"  # the run that compiled


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filled")


@pytest.fixture
def cache(
    filled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short: Recipe,
    runtime: Runtime,
    dataset: Dataset,
) -> Path:
    """The cache of a test, with the program of ``short``, which is compiled once."""
    if not (filled / "programs").exists():
        monkeypatch.setenv(programs.CACHE, str(filled))
        before = os.umask(0)  # others may write new files
        try:
            train(filled.parent / FILLING, short, runtime, dataset, compile=True)
        finally:
            os.umask(before)
    here = tmp_path / "cache"
    shutil.copytree(filled, here)
    monkeypatch.setenv(programs.CACHE, str(here))
    return here / "programs"


@pytest.fixture
def compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each graph that is compiled from here on: to the same library, at once."""
    calls: list[str] = []
    library = tensor_files.read(only(cache, ".safetensors"))[0]["library"].numpy().tobytes()

    def compile(graph: aot.Graph, arguments: object, folder: Path, **_: object) -> None:
        calls.append(graph.digest)
        (folder / aot.LIBRARY).write_bytes(library)

    monkeypatch.setattr(aot, "compile", compile)
    return calls


def only(cache: Path, ending: str) -> Path:
    (found,) = cache.glob(f"*{ending}")
    return found


@pytest.fixture
def run(
    tmp_path: Path, short: Recipe, runtime: Runtime, dataset: Dataset
) -> Callable[..., tuple[list[dict[str, Any]], list[str]]]:
    """Train once more; return the log and what was noted."""
    names = (f"run{i}" for i in range(99))

    def train_once(recipe: Recipe = short, **options: Any) -> Any:
        path, noted = tmp_path / next(names), []

        def observe(event: object) -> None:
            if isinstance(event, Noted):
                noted.append(event.text)

        train(path, recipe, runtime, dataset, compile=True, observe=observe, **options)
        return records(path), noted

    return train_once


def test_a_run_that_compiles_and_one_that_loads_have_the_same_bits(
    cache: Path, filled: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = records(filled.parent / FILLING)
    monkeypatch.setattr(aot, "trace", None)
    second, notes = run()
    assert not notes
    assert first == second
    assert len(first) > 2


def test_a_program_that_differs_in_nothing_but_its_request_is_found_by_its_graph(
    cache: Path, compiled: list[str], run: Callable[..., Any], short: Recipe
) -> None:
    """More epochs at a constant learning rate are the same step; another rate is another one."""
    run()
    run(short.replace(epochs=2))
    assert not compiled
    assert len([*cache.glob("*.key")]) == 2
    run(short.replace(learning_rate=0.002))
    assert len(compiled) == 1
    assert len([*cache.glob("*.safetensors")]) == 2


# Damage ------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def resave(**about: str) -> Callable[[Path], None]:
    """The same library with a checksum that fits, but other metadata."""

    def save(path: Path) -> None:
        tensors, metadata = tensor_files.read(path)
        tensor_files.save(path, tensors, metadata | about)

    return save


def without_a_library(path: Path) -> None:
    _, metadata = tensor_files.read(path)
    tensor_files.save(path, {"constant000": torch.ones(3)}, metadata)


def no_library(path: Path) -> None:
    tensors, metadata = tensor_files.read(path)
    text = torch.frombuffer(bytearray(b"no ELF file"), dtype=torch.uint8)
    tensor_files.save(path, tensors | {"library": text}, metadata)


def others_may_write(path: Path) -> None:
    path.chmod(0o666)


def of_another_user(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, "damaged"),
        (cut, "cannot be read"),
        (empty, "cannot be read"),
        (resave(name="0" * 64), "a copy of another program"),
        (resave(outputs="many"), "invalid literal"),
        (without_a_library, "library"),
        (no_library, "cannot load the program"),
        (others_may_write, "other users may write to"),
        (of_another_user, "belongs to another user"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_or_foreign_program_is_compiled_again(
    cache: Path,
    compiled: list[str],
    run: Callable[..., Any],
    damage: Callable[[Path], None],
    says: str,
) -> None:
    before, _ = run()
    assert not compiled
    damage(only(cache, ".safetensors"))
    again, notes = run()
    assert len(compiled) == 1
    assert again == before
    assert all("cannot be used and is compiled again" in note and says in note for note in notes)
    assert notes
    last, notes = run()
    assert len(compiled) == 1
    assert last == before
    assert not notes


def test_a_program_of_another_compiler_is_compiled_again(
    cache: Path, compiled: list[str], run: Callable[..., Any]
) -> None:
    resave(compiler="another")(only(cache, ".safetensors"))
    assert not run()[1]
    assert len(compiled) == 1


@pytest.mark.parametrize("text", [b"", b"nonsense", b"0" * 64, b"../" * 20, b"\xff\x00" * 40])
def test_a_damaged_alias_leads_to_the_program_by_its_graph(
    cache: Path, compiled: list[str], run: Callable[..., Any], text: bytes
) -> None:
    only(cache, ".key").write_bytes(text)
    assert not run()[1]
    assert not compiled
    assert only(cache, ".key").read_text() == only(cache, ".safetensors").stem


def test_another_version_compiles_its_own(
    cache: Path,
    compiled: list[str],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = environment.of_programs
    monkeypatch.setattr(environment, "of_programs", lambda: real() | {"code": "changed"})
    assert not run()[1]
    assert len(compiled) == 1
    assert len([*cache.glob("*.safetensors")]) == 2


def test_a_folder_that_others_may_write_is_not_used(
    cache: Path, compiled: list[str], run: Callable[..., Any]
) -> None:
    cache.chmod(0o777)
    _, notes = run()
    assert len(compiled) == 1
    assert "compiled at every start: other users may write to" in notes[0]


def test_a_cache_that_cannot_be_written_is_not_needed(
    cache: Path, compiled: list[str], run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = cache.parent / "file"
    in_the_way.write_text("")
    monkeypatch.setenv(programs.CACHE, str(in_the_way / "below"))
    _, notes = run()
    assert len(compiled) == 1
    assert "compiled at every start: cannot write" in notes[0]


def test_a_loaded_program_needs_no_compiler(
    cache: Path, run: Callable[..., Any], short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "find_compiler", lambda: None)
    assert not run()[1]
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        run(short.replace(learning_rate=0.003))


# The rest ----------------------------------------------------------------------------------------


def test_a_step_without_a_program_is_compiled_by_torch(
    cache: Path,
    run: Callable[..., Any],
    short: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise aot.UnsupportedError("it needs more")

    graphs: list[Any] = []

    def counting(graph: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(aot, "compile", unsupported)
    monkeypatch.setattr(kernels, "step_backend", counting)
    _, notes = run(short.replace(learning_rate=0.004))
    assert notes == ["it needs more; torch.compile compiles the step at every start"]
    assert len(graphs) == 1


def test_programs_are_listed_trimmed_and_removed(
    cache: Path, compiled: list[str], run: Callable[..., Any], short: Recipe
) -> None:
    run()
    run(short.replace(learning_rate=0.005))
    (cache / "other.txt").write_text("of the user")
    last, first = programs.find()
    assert last.used >= first.used
    assert dict(last.about)["recipe"] == "blitz"
    assert last.about["what"] == "step"
    assert last.bytes == last.path.stat().st_size
    programs.trim(cache, limit=last.bytes)
    assert [program.path for program in programs.find()] == [last.path]
    assert only(cache, ".key").read_text() == last.path.stem
    assert programs.clear() > last.bytes
    assert os.listdir(cache) == ["other.txt"]
    assert programs.clear() == 0
    assert not programs.find()


@pytest.mark.parametrize(
    ("device", "steps", "flops", "compiled"),
    [
        ("cpu", 25_000, 1.6e7, True),
        ("cpu", 500, 1.6e7, False),
        ("cpu", 500, 1e11, True),
        ("cuda:0", 500, 1.6e7, False),
        ("cuda:0", 50_000, 1.6e7, True),
        ("mps", 50_000, 1.6e7, False),
    ],
)
def test_a_run_is_compiled_by_default_if_it_repays_it(
    device: str, steps: int, flops: float, compiled: bool
) -> None:
    found, why = programs.choose(device, steps, flops)
    assert found is compiled
    assert why.startswith("compiled" if compiled else "not compiled")


def test_without_a_compiler_a_run_is_not_compiled_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "find_compiler", lambda: None)
    compiled, why = programs.choose("cpu", 10**6, 1e9)
    assert not compiled
    assert "there is no C++ compiler" in why


# A process ---------------------------------------------------------------------------------------

_TRAIN = """
import json, sys
from fcifar.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
    loaded = [name for name in sys.modules if re.match(r"torch\\._(dynamo|inductor)$", name)]
    print(json.dumps([code, loaded]), file=sys.stderr)
"""


def test_a_second_start_imports_neither_dynamo_nor_inductor(
    tmp_path: Path, filled: Path, cache: Path, dataset: Dataset
) -> None:
    """The whole command, figures included, with the bits of the run that compiled."""
    root, run = tmp_path / "data", tmp_path / "run"
    data.save(dataset, root)
    env = {**os.environ, "FCIFAR_DATA": str(root), programs.CACHE: str(cache.parent)}
    words = ["train", "blitz", "--dataset", "tiny", "--compile", "--threads", "1", "--seed", SEED]
    words += ["--batch-size", 5, "--drop-last", "--epochs", 1, "--log-every", 4, "--out", run]
    command = [sys.executable, "-c", f"import re\n{_TRAIN}", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stderr.splitlines()[-1])
    assert code in (0, None)
    assert loaded == []
    assert records(run) == records(filled.parent / FILLING)
    assert (run / "plots" / "channels.png").exists()


def test_the_recipe_and_a_model_of_a_user_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset
) -> None:
    assert recipes.is_own(recipes.get("speed94"))
    assert recipes.is_own(recipes.get("conv3-aug"))
    recipes.register_augment("theirs", lambda: lambda key, images: images)
    assert not recipes.is_own(recipes.get("blitz").replace(augment=("theirs",)))
    given = recipes.get("speed94").replace(model="torchvision.models:resnet18", model_options={})
    assert not recipes.is_own(given)


def test_the_code_of_a_user_is_traced_at_every_start(
    cache: Path, compiled: list[str], run: Callable[..., Any], short: Recipe
) -> None:
    """It may depend on anything: here, on a number that no request knows."""
    factor = [1.0]
    recipes.register_augment("scaled", lambda: lambda key, images: images * factor[0])
    scaled = short.replace(augment=("scaled",))
    run(scaled)
    run(scaled)
    assert len(compiled) == 1
    factor[0] = 0.5
    run(scaled)
    assert len(compiled) == 2
