"""Nothing is read or written outside the arrays."""

import os
import subprocess
from pathlib import Path

import pytest

from fcifar.kernels import building
from fcifar.kernels.conv_pool import SOURCE, Shape, macros
from tests.kernels.test_conv_pool import SHAPES

FLAGS = (
    *("-x", "c", "-std=gnu11", "-O1", "-g", "-march=native", "-fopenmp"),
    *("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover"),
)
OFTEN = ("lenet 2", "conv3 2", "odd everything", "wider than a vector")


def compiled(source: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [building.compiler(), *FLAGS, *more, str(source), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def _sanitizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sanitizer")
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    try:
        done = compiled(folder / "nothing.c", folder / "nothing")
        subprocess.run([folder / "nothing"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the compiler has no address sanitizer here")
    if done.returncode:
        pytest.skip("the compiler has no address sanitizer here")


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_the_kernel_stays_inside_its_arrays(name: str, tmp_path: Path) -> None:
    shape: Shape = SHAPES[name]
    settings = [f"-D{macro}={value}" for macro, value in macros(shape).items()]
    harness = Path(__file__).with_name("sanitized.c")
    made = compiled(harness, tmp_path / "harness", f'-DSOURCE="{SOURCE}"', *settings)
    assert made.returncode == 0, made.stderr
    # libgomp keeps its threads' stacks to the end.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [tmp_path / "harness"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
