"""The benchmarks: fair references, records, changes between two of them, and their pages.

Nothing here is timed. The reference models of the package have their tests in bench/test_bench.py.
"""

import argparse
import functools
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import (
    bench_ablation,
    bench_grads,
    bench_influence,
    bench_speed94,
    bench_steps,
    compare_records,
    on_device,
    processes,
    records,
)
from benchmarks.on_device import Part
from benchmarks.reference import speed94_loop, tutorial_loop
from benchmarks.reference.candidates import CANDIDATES, DEVICES, MODELS, why_not
from benchmarks.render import charts, pages, sections, tables
from fcifar import data, models, optim, random, recipes, step_transforms
from fcifar.augment import functional
from fcifar.bench import bench, reference_models
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.models.speednet import whitening
from fcifar.recipes import Recipe
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.report.figures.canvas import COLORS, CSS_VARIABLES
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step
from fcifar.train.config import RunConfig, make_config
from fcifar.train.runtime import Runtime

ENVIRONMENT = {
    "cpu": "a processor",
    "threads": 2,
    "devices": ["cpu"],
    "versions": {"torch": "2.15.0"},
}


# References --------------------------------------------------------------------------------------


def test_every_tutorials_model_has_its_reference() -> None:
    names = {recipe.model for recipe in TUTORIALS}
    assert names == set(MODELS) == set(reference_models.MODULES) <= set(models.MODELS)


@pytest.mark.parametrize("network", MODELS)
@pytest.mark.parametrize("name", [n for n in CANDIDATES if not n.startswith(("fcifar", "module"))])
def test_jax_computes_the_same(network: str, name: str) -> None:
    if reason := why_not(name, "cpu"):
        pytest.skip(reason)
    compare_with_the_module(network, name)


@pytest.mark.parametrize("network", MODELS)
def test_the_compiled_module_computes_the_same(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler has its own tests; tracing is quick.
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quick)
    compare_with_the_module(network, "module_compiled")


