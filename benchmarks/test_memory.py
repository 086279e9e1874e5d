"""The peak memory of a training process, with and without torch and the data set.

pytest-benchmark shows the seconds. The bytes are in its JSON; ``-s`` prints them.
"""

from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.reference.candidates import MODELS
from fcifar.bench import bench
from fcifar.bench.bench import Case

# fcifar train without figures.
_LOOP = """
import sys
from pathlib import Path
from fcifar import data, recipes
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime
recipe, folder, out, compiled = sys.argv[1:]
recipe = recipes.get(recipe).replace(epochs=1)
dataset = data.load("tiny", Path(folder))
runtime = make_runtime(device="cpu")
config = make_config(recipe, dataset, runtime=runtime, compile=compiled == "compiled")
loop.train(Path(out), config, dataset)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc"),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_memory(benchmark, tmp_path: Path, model: str, name: str) -> None:
    benchmark.group, benchmark.name = f"memory {model}", name
    path = processes.save_tiny(tmp_path / "data", 2048)
    args = [
        *("train", bench.recipe_for(Case(model, 1)).name, "--dataset", "tiny", "--quiet"),
        *("--data-dir", str(tmp_path / "data"), "--epochs", "1", "--device", "cpu"),
        *(["--compile"] if name == "compiled" else []),
    ]
    caches, runs = tmp_path / "caches", iter(range(9))

    def train() -> int:
        out = ("--out", str(tmp_path / f"run{next(runs)}"))
        return processes.peak_memory(processes.FCIFAR, [*args, *out], caches)

    train()  # fills the caches of compiled code
    peak, torch_alone = benchmark.pedantic(train, rounds=1), processes.peak_memory("import torch")
    looped = [args[1], str(tmp_path / "data"), str(tmp_path / "loop"), name]
    sizes = {
        "peak_bytes": peak,
        "peak_bytes_without_pictures": processes.peak_memory(_LOOP, looped, caches),
        "import_torch_bytes": torch_alone,
        "import_compiler_bytes": processes.peak_memory(processes.IMPORT_COMPILER),
        "data_set_bytes": Path(path).stat().st_size,
    }
    ours = torch_alone + sizes["data_set_bytes"]
    sizes["beyond_bytes"] = peak - ours
    sizes["beyond_bytes_without_pictures"] = sizes["peak_bytes_without_pictures"] - ours
    benchmark.extra_info.update(sizes)
    print(model, name, {what: f"{size / 2**20:.0f} MiB" for what, size in sizes.items()})
