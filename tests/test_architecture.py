"""The house: who may import whom, and what pure modules may not touch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcifar

PACKAGE = Path(fcifar.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = [
    {"errors"},
    {"threefry", "inverse_erf"},
    {"random", "tree", "registry"},
    {"parallel"},
    {
        *("layers", "schedules", "precision", "transforms", "fingerprint", "intervals"),
        *("variance", "grads"),
    },
    {
        *("models", "optim", "averaging", "augment", "losses", "metrics", "calibration"),
        *("comparison", "privacy"),
    },
    {"kernels", "tta", "ensembles"},
    {"step", "compiling"},
    {"running", "replicas", "examples"},
    {"data", "recipes"},
    {"runs"},
    {"report", "interop"},
    {"cli"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
IMPURE = {"kernels", "data", "runs", "report", "interop", "cli"}
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


def parametrize(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=[str(f.relative_to(PACKAGE)) for f in files])


HOUSED = [f for f in FILES if part(f) not in ("__init__", "__main__")]
PURE = [f for f in HOUSED if part(f) not in IMPURE]


@parametrize(HOUSED)
def test_imports_go_one_way(path: Path) -> None:
    here = part(path)
    assert here in LEVEL, f"{here} has no place in the house yet: give it a level"
    for name in imports(ast.parse(path.read_text())):
        head, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if head != "fcifar" or there not in LEVEL:
            continue
        assert there == here or LEVEL[there] < LEVEL[here], f"{here} imports {there}"


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
        if isinstance(node, ast.Attribute):
            assert node.attr not in SWITCHES, ast.unparse(node)


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
