"""The house: who may import whom, what pure modules may not touch, and how deep a step lies."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcifar
from fcifar import cli, data
from fcifar.data import Split, make_dataset
from fcifar.kernels import aot
from fcifar.models.lenet import _LeNet

PACKAGE = Path(fcifar.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = [
    {"errors"},
    {"random", "tree", "entries"},
    {"parallel"},
    {"layers", "schedules", "precision", "grads"},
    {"models", "optim", "averaging", "augment", "losses", "metrics", "privacy"},
    {"kernels"},
    {"step"},
    {"step_transforms"},
    {"analysis"},
    {"io"},
    {"tensor_files"},
    {"data", "recipes"},
    {"train"},
    {"runs"},
    {"bench", "report", "export"},
    {"cli"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
IMPURE = {
    *("kernels", "io", "tensor_files", "data", "train", "runs", "bench", "report", "export"),
    "cli",
}
WORLDLY = {"os", "pathlib", "time", "random", "typer", "rich", "subprocess", "socket", "tempfile"}
GLOBAL_RNG = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("rand_like", "randn_like", "randint_like", "manual_seed", "seed", "default_generator"),
    *("dropout", "Dropout", "Dropout1d", "Dropout2d", "dropout2d", "alpha_dropout"),
}
SWITCHES = {
    *("set_num_threads", "set_num_interop_threads", "use_deterministic_algorithms"),
    *("set_float32_matmul_precision", "set_default_dtype", "set_default_device"),
    *(
        "set_deterministic_debug_mode",
        "set_flush_denormal",
        "fill_uninitialized_memory",
        "allow_tf32",
        "benchmark",
    ),
}


def part(path: Path) -> str:
    """The module or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(tree: ast.AST) -> set[str]:
    """The modules and folders of the package that are imported."""
    names = [name.split(".") for name in imports(tree) if name.startswith("fcifar.")]
    return {name[1] for name in names if name[1] in LEVEL}


def parametrize(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=[str(f.relative_to(PACKAGE)) for f in files])


HOUSED = [f for f in FILES if part(f) not in ("__init__", "__main__")]
PURE = [f for f in HOUSED if part(f) not in IMPURE]


@parametrize(HOUSED)
def test_imports_go_one_way(path: Path) -> None:
    here = part(path)
    assert here in LEVEL, f"{here} has no place in the house yet: give it a level"
    for there in parts_imported(ast.parse(path.read_text())):
        assert there == here or LEVEL[there] < LEVEL[here], f"{here} imports {there}"


def test_files_are_written_knowing_nothing_of_what_is_in_them() -> None:
    assert parts_imported(ast.parse((PACKAGE / "io.py").read_text())) == {"errors"}


@parametrize(HOUSED)
def test_kernels_are_known_to_the_compiler_alone(path: Path) -> None:
    """And to those who say whether there are any; one function compiles, where it is called."""
    tree = ast.parse(path.read_text())
    name = path.relative_to(PACKAGE).as_posix()
    if "kernels" not in parts_imported(tree) or part(path) == "kernels":
        return
    assert name in {"step_transforms.py", "train/environment.py", "train/programs.py"}
    if name == "step_transforms.py":
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        importing = [f.name for f in functions if "kernels" in parts_imported(f)]
        assert len(importing) == 1
        others = [node for node in tree.body if node not in functions]
        assert not any("kernels" in parts_imported(node) for node in others)


@parametrize(PURE)
def test_pure_modules_import_pure_ones(path: Path) -> None:
    """But for the kernels, which the compiler is given."""
    allowed = {"kernels"} if part(path) == "step_transforms" else set()
    assert parts_imported(ast.parse(path.read_text())) & IMPURE <= allowed


@parametrize(PURE)
def test_pure_modules_leave_the_world_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        assert name.partition(".")[0] not in WORLDLY, name
        assert not name.startswith("numpy.random")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in ("torch", "F", "nn", "nn.functional", "torch.nn.functional"):
                assert node.attr not in GLOBAL_RNG, ast.unparse(node)
            assert not (node.attr == "type" and owner.endswith("device")), "a branch on the device"


