"""The command line: one JSON document, one line for an error, exit codes, signals."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from fcifar import data
from fcifar.cli import output
from fcifar.data import Split, make_dataset


@pytest.fixture(autouse=True)
def root(tmp_path: Path, make_batch) -> Path:
    """A data root with a small set in it."""
    root = tmp_path / "data"
    classes = tuple("abcdefghij")
    tiny = make_dataset(
        "tiny", Split(*make_batch(42, seed=1)), Split(*make_batch(23, seed=2)), classes, "tests"
    )
    data.save(tiny, root)
    return root


TRAIN = ("train", "--dataset", "tiny", "--epochs", 2, "--batch-size", 5, "--threads", 1)


@pytest.mark.figures
def test_train_then_eval(fcifar, tmp_path: Path) -> None:
    done = fcifar(*TRAIN, "--out", "run", "--json", "--device", "cpu")
    assert done.status == 0
    report = json.loads(done.out)
    assert report["run_dir"] == "run"
    assert report["recipe"] == "blitz"
    assert report["steps"] == 18
    plots = {path.stem: path.read_bytes() for path in (tmp_path / "run/plots").iterdir()}
    assert set(plots) == {
        *("learning_curve", "per_class", "training_batch"),
        *("confusion", "reliability", "predictions", "mistakes", "channels"),
    }
    assert all(content.startswith(b"\x89PNG") for content in plots.values())
    measured = json.loads(fcifar("eval", "run", "--json", "--threads", 1, "--device", "cpu").out)
    assert measured["accuracy"] == report["test_accuracy"]
    assert measured["loss"] == report["test_loss"]
    assert measured["params_digest"] == report["params_digest"]
    assert set(measured) >= {"accuracy", "loss", "n", "per_class", "interval95", "params_digest"}
    assert set(measured["per_class"]["a"]) == {"correct", "total", "accuracy"}
    assert measured["confusion"] == report["confusion"]
    assert sum(map(sum, measured["confusion"])) == 23
    on_train = fcifar("eval", "run", "--split", "train", "--json", "--out", "on_train")
    assert json.loads(on_train.out)["n"] == 42
    assert json.loads((tmp_path / "on_train/report.json").read_text()) == json.loads(on_train.out)
    assert (tmp_path / "on_train/confusion.png").exists()
    again = json.loads(fcifar(*TRAIN, "--out", "again", "--json", "--device", "cpu").out)
    assert again["params_digest"] == report["params_digest"]


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    fcifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20261130-185736")
    for _ in range(2):
        assert fcifar(*TRAIN, "--quiet").status == 0
    assert fcifar(*TRAIN, "--quiet", "--replicas", 2).status == 0
    many = fcifar(*TRAIN, "--quiet", "--batch-size", 1000, "--drop-last")
    assert (many.status, many.err.count("\n")) == (2, 1)
    single = "blitz-tiny-seed0-20261130-185736"
    group = "blitz-tiny-2runs-20261130-185736"
    assert {run.name for run in (tmp_path / "runs").iterdir()} == {single, f"{single}-2", group}
    both = [
        json.loads((tmp_path / "runs" / n / "report.json").read_text())
        for n in (single, f"{single}-2")
    ]
    assert both[0]["params_digest"] == both[1]["params_digest"]


def test_a_mistake_leaves_no_folder_behind(fcifar, tmp_path: Path) -> None:
    assert fcifar(*TRAIN, "--batch-size", 1000, "--drop-last").status == 2
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    assert fcifar(*TRAIN, "--batch-size", 1000, "--drop-last").status == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_people_read_results_on_stdout_and_progress_on_stderr(fcifar) -> None:
    done = fcifar(*TRAIN, "--out", "run", "--log-every", 9)
    assert re.search(r"test accuracy +\d+\.\d\d % of 23 \(95 % interval", done.out)
    assert "epoch   1.00  step        9  training    loss" in done.err
    assert "\x1b" not in done.out + done.err, "no colours into a pipe"
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert fcifar(*TRAIN, "--out", "quiet", "--quiet").err == ""
    table = fcifar("eval", "run").out
    assert "accuracy" in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_micro_batches_sam_and_a_schedule_free_optimizer_together(fcifar, tmp_path: Path) -> None:
    """A run of all three reproduces, and its model is the one that is evaluated."""
    words = ["--micro-batch", 2, "--sam-rho", 0.05, "--optimizer", "schedule_free", "--lr", 0.3]
    done = fcifar(*TRAIN, *words, "--momentum", 0, "--out", "run", "--json")
    assert done.status == 0, done.err
    recipe = json.loads((tmp_path / "run/manifest.json").read_text())["recipe"]
    assert (recipe["micro_batch"], recipe["sam_rho"]) == (2, 0.05)
    again = fcifar("reproduce", "run", "--json")
    assert json.loads(again.out)["identical"], again.err
    report, evaluated = json.loads(done.out), json.loads(fcifar("eval", "run", "--json").out)
    assert evaluated["params_digest"] == report["params_digest"]
    assert evaluated["loss"] == pytest.approx(report["test_loss"], rel=1e-5)


def test_overrides_reach_the_run(fcifar, tmp_path: Path) -> None:
    words = {
        "--lr": 0.01,
        "--momentum": 0.5,
        "--nesterov": None,
        "--weight-decay": 0.1,
        "--clip-norm": 2.0,
        "--dp-clip": 1.5,
        "--dp-noise": 0.25,
        "--schedule": "cosine",
        "--warmup-steps": 3,
        "--drop-last": None,
        "--log-every": 7,
        "--optimizer": "sgd",
        "--seed": 9,
        "--precision": "bf16",
        "--fast": None,
        "--augment": "random_flip,random_crop:4",
        "--valid-fraction": 0.25,
        "--stratify": None,
        "--patience": 4,
        "--restore-best": None,
        "--micro-batch": 3,
        "--hidden": 32,
        "--dropout": 0.1,
    }
    flat = [w for pair in words.items() for w in pair if w is not None]
    assert fcifar(*TRAIN, *flat, "--out", "run").status == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    expected = {
        "learning_rate": 0.01,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.1,
        "clip_norm": 2.0,
        "dp_clip": 1.5,
        "dp_noise": 0.25,
        "micro_batch": 3,
        "schedule": "cosine",
        "warmup_steps": 3,
        "drop_last": True,
        "log_every": 7,
        "batch_size": 5,
        "epochs": 2,
        "augment": ["random_flip", "random_crop:4"],
        "valid_fraction": 0.25,
        "stratify": True,
        "patience": 4,
        "restore_best": True,
        "model_options": {"hidden": 32, "dropout": 0.1},
    }
    assert {name: manifest["recipe"][name] for name in expected} == expected
    runtime = manifest["runtime"]
    assert (runtime["precision"], runtime["deterministic"]) == ("bf16", False)
    assert manifest["seed"] == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "blits"), "no recipe 'blits'; there is blitz"),
        (("train", "--dataset", "nope"), "there is no data set 'nope'"),
        (("train", "--dataset", "../x"), "cannot name a data set"),
        ((*TRAIN, "--epochs", "0"), "epochs is 0; it must be a whole number from 1 up"),
        ((*TRAIN, "--epochs", 10**30), "whole number from 1 up to 1,000,000,000"),
        ((*TRAIN, "--hidden", 10**9), "at most 200,000,000 are accepted"),
        ((*TRAIN, "--hidden", -1), "hidden is -1; it must be a whole number from 1 up"),
        ((*TRAIN, "--device", "cpu:"), "must be auto, cpu"),
        ((*TRAIN, "--out", "run\udcff"), "'run\\udcff' is not UTF-8"),
        (("data", "list", "--data-dir", "data\udcff"), "'data\\udcff' is not UTF-8"),
        (("data", "preview", "tiny", "--seed", 2**32), "--seed is 4294967296; it must lie in"),
        (("data", "preview", "tiny", "--out", ""), "is a directory"),
        (("data", "fetch", "--url", "file:///dev/null"), "must begin with http:// or https://"),
        (("eval", "\x1b[31m"), "there is no \N{REPLACEMENT CHARACTER}[31m"),
        (("eval", ":smile:"), "there is no :smile:"),
        ((*TRAIN, "--lr", "nan"), "--lr is nan"),
        ((*TRAIN, "--momentum", "1"), "must lie in [0, 1)"),
        ((*TRAIN, "--optimizer", "lion"), "one of sgd, adam, adamw"),
        ((*TRAIN, "--optimizer", "adam"), "momentum needs the optimizer sgd or muon, not adam"),
        ((*TRAIN, "--seed", "-3000000000"), "--seed is -3000000000"),
        (
            (*TRAIN, "--augment", "random_crop:32"),
            "needs a padding less than the image size [32, 32]",
        ),
        ((*TRAIN, "--augment", "reflect_crop:40"), "augment is reflect_crop:40: random_crop needs"),
        ((*TRAIN, "--patience", "3"), "--patience needs validation images; give --valid-fraction"),
        ((*TRAIN, "--augment", "flop"), "augment is 'flop'; it must be one of random_flip"),
        ((*TRAIN, "--dropout", "1"), "dropout is 1.0; it must lie in [0, 1)"),
        (
            ("train", "conv3-aug", "--dataset", "tiny", "--hidden", "9"),
            "the options --dropout=0.25, --hidden=9 do not fit the model conv3, which takes",
        ),
        (("train", "tiny"), "tiny is a data set and no recipe; give --dataset tiny"),
        (("train", "cifar100"), "cifar100 is a data set and no recipe"),
        ((*TRAIN, "--batch-size", "100"), "has 42 training images"),
        ((*TRAIN, "--device", "tpu"), "must be auto, cpu"),
        ((*TRAIN, "--precision", "fp16"), "fp32, bf16"),
        ((*TRAIN, "--batch-size", "many"), "--batch-size is 'many'; it must be a whole number"),
        ((*TRAIN, "--batch-size", "1.5"), "--batch-size is '1.5'; it must be a whole number"),
        ((*TRAIN, "--max-epochs", ""), "--epochs is ''; it must be a whole number"),
        ((*TRAIN, "--lr", "abc"), "--lr is 'abc'; it must be a number"),
        ((*TRAIN, "--threads", "\udcff"), "--threads is '\\udcff'; it must be UTF-8 text"),
        (("bench", "--seconds", "1m"), "--seconds is '1m'; it must be a whole number"),
        (("reproduce", "data", "--until", "x"), "--until is 'x'; it must be a whole number"),
        (("eval",), "Missing argument 'RUN'; fcifar eval --help shows what it takes"),
        (("train", "a", "b"), "extra argument(s) (b); fcifar train --help shows"),
        (("train", "--frobnicate"), "No such option"),
        (("train", "--resume", "nowhere"), "there is no nowhere, and no run of that name in runs"),
        (("eval", "nowhere"), "there is no nowhere"),
        (("recipes", "show", "blits"), "no recipe 'blits'"),
        (("data", "import", "nowhere.zip"), "nowhere.zip"),
        (("data", "info", "nope"), "there is no data set 'nope'"),
        (("frobnicate",), "No such command 'frobnicate'; fcifar --help shows what it takes"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(fcifar, tmp_path, words, message) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = fcifar(*words)
    assert done.status == 2
    assert done.out == ""
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_more_threads_than_cores_are_taken_with_a_note(fcifar, monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    words = ("train", "--dataset", "nope", "--threads")
    assert "--threads is 3, and this machine has 2 cores: it will be slow" in fcifar(*words, 3).err
    assert "--threads" not in fcifar(*words, 2).err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_gpu(fcifar) -> None:
    done = fcifar("train", "--compile", "--device", "cuda")
    assert done.status == 2
    assert "finds no CUDA device; use --device cpu" in done.err
    assert done.err.count("\n") == 1


def test_compile_without_a_compiler(fcifar, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = fcifar(*TRAIN, "--compile", "--device", "cpu")
    assert done.status == 2
    assert "'no-such-compiler' is not on this machine; install one" in done.err
    assert done.err.count("\n") == 1


def test_no_network_names_the_ways_on(fcifar, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    done = fcifar("train")
    assert done.status == 1
    assert done.err.count("error: ") == 1
    assert "--dataset shapes10" in done.err.splitlines()[-1]
    assert "fcifar data import" in done.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_damaged_data_set_is_exit_code_1(fcifar, root: Path) -> None:
    file = root / "tiny.safetensors"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    done = fcifar(*TRAIN)
    assert done.status == 1
    assert "is damaged: its content has digest" in done.err
    assert fcifar("data", "verify", "tiny").status == 1
    file.write_bytes(content[:1000])
    assert fcifar(*TRAIN).status == 1


def test_an_error_of_the_system_is_one_line_and_exit_code_1(fcifar) -> None:
    done = fcifar("eval", "x" * 5000)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("error: File name too long: xxx")
    assert len(done.err) < 500


def test_debug_adds_the_traceback(fcifar) -> None:
    assert "Traceback" in fcifar("train", "blits", "--debug").err
    assert "Traceback" not in fcifar("train", "blits").err


@pytest.mark.figures
def test_resume_takes_its_settings_from_the_run(fcifar, tmp_path: Path) -> None:
    trained = fcifar(*TRAIN, "--out", "run", "--device", "cpu", "--json")
    plots = tmp_path / "run" / "plots"
    (plots / "confusion.png").unlink()
    again = fcifar("train", "--resume", "run", "--json")
    assert "run is already finished" in again.err
    assert json.loads(again.out) == json.loads(trained.out)
    assert (plots / "confusion.png").exists(), "as after a crash while they were drawn"
    (tmp_path / "run/report.json").unlink()
    done = fcifar("train", "--resume", "run", "--lr", "9", "--seed", "3", "blitz")
    assert done.status == 2
    assert "--lr, --seed, RECIPE would change them" in done.err
    assert fcifar("train", "--resume", "run", "--json").status == 0


def test_resume_with_more_epochs_goes_on_after_the_end(fcifar, tmp_path: Path) -> None:
    """``TRAIN`` has two epochs; the run is then the one of three."""
    fcifar(*TRAIN, "--out", "run", "--device", "cpu")
    fewer = fcifar("train", "--resume", "run", "--epochs", "2")
    assert (fewer.status, fewer.out) == (2, "")
    assert "--epochs is 2, and run has 2 epochs; with --resume, give a larger" in fewer.err
    longer = json.loads(fcifar("train", "--resume", "run", "--epochs", "3", "--json").out)
    whole = fcifar(*TRAIN, "--epochs", "3", "--out", "whole", "--device", "cpu", "--json")
    assert longer["epochs"] == 3
    assert longer["params_digest"] == json.loads(whole.out)["params_digest"]
    assert fcifar("verify", "run").status == 0
    assert fcifar("reproduce", "run").status == 0
    fcifar(*TRAIN, "--replicas", "2", "--out", "group", "--device", "cpu")
    refused = fcifar("train", "--resume", "group", "--epochs", "3")
    assert "group is a group of runs" in refused.err
    refused = fcifar("train", "--resume", "group/seed0", "--epochs", "3")
    assert "group/seed0 belongs to a group" in refused.err


def test_resume_refuses_other_data(fcifar, root: Path, tmp_path: Path, make_batch) -> None:
    fcifar(*TRAIN, "--out", "run")
    (tmp_path / "run/report.json").unlink()
    other = Split(*make_batch(42, seed=3))
    data.save(make_dataset("tiny", other, other, tuple("abcdefghij"), "others"), root)
    done = fcifar("train", "--resume", "run")
    assert done.status == 2
    assert "is not the one that run began with" in done.err


def test_classes_without_training_images_are_named(fcifar, root: Path, make_batch) -> None:
    """As after an import of the wrong folder."""
    images, test = make_batch(42)[0], Split(*make_batch(23))
    for name, modulo in (("partial", 3), ("whole", 10)):
        train = Split(images, torch.arange(42) % modulo)
        data.save(make_dataset(name, train, test, tuple("abcdefghij"), "tests"), root)
    note = "no training images of 7 of 10 classes: d, e, f, g, h, i, j\n"
    assert note in fcifar(*TRAIN, "--dataset", "partial", "--out", "one").err
    assert "no training" not in fcifar("train", "--resume", "one", "--epochs", "3").err
    assert "no training" not in fcifar(*TRAIN, "--dataset", "whole", "--out", "two").err


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signals_end_a_run_that_can_go_on(
    signum: signal.Signals, fcifar, root: Path, tmp_path: Path
) -> None:
    """In a process of its own: interrupted, it says how to resume, and resumed it ends the same."""
    if signal.getsignal(signum) == signal.SIG_IGN:
        pytest.skip("whoever started the tests has this signal ignored, and so do we")
    command = [sys.executable, "-m", "fcifar", *map(str, TRAIN), "--device", "cpu", "--json"]
    command += ["--epochs", "25", "--log-every", "9"]
    environment = {**os.environ, "FCIFAR_DATA": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out", "run"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, err
    assert "resume with: fcifar train --resume run" in err.splitlines()[-1]
    assert json.loads(out)["interrupted"] is True

    resumed = fcifar("train", "--resume", "run", "--json")
    whole = fcifar(*command[3:], "--out", "whole")
    digests = {json.loads(done.out)["params_digest"] for done in (resumed, whole)}
    assert len(digests) == 1


def test_restarts_need_a_fixed_run_directory(
    fcifar, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable of torchrun; tests/runs/test_torchrun.py starts it."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    done = fcifar(*TRAIN)
    assert done.status == 2
    assert "torchrun --max-restarts needs a fixed run" in done.err
    assert "add --out" in done.err
    assert not (root.parent / "runs").exists()


def test_data_commands(fcifar, root: Path, tmp_path: Path) -> None:
    listed = json.loads(fcifar("data", "list", "--json").out)
    assert [entry["name"] for entry in listed] == ["shapes10", "tiny"]
    assert "built in" in fcifar("data", "list").out
    info = json.loads(fcifar("data", "info", "tiny", "--json").out)
    assert sum(info["train_counts"]) == 42
    assert "42 + 23" in fcifar("data", "info", "tiny").out
    assert json.loads(fcifar("data", "verify", "tiny", "--json").out)["intact"] is True
    assert fcifar("data", "preview", "tiny", "--out", "grid.png").status == 0
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    tiny = data.load("tiny", root)
    import numpy as np

    np.savez(tmp_path / "x.npz", **{k: v.numpy() for k, v in tiny._asdict().items() if "_" in k})
    imported = json.loads(fcifar("data", "import", "x.npz", "--name", "copy", "--json").out)
    assert (imported["train"], imported["test"]) == (42, 23)
    refused = fcifar("data", "import", "x.npz", "--name", "copy")
    assert refused.status == 2
    assert "--force" in refused.err
    assert fcifar("data", "import", "x.npz", "--name", "copy", "--force").status == 0


def test_the_folder_of_data_sets_is_shown_as_it_is_called(fcifar) -> None:
    assert "odd [red] :smile: \N{REPLACEMENT CHARACTER}[31m" in (
        fcifar("data", "list", "--data-dir", "odd [red] :smile: \x1b[31m").out
    )


def test_about(fcifar) -> None:
    from fcifar import __version__

    assert fcifar("--version").out == f"fcifar {__version__}\n"
    assert "blitz" in fcifar("recipes").out
    assert json.loads(fcifar("recipes", "--json").out)[0]["name"] == "blitz"
    assert json.loads(fcifar("recipes", "show", "blitz", "--json").out)["batch_size"] == 4
    environment = json.loads(fcifar("env", "--json").out)
    assert environment["versions"]["fcifar"] == __version__
    assert "torch" in fcifar("env").out
    for words in ((), ("train",), ("eval",), ("data",), ("recipes",)):
        shown = fcifar(*words, "--help")
        assert shown.status == 0
        assert all(len(line) <= 80 for line in shown.out.splitlines())


def test_without_a_command_it_lists_them(fcifar) -> None:
    for words in ((), ("data",)):
        done = fcifar(*words)
        assert done.status == 2
        assert "Commands" in done.out
        assert done.err == "error: a command is missing; give one of those above\n"


def test_a_count_without_an_end_shows_in_a_terminal(monkeypatch) -> None:
    from fcifar.cli import progress

    console = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(output, "stderr", console)
    with progress.counting(quiet=False) as count:
        count("storing", 0, 0)
        count("decoding", 30, 60_000)
        time.sleep(0.5)
        frames = console.export_text(clear=False)
    assert "storing" in frames
    assert "30/60000" in frames


def test_the_bar_fits_a_terminal_of_80_columns(monkeypatch) -> None:
    from fcifar.cli import progress
    from fcifar.train.events import Advanced, Preparing

    console = Console(force_terminal=True, width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(output, "stderr", console)
    with progress.training(quiet=False) as observe:
        observe(Preparing("compiling"))
        observe(Advanced(123_456, 1_000_000, 100, 100, 2.345, 0.1234, 12_345.0))
        observe(Advanced(123_456, 1_000_000, 100, 100, float("nan"), float("nan"), 12_345.0))
        time.sleep(0.5)  # the bar is drawn a few times a second
        frames = console.export_text(clear=False)
    frame = frames[frames.rindex("epoch 100/100") :].rstrip()
    assert len(frame) <= 80
    assert "loss 2.345 acc 12.3 % 12,345 img/s" in frame


# Letters that a terminal does not know ------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "e"), [("cp1252", "é"), pytest.param("ascii", r"\xe9", marks=pytest.mark.slow)]
)
def test_what_stdout_cannot_encode_is_an_escape(
    fcifar, root: Path, tmp_path: Path, make_batch, monkeypatch, encoding: str, e: str
) -> None:
    """And tables have their columns, files their names, and JSON all of it."""
    classes = ("猫", "é", *"abcdefgh")
    data.save(make_dataset("odd", *[Split(*make_batch(20))] * 2, classes, "猫"), root)

    def run(*words: object, status: int = 0) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            done = fcifar(*words)
        stream.flush()
        out = stream.buffer.getvalue().decode(encoding)
        assert done.status == status, done.err
        assert "Traceback" not in done.err
        return out

    cat, quiet = r"\u732b", ("--quiet", "--device", "cpu", "--threads", 1)
    trained = run(*TRAIN, "--dataset", "odd", "--out", "猫")
    evaluated = run("eval", "猫", *quiet, "--per-example", "猫.csv")
    for shown in (trained, evaluated):
        rows = shown.split("\n\n")[0].splitlines()
        assert {cat, e} <= {row.split()[0] for row in rows}
        assert len({len(row) for row in rows}) == 1, "the columns fit"
    Image.new("RGB", (32, 32)).save(tmp_path / "猫.png")
    assert f"{cat}.png" in run("predict", "猫", "猫.png", *quiet)
    assert cat in run("report", "猫", "--quiet")
    assert cat in run("report", "猫", "--html", "猫.html", "--quiet")
    assert cat in run("compare", "猫", "猫", *quiet)
    assert cat in run("export", "猫", "--to", "猫.pth", "--quiet")
    assert cat in run("data", "info", "odd")
    assert cat in run("data", "list")
    assert cat in run("data", "preview", "odd", "--out", "猫p.png")
    assert cat in run("runs", "list", "--runs-dir", ".")
    assert cat in run("runs", "show", "猫")
    assert cat in run("verify", "猫")
    run("--help")
    run("train", "--dataset", "猫", status=2)
    run("eval", "犬", status=2)
    for words in (("eval", "猫", *quiet), ("data", "info", "odd"), ("report", "猫")):
        assert "猫" in json.dumps(json.loads(run(*words, "--json")), ensure_ascii=False)
    assert "猫" in (tmp_path / "猫.csv").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "猫/report.json").read_text(encoding="utf-8"))
    assert list(report["per_class"]) == list(classes)
