"""What is published: a wheel that trains outside the checkout, an sdist that has the tests."""

import email
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import fcifar
from fcifar.data import data_root

ROOT = Path(__file__).parent.parent
NEEDED = ("build", "hatchling", "pip")
TAG = f"fcifar-{fcifar.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    with warnings.catch_warnings(action="ignore"):  # of setuptools, where torch has compiled before
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("dist")
    words = ["build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed in, which is no part of the checkout."""
    place = tmp_path_factory.mktemp("installed")
    words = ["pip", "install", "--no-deps", "--no-index", "--quiet", "--target", place, wheel]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return place


def files_of_the_package() -> dict[str, Path]:
    """By name in the wheel, everything of the package that is no leftover of Python."""
    return {
        path.relative_to(ROOT).as_posix(): path
        for path in (ROOT / "fcifar").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{TAG}.dist-info/METADATA"))


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"{TAG}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert {name.partition("/")[0] for name in held} == {"fcifar", f"{TAG}.dist-info"}
    expected = {name: path.read_bytes() for name, path in files_of_the_package().items()}
    assert {name: data for name, data in held.items() if name in expected} == expected
    assert {name for name in held if name.startswith("fcifar/")} == set(expected)
    for name in (
        "py.typed",
        "kernels/conv_pool.c",
        "report/page/page.html",
        "report/page/page.css",
    ):
        assert f"fcifar/{name}" in held
    licence = held[f"{TAG}.dist-info/licenses/LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Name"] == "fcifar"
    assert about["Version"] == fcifar.__version__
    assert about["License-Expression"] == "MIT"
    assert about.get_all("License-File") == ["LICENSE"]
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload() == (ROOT / "README.md").read_text()
    assert about["Summary"]
    classifiers = about.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    # The licence's expression takes their place: https://peps.python.org/pep-0639/
    assert not [name for name in classifiers if name.startswith("License ::")]
    assert {"test", "parquet", "jax"} <= set(about.get_all("Provides-Extra") or [])
    needed = [name for name in about.get_all("Requires-Dist") or [] if "extra ==" not in name]
    assert {name.split(">")[0] for name in needed} >= {"torch", "torchvision", "typer"}
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.read(f"{TAG}.dist-info/entry_points.txt").decode()
    assert "fcifar = fcifar.cli:entry" in entries
    assert "[torch_dynamo_backends]\nfcifar = fcifar.kernels:backend" in entries


def test_the_classifiers_are_those_that_exist(wheel: Path) -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(metadata(wheel).get_all("Classifier") or []) <= known


def test_the_sdist_can_run_the_tests(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    place = tmp_path / TAG
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"):
        assert (place / name).read_bytes() == (ROOT / name).read_bytes()
    for folder in ("tests", "benchmarks", "bench_results", "fcifar"):
        here, there = (
            {p.relative_to(root) for p in (root / folder).rglob("*.[pjc]*") if p.suffix != ".pyc"}
            for root in (ROOT, place)
        )
        assert there >= {p for p in here if "__pycache__" not in p.parts}
    done = run(
        *("pytest", "-q", "-p", "no:cacheprovider", "tests/test_readme.py", "-k", "newcomers"),
        cwd=place,
        path=place,
    )
    assert "2 passed" in done


def test_it_trains_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """From an empty folder: version, training to the end, evaluation."""
    assert (installed / "bin/fcifar").exists() or os.name == "nt"
    version = run("fcifar", "--version", cwd=tmp_path, path=installed)
    assert version.split()[-1] == fcifar.__version__
    few = ("--dataset", "shapes10", "--epochs", 1, "--batch-size", 1000, "--threads", 1)
    quiet = ("--json", "--quiet", "--device", "cpu")
    trained = json.loads(
        run("fcifar", "train", *few, *quiet, "--out", "run", cwd=tmp_path, path=installed)
    )
    assert trained["steps"] == 20
    measured = json.loads(
        run("fcifar", "eval", "run", *quiet, "--threads", 1, cwd=tmp_path, path=installed)
    )
    assert measured["accuracy"] == trained["test_accuracy"]
    assert measured["params_digest"] == trained["params_digest"]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["environment"]["git_commit"] is None  # it was not the checkout's
    assert Path(manifest["argv"][0]).is_relative_to(installed)


def test_torch_finds_the_backend_by_its_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(
        "import torch._dynamo as d; print(d.list_backends(), d.lookup_backend('fcifar').__module__)"
    )
    found = run("look", cwd=tmp_path, path=installed)
    assert "'fcifar'" in found
    assert found.split()[-1] == "fcifar.kernels.backends"


def run(*words: object, cwd: Path, path: Path) -> str:
    """What a module prints where ``path`` is what Python imports.

    ``shapes10`` is taken from where it is prepared, or drawn into ``cwd``.
    """
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and not_ours(p)]
    prepared = (data_root() / "shapes10.safetensors").exists()
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(path), *others]),
            "FCIFAR_DATA": str(data_root() if prepared else cwd / "data"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def not_ours(path: str) -> bool:
    return Path(path).resolve() != ROOT