@parametrize([f for f in HOUSED if f.name != "runtime.py"])
def test_only_the_runtime_turns_torchs_switches(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in SWITCHES:
            is_read = isinstance(node.ctx, ast.Load) and not node.attr.startswith(("set_", "use_"))
            assert is_read, ast.unparse(node)


def test_importing_is_light_and_has_no_side_effect() -> None:
    """No torchvision, matplotlib or typer, and no torch for the command line to start."""
    code = """
import sys, torch
torch.manual_seed(0)
def state():
    return torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype()
before = state()
import fcifar
for name in fcifar.__all__:
    getattr(fcifar, name)
assert before == state()
heavy = {"torchvision", "matplotlib", "typer", "rich", "PIL", "torch._dynamo", "torch._inductor"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    code = "import sys, fcifar.cli; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_public_name_is_there_and_documented() -> None:
    for name in fcifar.__all__:
        assert getattr(fcifar, name).__doc__, name
    assert set(fcifar.__all__) <= set(dir(fcifar))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fcifar.nonsense  # type: ignore[attr-defined]


# How deep a step lies ----------------------------------------------------------------------------

MOST_FRAMES, MOST_FILES = 8, 6
Frames = list[tuple[str, str]]  # file and function, the outermost first


def of_package(path: str) -> str | None:
    """A file by its path in the package; None for those of others."""
    file = Path(path)
    inside = file.is_relative_to(PACKAGE) and file.name != "__main__.py"
    return file.relative_to(PACKAGE).as_posix() if inside else None


def on_stack() -> Frames:
    """The frames of the package that are being carried out."""
    frame = sys._getframe(1)
    found: Frames = []
    while frame is not None:
        if file := of_package(frame.f_code.co_filename):
            found.append((file, frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


def assert_shallow(frames: Frames) -> None:
    shown = "\n".join(f"{file}: {name}" for file, name in frames)
    assert len(frames) <= MOST_FRAMES, shown
    assert len({file for file, _ in frames}) <= MOST_FILES, shown


@pytest.fixture
def train_three_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_batch):
    """``fcifar train blitz`` on 12 images, with more words."""
    splits = Split(*make_batch(12, seed=1)), Split(*make_batch(5, seed=2))
    data.save(make_dataset("tiny", *splits, tuple("abcdefghij"), "tests"), tmp_path / "data")
    monkeypatch.setattr("fcifar.report.draw.run", lambda run, data: None)  # it takes seconds
    words = ["--dataset", "tiny", "--data-dir", tmp_path / "data", "--out", tmp_path / "run"]
    words += ["--epochs", 1, "--batch-size", 4, "--threads", 1, "--device", "cpu", "--quiet"]

    def train(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["fcifar", "train", "blitz", *map(str, words), *more])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code

    return train


def test_few_functions_are_between_the_command_and_the_network(
    train_three_steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[Frames] = []
    forward = _LeNet.forward

    def spy(self, x, key=None):
        stacks.append(on_stack())
        return forward(self, x, key)

    monkeypatch.setattr(_LeNet, "forward", spy)
    train_three_steps("--no-compile")
    of_steps = [stack for stack in stacks if ("step_transforms.py", "loop_step") in stack]
    assert len(of_steps) == 3
    for stack in of_steps:
        assert stack[0][0].startswith("cli/")
        assert_shallow(stack)


@pytest.mark.slow
@pytest.mark.skipif(aot.why_not() is not None, reason=f"no programs here: {aot.why_not()}")
def test_few_functions_are_between_the_command_and_a_compiled_network(
    train_three_steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that call the compiled step, and those that are recorded in it."""
    stacks: list[Frames] = []

    forward, call = _LeNet.forward, aot.Program.__call__

    def traced(self, x, key=None):
        stacks.append(on_stack())
        return forward(self, x, key)

    def called(self, given):
        stacks.append(on_stack())
        return call(self, given)

    monkeypatch.setenv("FCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_LeNet, "forward", traced)
    monkeypatch.setattr(aot.Program, "__call__", called)
    train_three_steps("--compile")
    of_trace = [stack for stack in stacks if ("step_transforms.py", "loop_step") in stack]
    of_steps = [stack for stack in stacks if stack[-1] == ("train/programs.py", "call")]
    assert (len(of_trace), len(of_steps)) == (1, 3)  # all three batches are of one size
    for stack in of_steps:
        assert stack[0][0].startswith("cli/")
        assert_shallow(stack)
    inside = [frame for frame in of_trace[0] if not frame[0].startswith(("cli/", "train/"))]
    assert_shallow(inside)