def compare_with_the_module(network: str, name: str) -> None:
    recipe = bench.recipe_for(Case(network, 4))
    recipe = recipe.replace(model_options={**recipe.model_options, "dropout": 0.0})
    data = bench.synthetic(20)
    expected, found = (CANDIDATES[n](recipe, Runtime(threads=1), data) for n in ("module", name))
    for candidate in (expected, found):
        for _ in range(8 // candidate.steps):
            candidate.once()
        candidate.wait()
    assert list(found.params()) == list(expected.params())
    torch.testing.assert_close(found.params(), expected.params(), rtol=1e-4, atol=1e-6)


def test_the_tutorials_images_are_the_data_sets() -> None:
    data = bench.synthetic(5)
    images = tutorial_loop.PILDataset(data.train_images, data.train_labels)
    recipe = bench.recipe_for(Case("lenet", 1))
    expected = reference_models.make_normalise(recipe, "cpu")(data.train_images)
    assert torch.equal(torch.stack([image for image, _ in images]), expected)
    assert [label for _, label in images] == data.train_labels.tolist()


@pytest.mark.parametrize("name", [recipe.name for recipe in TUTORIALS])
def test_the_tutorials_loop_trains_every_tutorial(name: str, monkeypatch) -> None:
    without_workers = functools.partial(tutorial_loop.DataLoader, num_workers=0)
    monkeypatch.setattr(
        tutorial_loop, "DataLoader", lambda *words, num_workers, **kw: without_workers(*words, **kw)
    )
    recipe, data = recipes.get(name).replace(batch_size=4), bench.synthetic(20)
    assert tutorial_loop.train(recipe, data, epochs=1) > 0
    net = reference_models.MODULES[recipe.model](**recipe.model_options)
    assert 0 <= tutorial_loop.accuracy(net, data.test_images, data.test_labels) <= 1


# The method of speed94 in plain PyTorch ----------------------------------------------------------

WIDTHS, STEPS, BATCH_SIZE = (8, 16, 16), 5, 12
FROZEN = 2  # of these steps, the first that does not train the whitening layer: 2.6 / 7 of them


@pytest.fixture
def pair(make_batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """A small speed94 and the plain method from the same parameters, all in float32."""
    for module, name in ((optim, "muon"), (speed94_loop, "orthogonalize")):
        exact = functools.partial(getattr(module, name), dtype=torch.float32)
        monkeypatch.setattr(module, name, exact)
    recipe = recipes.get("speed94")
    decay = recipe.weight_decay * BATCH_SIZE / recipe.batch_size
    options = {**recipe.model_options, "widths": WIDTHS}
    recipe = recipe.replace(model_options=options, batch_size=BATCH_SIZE, weight_decay=decay)
    model = recipes.make_model(recipe, 10)
    optimizer = recipes.make_optimizer(recipe, STEPS)
    sample = recipes.make_preprocess(recipe)(make_batch(50).images)
    state = init_train_state(model, optimizer, key=random.key(0), sample=sample)
    method = speed94_loop.Method("cpu", compile=False, dtype=torch.float32, widths=WIDTHS)
    copy_into(method.net, state.variables)
    return recipe, model, optimizer, state, method


def plain_name(name: str) -> str:
    """The name in the plain module of a parameter or buffer of speednet."""
    return re.sub(r"(conv|norm)s\.(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", name)


def copy_into(net: speed94_loop.Net, variables: models.Variables) -> None:
    values = {plain_name(n): v for n, v in (variables.params | variables.buffers).items()}
    missing, unexpected = net.load_state_dict(values, strict=False)
    assert not unexpected
    assert all(name.endswith(("num_batches_tracked", "weight")) for name in missing)
    assert not [name for name in missing if "conv" in name or "head" in name]


def test_the_plain_method_takes_the_same_steps(pair) -> None:
    recipe, model, optimizer, state, method = pair
    step = make_train_step(
        model,
        optimizer,
        loss=recipes.make_loss(recipe),
        preprocess=recipes.make_preprocess(recipe),
        reduction=torch.sum,
    )
    epochs, noise = recipe.epochs, bench.synthetic(STEPS * BATCH_SIZE).train_images
    optimizers, schedules = speed94_loop.make_optimizers(method.net, STEPS, epochs, BATCH_SIZE)
    for i in range(STEPS):
        # Noise: the maximum of a map that has two nearly equal ones would depend on rounding.
        batch = Batch(
            noise[i * BATCH_SIZE :][:BATCH_SIZE],
            random.randint(random.key(i), (BATCH_SIZE,), 0, 10),
        )
        before = state.variables.params
        state, metrics = step(state, batch)
        copy = {n: p.detach().clone() for n, p in method.net.named_parameters()}
        loss = method.loss(speed94_loop.normalize(batch.images, torch.float32), batch.labels)
        torch.testing.assert_close(loss, metrics.loss, rtol=1e-4, atol=0)
        loss.backward()
        for each, schedule in zip(optimizers, schedules, strict=True):
            each.step()
            each.zero_grad()
            schedule.step()
        for name, p in method.net.named_parameters():
            if not p.requires_grad:
                assert torch.equal(p, copy[name])
                continue
            own = next(n for n in before if plain_name(n) == name)
            expected = state.variables.params[own] - before[own]
            error = (p.detach() - copy[name] - expected).norm()
            assert error <= 2e-3 * expected.norm(), (i, name)
        assert torch.equal(method.net.whiten.bias, copy["whiten.bias"]) == (i >= FROZEN)
        copy_into(method.net, state.variables)  # so that rounding does not add up


def test_the_plain_method_orthogonalizes_alike() -> None:
    for shape in ((5, 9), (9, 5)):
        x = random.normal(random.key(1), shape)
        found = speed94_loop.orthogonalize(x, torch.float32)
        expected = optim.orthogonalize(x, dtype=torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_plain_method_evaluates_the_same_views(pair, make_batch) -> None:
    recipe, model, _, state, method = pair
    batch = make_batch(6)
    views = recipes.make_views(recipe)
    step = make_eval_step(model, preprocess=recipes.make_preprocess(recipe), views=views)
    expected = step(state.variables, batch)
    torch.testing.assert_close(method.logits(batch.images), expected.logits, rtol=1e-4, atol=1e-6)
    correct = expected.correct.float().mean().item()
    assert method.accuracy(*batch) == pytest.approx(correct)


def test_the_plain_method_starts_alike(pair, make_batch) -> None:
    images = speed94_loop.normalize(make_batch(40).images, torch.float32)
    net = pair[-1].net
    net.reset(images)
    half, negative = net.whiten.weight.flatten(1).chunk(2)
    assert torch.equal(half, -negative)
    expected = whitening(images)[:12].flatten(1).float()
    torch.testing.assert_close(half.T @ half, expected.T @ expected, rtol=1e-3, atol=1e-3)
    assert net.head.weight.std().item() == pytest.approx(1)
    x = random.uniform(random.key(0), (1, 24, 6, 6))
    torch.testing.assert_close(net.groups[0].conv1(x), x[:, :8])


def test_the_plain_method_crops_and_mirrors(make_batch, monkeypatch) -> None:
    images = make_batch(30).images.float()
    padded = torch.nn.functional.pad(images, (2,) * 4, mode="reflect")
    crops = speed94_loop.reflect_crop(padded, torch.Generator().manual_seed(0))
    shifts = [(torch.tensor([i]), torch.tensor([j])) for i in range(-2, 3) for j in range(-2, 3)]
    chosen = set()
    for image, crop in zip(images, crops, strict=True):
        moved = [functional.translate(image[None], *s, mode="reflect")[0] for s in shifts]
        (index,) = (i for i, each in enumerate(moved) if torch.equal(each, crop))
        chosen.add(index)
    assert len(chosen) > 10
    monkeypatch.setattr(speed94_loop, "CROP", 0)
    labels, mirrored = torch.arange(30), torch.arange(30) % 3 == 0
    for epoch in (0, 1):
        generator = torch.Generator().manual_seed(epoch)
        args = (images, labels, mirrored, epoch, 7, generator)
        batches = list(speed94_loop.epoch_batches(*args))
        rows = torch.cat([rows for _, rows in batches])
        assert len(batches) == 4
        assert len(set(rows.tolist())) == 28, "each once, without the incomplete batch"
        flip = step_transforms.alternate(mirrored, rows, epoch)
        expected = functional.mirror(images[rows], flip)
        assert torch.equal(torch.cat([images for images, _ in batches]), expected)


def test_both_are_measured(folder: Path, monkeypatch, capsys, tmp_path: Path) -> None:
    data.save(bench.synthetic(32)._replace(name="tiny"), tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path))
    small = functools.partial(speed94_loop.Method, widths=WIDTHS)
    monkeypatch.setattr(bench_speed94, "Method", small)
    options = {**recipes.get("speed94").model_options, "widths": WIDTHS}
    recipe = recipes.get("speed94").replace(model_options=options)
    monkeypatch.setitem(recipes.RECIPES, "speed94", recipe)
    words = "--dataset tiny --images 16 --epochs 1 --batch-size 8 --repetitions 2 --device cpu"
    monkeypatch.setattr(sys, "argv", ["speed94", *words.split(), "--no-compile", "--name", "few"])
    bench_speed94.main()
    results = records.read(folder / "few.json")["results"]
    for name in ("fcifar", "plain"):
        assert len(results[name]) == 2
        assert results["medians"][name]["seconds"] > 0
        assert all(0 <= row["accuracy"] <= 1 for row in results[name])


# Scripts -----------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_a_reason() -> None:
    for device in DEVICES:
        there = device == "cpu" or torch.cuda.is_available()
        assert (why_not("module", device) is None) == there


SCRIPTS = sorted(path.stem for path in Path(processes.__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize("name", [*SCRIPTS, "compare_records", "on_device", "records"])
def test_a_script_shows_how_it_is_called(name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main()
    assert f"python -m benchmarks.{name} " in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_peak_memory_is_the_childs_own() -> None:
    size = 200 * 2**20
    little, much = processes.peak_memory("pass"), processes.peak_memory(f"x = b'1' * {size}")
    assert 0.9 * size < much - little < 1.1 * size


def test_gradients_of_each_image_are_measured_beside_the_batchs(
    folder: Path, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_grads, "compile_pure", lambda function: function)
    monkeypatch.setattr(bench_grads, "peaks", lambda options: {"batch by 500": 2**20})
    data.save(bench.synthetic(16)._replace(name="tiny"), tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path))
    words = "--dataset tiny --images 8 --chunk 4 --compiled-chunk 2 --repetitions 2 --name few"
    monkeypatch.setattr(sys, "argv", ["grads", *words.split()])
    bench_grads.main()
    found = records.read(folder / "few.json")
    for group in ("eager_seconds", "compiled_seconds"):
        seconds = found["results"][group]
        assert all(len(values) == 2 for values in seconds.values())
        assert found["results"]["times_batch_by_500"][group]["batch by 500"] == 1
        assert {"each image", "norms", "clipped sum", "noise scale"} < set(seconds)
    assert found["config"]["threads"] == 1
    assert found["config"]["parameters"] == 62_006
    assert "each image" in tables.section(found)


def test_influence_is_compared_with_leaving_images_out(
    folder: Path, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_influence, "compile_step", lambda step: step)
    monkeypatch.setattr(bench_influence, "BATCH_SIZE", 10)
    made = bench.synthetic(200)
    data.save(made._replace(name="tiny"), tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path))
    classes = ",".join(made.classes[:3])
    words = f"--dataset tiny --classes {classes} --images 40 --tests 2 --removed 2 --subsets 4"
    words += " --seeds 2 --steps 5 --iterations 2 --name few"
    monkeypatch.setattr(sys, "argv", ["influence", *words.split()])
    bench_influence.main()
    results = records.read(folder / "few.json")["results"]
    for method in ("tracin", "tracin, last", "gauss_newton"):
        for seeds in ("one seed", "all seeds"):
            found = results["rank_correlation"][f"{method}, {seeds}"]
            assert len(found["each"]) == 2
            assert found["interval95"][0] <= found["mean"] <= found["interval95"][1]
    assert len(results["rise"]) == 10
    ascending = torch.arange(5.0).square()
    assert bench_influence.rank_correlation(ascending, ascending.exp()) == 1
    assert bench_influence.rank_correlation(ascending, -ascending) == -1
    assert bench_influence.ranks(torch.tensor([2.0, 1.0, 2.0, 0.0])).tolist() == [2.5, 1, 2.5, 0]


# One call on a device ----------------------------------------------------------------------------

GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({path!r}, "w").write(str(child.pid))
time.sleep(600)
"""


def part(name: str, code: str, limit: float = 60.0, **more: Any) -> Part:
    return Part(name, ["-c", code], limit, **{"needs_data": False, **more})


def run_parts(folder: Path, checks: list[Part], measurements: list[Part] = (), **more: Any) -> Any:
    """Run parts, and return what is in the file afterwards."""
    options = {"out": folder, "work": folder, "seconds": 600.0, "side": 2, **more}
    first = options.pop("first", None)
    results = on_device.run_parts(first, checks, measurements, **options)
    assert results.keys() == json.loads((folder / "results.json").read_text())["results"].keys()
    return records.read(folder / "results.json")["results"]


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status  # nothing may have waited for it


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_measurements_run_alone_after_the_checks(tmp_path: Path) -> None:
    code = "import time; print(time.time(), flush=True); time.sleep(0.3); print(time.time())"

    def timed(name: str, **more: Any) -> Part:
        return part(name, code, read=lambda out: [float(v) for v in out.split()], **more)

    checks = [timed("quick"), timed("a", needs_data=True), timed("b", needs_data=True)]
    found = run_parts(tmp_path, checks, [timed("c"), timed("d")], first=timed("data"))
    times = {name: values["result"] for name, values in found.items()}
    assert all(values["status"] == 0 for values in found.values())
    assert times["data"][1] <= min(times["a"][0], times["b"][0])
    assert max(times["a"][1], times["b"][1]) <= times["c"][0]
    assert times["c"][1] <= times["d"][0]
    assert list(found)[-2:] == ["c", "d"]


def test_no_part_ends_the_script(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    garbage = "import os; os.write(1, bytes(range(256)) * 9)"
    checks = [
        part("crash", "import os; os.abort()"),
        part("exit", "import sys; print('half'); sys.exit('why')"),
        part("hang", GRANDCHILD.format(path=str(pid)), 3.0),
        part("garbage", garbage, read=json.loads),
        part("not JSON", "print(1)", read=lambda out: {1}),
        part("good", "print('[1, 2]')", read=json.loads),
    ]
    found = run_parts(tmp_path, checks, [part("last", "print('done')")])
    assert found["crash"]["status"] == -6
    assert (found["exit"]["status"], found["exit"]["out"]) == (1, "half\n")
    assert "why" in found["exit"]["err"]
    assert found["hang"]["status"] == "stopped after 3 s"
    assert found["garbage"]["result"] is None
    assert "Error" in found["garbage"]["unreadable"]
    assert "Error" in found["not JSON"]["unreadable"]
    assert found["good"]["result"] == [1, 2]
    assert found["last"]["result"] == "done\n"
    assert_ends(int(pid.read_text()))
    assert "##### exit: 1" in (tmp_path / "logs.txt").read_text()


def test_what_a_part_leaves_behind_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = GRANDCHILD.format(path=str(pid)).replace("time.sleep(600)\n", "", 1)
    code = code.removesuffix("time.sleep(600)\n")
    assert run_parts(tmp_path, [part("a", code)])["a"]["status"] == 0
    assert_ends(int(pid.read_text()))


def test_results_are_written_after_each_part(tmp_path: Path) -> None:
    code = (
        f"import json; print(list(json.load(open({str(tmp_path / 'results.json')!r}))['results']))"
    )
    found = run_parts(tmp_path, [part("a", "pass"), part("b", code)], [part("c", code)], side=1)
    assert found["b"]["result"] == "['a']\n"
    assert found["c"]["result"] == "['a', 'b']\n"


def test_checks_leave_time_for_measurements(tmp_path: Path) -> None:
    slow = "import time; time.sleep(600)"
    checks = [part(name, slow) for name in "abc"]
    found = run_parts(tmp_path, checks, [part("d", "pass"), part("e", slow)], seconds=4.0)
    assert found["a"]["status"] == found["b"]["status"] == "stopped after 2 s"
    assert found["c"]["status"] == "no time left"
    assert found["d"]["status"] == 0
    assert found["e"]["status"].startswith("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_results(tmp_path: Path, number: int) -> None:
    code = """
import signal, sys
from pathlib import Path
from benchmarks.on_device import Part, run_parts
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background
codes = {"a": "pass", "b": sys.argv[2], "c": "pass"}
parts = [Part(name, ["-c", code], 60, needs_data=False) for name, code in codes.items()]
folder = Path(sys.argv[1])
run_parts(None, parts[:2], parts[2:], out=folder, work=folder, seconds=600.0, side=2)
"""
    args = [sys.executable, "-c", code, tmp_path, GRANDCHILD.format(path=str(tmp_path / "pid"))]
    process = subprocess.Popen(args, cwd=Path(__file__).parents[1])
    results, pid = tmp_path / "results.json", tmp_path / "pid"
    deadline = time.monotonic() + 120
    while not (results.exists() and pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -2)
    found = records.read(results)["results"]
    assert found["a"]["status"] == 0
    assert found["b"]["status"] == "interrupted"
    assert "c" not in found
    assert_ends(int(pid.read_text()))


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        device="cuda",
        dataset="cifar10",
        archive=None,
        data_dir=tmp_path,
        work=tmp_path / "work",
        fast=False,
        seeds=20,
    )


def test_the_parts_of_a_call(options, tmp_path: Path) -> None:
    checks, measurements = on_device.checks(options), on_device.measurements(options)
    names = [each.name for each in (*checks, *measurements)]
    assert len(names) == len(set(names))
    described = re.findall(r"(\w+): ", on_device.__doc__ or "")
    assert {name.partition(" ")[0] for name in names} <= set(described)
    recipe_parts = {e.name: list(map(str, e.command)) for e in checks if "recipe" in e.name}
    checked = set(recipes.RECIPES) - set(on_device.LEFT_OUT)
    assert set(recipe_parts) == {f"recipe {name}" for name in checked}
    for name, command in recipe_parts.items():
        is_whole = name.removeprefix("recipe ") in on_device.MEASURED
        assert ("--epochs" in command) != is_whole
        assert "--compile" in command
    assert on_device.preparation(options) is None
    options.archive = tmp_path / "images.tar.gz"
    assert "import" in on_device.preparation(options).command
    (tmp_path / "cifar10.safetensors").touch()
    assert on_device.preparation(options) is None


def test_reports_are_read_as_far_as_there_are_any(tmp_path: Path) -> None:
    assert on_device.read_runs(tmp_path) == {}
    for i in range(2):
        (tmp_path / f"seed-{i}").mkdir()
        report = {"seed": i, "test_accuracy": 0.25 + i / 2, "confusion": [[1]]}
        (tmp_path / f"seed-{i}/report.json").write_text(json.dumps(report))
        found = on_device.read_runs(tmp_path)
        assert found == {"seed": 0, "test_accuracy": 0.25} or i
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["test_accuracy"]["mean"] == 0.5


def test_digests_are_compared() -> None:
    def results(*digests: str | None) -> dict[str, Any]:
        return {
            f"bits blitz64 {i}": {
                "status": 0,
                "result": {"params_digest": digest} if digest else {},
            }
            for i, digest in enumerate(digests, 1)
        }

    assert on_device.compare_bits(results("a", "a")) == {"blitz64": True}
    assert on_device.compare_bits(results("a", "b")) == {"blitz64": False}
    assert on_device.compare_bits(results(None, None)) == {"blitz64": False}
    assert on_device.compare_bits(results("a")) == {}


def test_every_draw_is_compared(monkeypatch, capsys) -> None:
    monkeypatch.setattr(on_device, "compile_pure", lambda function: function)
    monkeypatch.setitem(on_device.DRAWS, "broken", lambda key, logits: key / logits)
    with pytest.raises(RuntimeError):
        on_device.compare_draws("cpu")
    *_, last = capsys.readouterr().out.splitlines()
    found = on_device.last_line(f"a notice\n{last}\n")
    equal = {"equal": True, "difference": 0.0}
    assert all(found[name] == {"eager": equal, "compiled": equal} for name in found)
    draws = {n for n, f in vars(random).items() if getattr(f, "__module__", "") == "fcifar.random"}
    others = {"key", "common", "row_keys"}  # those without draws, and what ``split`` is made of
    assert {name for name in draws if not name.startswith("_")} - others <= set(found)


# Records -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where records are written."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def made(results: dict[str, Any], **others: Any) -> dict[str, Any]:
    base = {"name": "made", "date": "2000-01-01T00:00:00", "commit": "0" * 40, "config": {}}
    return {**base, "environment": ENVIRONMENT, "results": results, **others}


def test_the_script_measures_and_writes_a_record(folder: Path, monkeypatch, capsys) -> None:
    few = bench.synthetic(8)
    monkeypatch.setattr(bench, "synthetic", lambda: few)
    words = "--network lenet --batch 2 --batch 4 --repetitions 2 --seconds 0 --threads 1 --name few"
    chosen = "--implementation module --implementation fcifar_eager"
    monkeypatch.setattr(sys, "argv", ["steps", *words.split(), *chosen.split()])
    bench_steps.main()
    found = records.read(folder / "few.json")
    assert set(found["results"]) == {"step lenet batch 2 cpu", "step lenet batch 4 cpu"}
    for group in found["results"].values():
        assert set(group) == {"module", "fcifar_eager"}
        assert all(len(figures["seconds"]) == 2 for figures in group.values())
    assert found["config"]["threads"] == found["environment"]["threads"] == 1
    assert found["config"]["recipes"]["lenet"]["name"] == "blitz"
    out = capsys.readouterr().out
    assert "step lenet batch 4 cpu" in out
    assert str(folder / "few.json") in out


def test_a_record_of_pytest_benchmark_keeps_no_name_of_the_machine(folder: Path) -> None:
    seconds = [0.5 + i / 1000 for i in range(1000)]
    document = {
        "machine_info": {"node": "a laptop"},
        "benchmarks": [
            {
                "group": "g",
                "name": "n",
                "stats": {"median": 1.0, "iqr": 0.5, "rounds": 1000, "data": seconds},
                "extra_info": {"first_call_seconds": 2.0},
            }
        ],
    }
    kept = records.from_pytest(document)
    assert "laptop" not in json.dumps(kept)
    assert kept["g"]["n"]["first_call_seconds"] == 2.0
    assert len(kept["g"]["n"]["seconds"]) <= records.MOST_ROUNDS
    assert set(kept["g"]["n"]["seconds"]) <= set(seconds)
    assert records.thin([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"results": []}'])
def test_a_file_that_is_not_a_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="is not a record"):
        records.read(path)


# Changes -----------------------------------------------------------------------------------------

QUIET = [1.00, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01]


def times(factor: float, values: list[float] = QUIET) -> list[float]:
    return [factor * value for value in values]


def compared(old: list[float], new: list[float]) -> compare_records.Comparison:
    (found,) = compare_records.compare(made({"a": {"seconds": old}}), made({"a": {"seconds": new}}))
    return found


def test_what_moved_beyond_noise() -> None:
    assert compared(QUIET, times(1.1)).verdict == "moved"
    assert compared(QUIET, times(0.9)).verdict == "moved"
    assert compared(QUIET, QUIET).verdict == "same"
    assert compared(QUIET, QUIET[::-1]).verdict == "same"
    assert compared(QUIET, times(1.01)).verdict == "same", "less than two percent"
    noisy = [1.0, 2.0, 0.5, 1.5, 0.7, 1.2, 0.9]
    assert compared(noisy, times(1.1, noisy)).verdict == "same", "within its noise"
    assert compared(QUIET[:3], times(2.0, QUIET[:3])).verdict == "too few"


def test_the_interval_holds_the_ratio_and_is_the_same_each_time() -> None:
    found = compared(QUIET, times(1.1))
    assert found.ratio == pytest.approx(1.1)
    assert found.low <= found.ratio <= found.high
    assert compare_records.interval(QUIET, times(1.1)) == (found.low, found.high)
    low, high = compare_records.interval([2.0] * 5, [3.0] * 5)
    assert low == high == 1.5


def test_noise_of_the_machine_cancels_beside_a_reference() -> None:
    mood = [1.0, 1.3, 0.8, 1.1, 1.5, 0.9, 1.2]

    def at(pace: float, ours: float) -> dict[str, Any]:
        figures = {"module": times(pace, mood), "ours": times(pace * ours, mood)}
        return made({"g": {name: {"seconds": values} for name, values in figures.items()}})

    slower = compare_records.compare(at(1.0, 0.5), at(3.0, 0.5))
    assert [c.verdict for c in slower] == ["moved", "moved"]
    (beside,) = compare_records.compare(at(1.0, 0.5), at(3.0, 0.5), relative_to="module")
    assert (beside.name, beside.verdict) == ("g / ours / seconds", "same")
    (better,) = compare_records.compare(at(1.0, 0.5), at(3.0, 0.4), relative_to="module")
    assert better.verdict == "moved"
    assert better.ratio == pytest.approx(0.8)


def test_figures_are_found_wherever_they_are() -> None:
    results = {
        "blitz": [{"seed": 1, "loss": 1.5, "name": "x"}, {"seed": 2, "loss": 1.25, "name": "y"}],
        "seconds": {"ours": [1.0, 2.0], "none": [], "words": ["a"], "switch": [True]},
        "ratio": 2.0,
    }
    assert dict(records.samples(results)) == {
        ("blitz", "seed"): [1, 2],
        ("blitz", "loss"): [1.5, 1.25],
        ("seconds", "ours"): [1.0, 2.0],
    }


def test_what_else_differs_is_said_first(tmp_path: Path, monkeypatch, capsys) -> None:
    old = made({"a": QUIET}, config={"threads": 1})
    new = made({"a": times(2.0)}, config={"threads": 2}, environment={**ENVIRONMENT, "cpu": "B"})
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, values in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(values))
    monkeypatch.setattr(sys, "argv", ["compare_records", *map(str, paths)])
    compare_records.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "environment: cpu was a processor and is B"
    assert lines[1] == "config: threads was 1 and is 2"
    assert lines[2].startswith("moved     +100.0 %")
    assert lines[3] == "1 compared: 1 moved, 0 same, 0 too few"


# Pages -------------------------------------------------------------------------------------------


def step_results() -> dict[str, Any]:
    return {
        f"step {network} batch {batch} cpu": {
            name: {"median_seconds": pace * batch, "seconds": [pace * batch] * 3}
            for name, pace in (("module", 2e-3), ("fcifar_compiled", 1e-3), ("another", 4e-6))
        }
        for network in ("lenet", "conv3")
        for batch in (64, 4)
    }


def test_the_page_has_every_record(tmp_path: Path) -> None:
    group = {"ours": {"median_seconds": 0.1, "seconds": [0.1, 0.1]}, "b": {"median_seconds": 0.2}}
    write_record(tmp_path, "steps", {**step_results(), "a draw": group})
    write_record(tmp_path, "others", {"seconds": {"a": [1.0, 2.0, 3.0], "b": [8.0]}})
    paths = pages.write(tmp_path, tmp_path / "docs")
    assert [path.name for path in paths] == ["README.md", "results.md", "steps-cpu.svg"]
    text = paths[0].read_text()
    assert "| batch | module | fcifar_compiled | another |" in text
    assert "| 4 | 8 ms | 4 ms (2.00x) | 16 us (500.00x) |" in text
    assert text.index("| 4 |") < text.index("| 64 |")
    assert "| b | 200 ms | 0.50x |  |  |" in text
    assert "| seconds / a | 2 | 1.00x | 50 % | 3 |" in text
    assert "| seconds / b | 8 | 0.25x |  | 1 |" in text
    assert "(results/steps-cpu.svg)" in paths[1].read_text()
    assert "a processor, 2 threads; torch 2.15.0; commit 000000000000" in text


def write_record(folder: Path, name: str, results: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(made(results, name=name)))


def test_the_same_records_give_the_same_page(tmp_path: Path) -> None:
    write_record(tmp_path, "steps", step_results())
    once = [path.read_bytes() for path in pages.write(tmp_path, tmp_path / "docs")]
    assert [path.read_bytes() for path in pages.write(tmp_path, tmp_path / "docs")] == once
    assert pages.outdated(tmp_path, tmp_path / "docs") == []


def test_a_page_that_is_behind_its_records_is_named(tmp_path: Path) -> None:
    write_record(tmp_path, "steps", step_results())
    docs = tmp_path / "docs"
    assert pages.outdated(tmp_path, docs) == ["README.md", "results.md", "steps-cpu.svg"]
    pages.write(tmp_path, docs)
    (docs / "results/left-over.svg").write_text("")
    (docs / "results/steps-cpu.svg").write_text("")
    assert pages.outdated(tmp_path, docs) == ["left-over.svg", "steps-cpu.svg"]
    pages.write(tmp_path, docs)
    assert pages.outdated(tmp_path, docs) == []


def test_the_pages_are_up_to_date_with_the_records() -> None:
    assert pages.outdated(records.RESULTS, pages.DOCS) == []


@pytest.mark.parametrize(
    "path", sorted(pages.DOCS.glob("results/*.svg")), ids=lambda path: path.name
)
def test_a_chart_is_small_and_refers_to_nothing_outside(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 100_000
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label")
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert [float(root.get(name, "0")) for name in ("width", "height")] == pytest.approx(
        [width * 4 / 3, height * 4 / 3]
    )
    for each in root.iter():
        if each.tag.endswith("}text"):
            assert 0 < float(each.get("x", "0")) < width
            assert 0 < float(each.get("y", "0")) < height
    ids = {each.get("id") for each in root.iter()}
    references = re.findall(r'href="(.*?)"|url\((.*?)\)', text)
    assert all((first or second).removeprefix("#") in ids for first, second in references)
    assert path.name in (pages.DOCS / "results.md").read_text()


def test_a_chart_has_every_colour_in_light_and_in_dark() -> None:
    row = charts.Row("a < b", [1.0, 2.0], interval=(1.2, 1.8), note="+1")
    svg = charts.draw_rows([row], "a title", "a subtitle", "percent")
    light, dark = re.findall(r"svg \{(.*?)\}", svg)
    for name in ("ink", "soft", "faint", "paper", *(f"c{i}" for i in range(len(COLORS)))):
        (first,), (second,) = (re.findall(f"--{name}: (#.*?);", style) for style in (light, dark))
        assert first != second
    drawn = svg[svg.index("</style>") :]
    assert "#000000" not in drawn
    assert not [color for color in CSS_VARIABLES if color in drawn]
    texts = ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter()]
    assert {"a < b", "+1", "a title", "a subtitle", "percent"} <= set(texts)


def test_ticks_are_round_whether_or_not_the_range_has_powers_of_ten() -> None:
    def labels(points: list[tuple[float, float]]) -> set[str]:
        series = charts.Series("one", points, COLORS[0])
        panel = charts.Panel([series], "", "x", "y", [1.0, 8.0])
        svg = charts.draw_panels([panel], "title", "", width=4.0, height=3.0)
        return {"".join(each.itertext()) for each in ElementTree.fromstring(svg).iter()}

    assert {"1", "8", "20", "500", "1,000"} <= labels([(1, 15), (8, 1200)])
    assert {"0.96", "0.97", "0.98"} <= labels([(1, 0.956), (8, 0.985)])


def test_a_chart_by_another_matplotlib_is_up_to_date(tmp_path: Path) -> None:
    write_record(tmp_path, "steps", step_results())
    (path,) = [p for p in pages.write(tmp_path, tmp_path / "docs") if p.suffix == ".svg"]
    text = path.read_text().replace("</svg>", "<g/></svg>")
    path.write_text(text)
    assert pages.outdated(tmp_path, tmp_path / "docs") == ["steps-cpu.svg"]
    path.write_text(re.sub('data-matplotlib=".*?"', 'data-matplotlib="0.1"', text))
    assert pages.outdated(tmp_path, tmp_path / "docs") == []


def test_a_ratio_on_a_chart_is_that_of_the_record() -> None:
    found = [made(step_results(), name="steps")]
    panels = [sections.step_panel(each) for each in ([s] for s in tables.steps(found[0]))]
    (series,) = [each for each in panels[0].series if each.name == "fcifar, compiled"]
    assert series.points == [(4.0, 2.0)]
    assert panels[0].reference == 1.0
    assert "2 threads" in tables.machine(found[0])


def test_a_page_of_no_records_is_a_page(tmp_path: Path) -> None:
    assert [path.name for path in pages.write(tmp_path, tmp_path)] == ["README.md", "results.md"]


def test_durations_have_three_digits() -> None:
    found = [tables.duration(s) for s in (1.2345e-6, 1.2345e-3, 0.12345, 1.2345, 123.45, 1234.5)]
    assert found == ["1.23 us", "1.23 ms", "123 ms", "1.23 s", "123 s", "1230 s"]


def test_an_ablation_measures_the_average_of_a_variant_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An average changes no step, so that the weights alone would be those without it."""
    digests: list[str] = []
    evaluate = bench_ablation.inference.evaluate

    def watched(*words: Any) -> Any:
        figures, examples = evaluate(*words)
        digests.append(figures["params_digest"])
        return figures, examples

    def uncompiled(recipe: Recipe, dataset: Dataset, seed: int = 0) -> RunConfig:
        return make_config(recipe, dataset, seed=seed, runtime=Runtime(threads=1))

    monkeypatch.setattr(bench_ablation.inference, "evaluate", watched)
    monkeypatch.setattr(bench_ablation, "config_of", uncompiled)
    plain = recipes.get("blitz").replace(epochs=1, valid_fraction=0.5)
    for recipe in (plain, plain, plain.replace(ema_decay=0.9)):
        assert 0 <= bench_ablation.measure(recipe, 0, bench.synthetic(40))["valid_accuracy"] <= 1
    assert digests[0] == digests[1] != digests[2]


def test_the_frontier_has_a_series_for_each_processor() -> None:
    def record(cpu: str) -> dict[str, Any]:
        runs = [{"tta_accuracy": 0.9, "convention_seconds": 100.0}]
        about = {"cpu": cpu, "threads": 2, "devices": ["cpu"], "versions": {"torch": "2.14"}}
        return {
            "name": cpu,
            "environment": about,
            "config": {"recipe": "speed94"},
            "results": {"frontier": {"3": runs, "18": []}},
        }

    section = sections.frontier([record(name) for name in ("first", "second", "third")])
    assert section is not None
    for name in ("first", "second", "third"):
        assert f"| {name} | 3 | 1 | 90.00 % | 100 s |" in section.after
        assert f"{name}: a run" in section.charts[0].svg
