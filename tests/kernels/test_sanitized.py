"""Nothing is read or written outside the arrays."""

import itertools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from fcifar.kernels import build, conv_pool, norm_gelu, wide_conv, winograd
from tests.kernels.test_conv_pool import SHAPES

FLAGS = (
    *("-x", "c", "-std=gnu11", "-O1", "-g", "-march=native", "-fopenmp"),
    *("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover"),
)
WIDE = {
    "24 to 64, bands": wide_conv.Shape(24, 64, 27, 27),
    "16 to 96, odd and even": wide_conv.Shape(16, 96, 7, 6),
    "40 to 32, one cell": wide_conv.Shape(40, 32, 2, 3),
}
WINOGRAD = {
    "24 to 64, odd, pooled": winograd.Shape(24, 64, 7, 6, True),
    "40 to 96, odd": winograd.Shape(40, 96, 7, 6, False),
    "16 to 32, one window": winograd.Shape(16, 32, 2, 3, True),
    "16 to 16, with float16": winograd.Shape(16, 16, 5, 6, False),
}
OFTEN = ("lenet 2", "conv3 2", "odd everything", "wider than a vector")


def compiled(source: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [build.compiler(), *FLAGS, *more, str(source), "-o", str(out)]
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


def assert_clean(tmp_path: Path, harness: str, source: Path, macros: Mapping[str, int]) -> None:
    settings = [f"-D{macro}={value}" for macro, value in macros.items()]
    path = Path(__file__).with_name(harness)
    made = compiled(path, tmp_path / "harness", f'-DSOURCE="{source}"', *settings)
    assert made.returncode == 0, made.stderr
    # libgomp keeps its threads' stacks to the end.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [tmp_path / "harness"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_the_kernel_stays_inside_its_arrays(name: str, tmp_path: Path) -> None:
    macros = conv_pool.macros(SHAPES[name])
    assert_clean(tmp_path, "sanitized.c", conv_pool.SOURCE, macros)


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.skipif(winograd.why_not() is not None, reason=f"no kernel: {winograd.why_not()}")
@pytest.mark.parametrize("name", WIDE)
def test_the_kernel_for_wide_layers_stays_inside_its_arrays(name: str, tmp_path: Path) -> None:
    for float16 in {False, build.has_float16()}:
        macros = wide_conv.macros(WIDE[name], float16)
        assert_clean(tmp_path, "sanitized_wide.c", wide_conv.SOURCE, macros)


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.skipif(winograd.why_not() is not None, reason=f"no kernel: {winograd.why_not()}")
@pytest.mark.parametrize("name", WINOGRAD)
def test_winograds_algorithm_stays_inside_its_arrays(name: str, tmp_path: Path) -> None:
    kinds = [winograd.Kind(tile == 2 and build.has_float16(), tile) for tile in (2, 4)]
    if WINOGRAD[name].channels_out % winograd.COLUMNS:
        kinds = [kind for kind in kinds if kind.float16]
    if not kinds:
        pytest.skip("a kernel for so few output channels needs float16")
    for kind, gradient in itertools.product(kinds, (False, True)):
        shape = WINOGRAD[name]._replace(gradient=gradient)
        macros = winograd.macros(shape, kind) | {"GROUP": 3, "WEIGHT_GROUP": 2}
        assert_clean(tmp_path, "sanitized_winograd.c", winograd.SOURCE, macros)


@pytest.mark.usefixtures("_sanitizer")
@pytest.mark.skipif(
    build.why_not_bfloat16() is not None, reason=f"no kernel: {build.why_not_bfloat16()}"
)
def test_batch_norm_with_gelu_stays_inside_its_arrays(tmp_path: Path) -> None:
    assert_clean(tmp_path, "sanitized_norm_gelu.c", norm_gelu.SOURCE, {})
