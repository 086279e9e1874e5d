"""C into a library: what can go wrong."""

import ctypes
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fcifar import random
from fcifar.errors import ExternalError, UsageError
from fcifar.kernels import build, norm_gelu, threefry

pytestmark = pytest.mark.skipif(
    build.why_not() is not None, reason=f"no kernels here: {build.why_not()}"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "_folder", lambda: tmp_path / "built")
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return ANSWER; }\n")
    return path


def built(path: Path) -> list[str]:
    return sorted(p.name for p in (path.parent / "built").iterdir())


def test_a_library_is_built_once_for_each_set_of_macros(source: Path) -> None:
    assert build.load(source, {"ANSWER": 42}).answer() == 42
    assert build.load(source, {"ANSWER": 43}).answer() == 43
    before = built(source)
    assert build.load(source, {"ANSWER": 42}).answer() == 42
    assert built(source) == before
    assert len(before) == 2
    assert all(name.startswith("answer-") and name.endswith(".so") for name in before)


@pytest.mark.parametrize("name", ["with a space", "it's", 'a "b" c', "a\\b"])
def test_a_cache_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        build.prepare_cache()
        link = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        assert shlex.split(link) == [link]
        assert os.path.realpath(link) == os.path.realpath(folder)
        assert list(tmp_path.glob("fcifar-*")) == [Path(link)]
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    build.prepare_cache()
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert build.load(source, {"ANSWER": 42}).answer() == 42
    assert [path.suffix for path in (folder / "fcifar").iterdir()] == [".so"]


def test_a_link_of_somebody_else_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = Path(build._link_to(str(folder))).name
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "theirs")
    link = Path(build._link_to(str(folder)))
    assert link.parent != tmp_path
    link.unlink()


def test_a_plain_cache_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "é"))
    build.prepare_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "é")


@pytest.mark.slow
def test_torch_compiles_into_a_cache_with_a_space(tmp_path: Path) -> None:
    code = (
        "import torch, fcifar\n"
        "step = fcifar.compile_step(lambda s, b: (s + b.sin(), b), donate=False)\n"
        "print(step(torch.zeros(3), torch.zeros(3))[0].tolist())\n"
    )
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"):
        (tmp_path / name / "it's a b").mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
        environment |= {name: str(tmp_path / name / "it's a b")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout == "[0.0, 0.0, 0.0]\n", done.stderr
        assert list((tmp_path / name).rglob("*.so"))
    for link in Path(tempfile.gettempdir()).glob("fcifar-*"):
        if link.is_symlink() and tmp_path in Path(os.readlink(link)).parents:
            link.unlink()


def test_a_changed_source_is_built_anew(source: Path) -> None:
    assert build.load(source, {"ANSWER": 1}).answer() == 1
    source.write_text("int answer(void) { return ANSWER + 1; }\n")
    assert build.load(source, {"ANSWER": 1}).answer() == 2


def test_what_the_compiler_refuses_is_said_and_nothing_is_left(source: Path) -> None:
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(UsageError, match=r"refused .*answer\.c.*error"):
        build.load(source, {})
    assert built(source) == []


def test_a_missing_compiler_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.target.cache_clear()
    assert "no-such-compiler" in (build.why_not() or "")
    with pytest.raises(UsageError, match="cannot run the compiler 'no-such-compiler'"):
        build.load(source, {})
    build.target.cache_clear()


def test_a_folder_that_cannot_be_written_is_named(source: Path) -> None:
    (source.parent / "built").write_text("a file, where the folder should be")
    with pytest.raises(ExternalError, match=r"cannot write a kernel to .*built"):
        build.load(source, {"ANSWER": 7})


def test_a_library_that_cannot_be_loaded_is_named(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(source, {"ANSWER": 8})
    (library,) = (source.parent / "built").iterdir()
    other = source.parent / "other"  # for what is loaded once is not read again
    other.mkdir()
    (other / library.name).write_bytes(library.read_bytes()[:100])
    monkeypatch.setattr(build, "_folder", lambda: other)
    with pytest.raises(ExternalError, match=r"cannot load the kernel .*other.*delete it"):
        build.load(source, {"ANSWER": 8})


def test_processes_that_build_at_once_do_not_meet(source: Path) -> None:
    program = (
        "import sys, pathlib; from fcifar.kernels import build; "
        "build._folder = lambda: pathlib.Path(sys.argv[2]); "
        "print(build.load(pathlib.Path(sys.argv[1]), {'ANSWER': 5}).answer())"
    )
    command = [sys.executable, "-c", program, str(source), str(source.parent / "built")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0].split() for process in running] == [[b"5"]] * 3
    assert len(built(source)) == 1


WITHOUT = ("-mno-avx512bf16", "-mno-avx512fp16")


@pytest.mark.parametrize("source", [threefry.SOURCE, norm_gelu.SOURCE], ids=lambda path: path.stem)
def test_what_every_program_holds_needs_no_16_bit_arithmetic(source: Path, tmp_path: Path) -> None:
    """Programs are linked with these two on every processor with AVX-512."""
    build.call([*build.FLAGS, *WITHOUT, str(source), "-o", str(tmp_path / "made.so")])


def test_rounding_to_bfloat16_without_its_instruction(tmp_path: Path) -> None:
    """Equal to torch's; GELU returns such large values unchanged."""
    made = tmp_path / "made.so"
    build.call([*build.FLAGS, *WITHOUT, str(norm_gelu.SOURCE), "-o", str(made)])
    values = 16 + 1e6 * random.uniform(random.key(0), (2048,)).square()
    values[:3] = torch.tensor([16.0625, 1.00390625 * 2**10, 1.01171875 * 2**10])  # ties
    values[3:5] = torch.tensor([torch.inf, torch.nan])
    x, result = torch.ones(1, 2048).bfloat16(), torch.empty(1, 2048).bfloat16()
    zero = torch.zeros(2048)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, values, zero, result)]
    ctypes.CDLL(str(made)).norm_gelu(ctypes.c_int64(1), ctypes.c_int64(2048), *pointers)
    assert torch.equal(result[0].isnan(), values.isnan())
    known = ~values.isnan()
    assert torch.equal(result[0][known], values.bfloat16()[known])
