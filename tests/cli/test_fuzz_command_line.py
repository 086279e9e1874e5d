"""Whatever is typed: done, or one line that begins with "error:", and nothing left lying about.

Commands and options are read off the command line itself, so that a new one is covered unasked.
"""

import contextlib
import functools
import io
import os
import shutil
import signal
import socket
import stat
import sys
import types
import typing
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from fcifar import cli, data, random, recipes
from fcifar.bench import bench
from fcifar.data import Dataset, Split, make_dataset, shapes10
from fcifar.export import exporting
from fcifar.io import PARTIAL, replacing
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.report import draw
from fcifar.report.figures import canvas, grids
from fcifar.report.page import blocks
from fcifar.train import environment, loop, signals
from fcifar.train import evaluate as measuring
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime

STOPPED = 128 + signal.SIGTERM
ANSWERS = ("verify", "reproduce")  # commands whose status is an answer: 1 for no
NAMES = ("tiny", "other", "shapes10")
ODD, NOT_UTF8 = "odd\n\x1b[31m", "\udcff"  # names of files that are there
BUILT_IN = "shapes10.safetensors"  # drawn when it is first asked for, whatever comes of the rest


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


# What the command line offers ---------------------------------------------------------------------


class Parameter(NamedTuple):
    """An option (with its words) or an argument (without) of a command."""

    name: str
    words: tuple[str, ...]
    kind: type
    is_flag: bool


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command by its words, groups included."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def parameters(command: Any) -> list[Parameter]:
    hints = typing.get_type_hints(command.callback) if command.callback else {}
    return [
        Parameter(
            p.name,
            (*p.opts, *p.secondary_opts) if is_option else (),
            _kind(hints[p.name]),
            is_option and p.is_flag,
        )
        for p in command.params
        for is_option in [p.param_type_name == "option"]
    ]


def _kind(hint: Any) -> type:
    """``int`` of ``int | None``, and ``Path`` of ``list[Path]``."""
    inside = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return inside[0] if inside else hint


COMMANDS = {
    path: parameters(command) for path, command in commands(typer.main.get_command(cli.app))
}
HOSTILE = [
    (path, parameter)
    for path, available in COMMANDS.items()
    for parameter in available
    if not parameter.is_flag
]
# What a command is given where nothing hostile is. The last word for an option counts.
USUAL: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train",): (
        *("--dataset", "tiny", "--epochs", "1", "--device", "cpu", "--threads", "1"),
        "--no-compile",
    ),
    ("bench",): ("--device", "cpu"),
    ("export",): ("--to", "new.pth"),
    ("report",): ("--html", "new.html"),
    ("influence",): ("--image", "0"),
    ("labels",): ("--runs", "run0"),  # which held out nothing; to train folds takes seconds
}
USUAL_ARGUMENTS = {
    "recipe": ("blitz",),
    "run": ("run0",),
    "runs": ("run0", "run1"),
    "images": ("pictures",),
    "source": ("set.npz",),
    "name": ("tiny",),
}
USUAL_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("recipes", "show"): ("blitz",),
    ("data", "fetch"): ("cifar10",),
    ("labels",): ("tiny",),
}
# There is no network, two groups of commands are none, and stdin is not a terminal.
UNUSUAL = {
    **dict.fromkeys((("data", "fetch"), ("lr-find",)), 1),
    **dict.fromkeys((("data",), ("runs",), ("cache",), ("runs", "rm"), ("labels",)), 2),
}


# What is typed ------------------------------------------------------------------------------------

# Whatever the system hands over: no NUL, and bytes that are not UTF-8 as lone surrogates. No slash,
# for the test shall write nowhere but in a folder of its own.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0/") | st.sampled_from(
    "\udc80\udcff"
)
TEXTS = st.text(LETTERS, max_size=6) | st.sampled_from(
    (
        *("", " ", "-", "--", "-1", "=", "%s", "{}", "none", "null", "[red]", ":smile:"),
        *("x" * 300, "x" * 5000, "\x1b[31m", "a\nb", "\u202e", "\udcff\udcfe"),
    )
)
NUMBERS = st.integers(-10, 300).map(str) | st.sampled_from(
    (
        *("nan", "inf", "-inf", "-0.0", "0", "1", "2", "-1", "-2", "0.5", "1.0", "1,5", "True"),
        *("1e-400", "1e-30", "1e30", "1e31", "1e400", "1_0", "0x10", "٣", "²", "1000000"),
        *("1000000000", "1000000001", "2147483648", "4294967295", "4294967296", "-2147483648"),
        *("-2147483649", "9223372036854775808", "1" + "0" * 30, "-1" + "0" * 30, "9" * 5000),
    )
)
PATHS = st.sampled_from(
    (
        *("", ".", "..", "~", "nowhere", "folder", "file.txt", "file.txt/below", "new.png"),
        *("folder/new/er.png", "link", "loop", "pictures", "pictures/0.png", "set.npz"),
        *("run0", "run0/final.safetensors", "run0/manifest.json", "run1/", "stopped"),
        *("net.pth", "module.pth"),
        *(
            "data",
            "data/tiny.safetensors",
            "../outside",
            ODD,
            f"{ODD}.png",
            NOT_UTF8,
            f"{NOT_UTF8}.png",
        ),
        # No device: whoever runs the tests may have the right to replace one.
        *("/proc/nowhere", "/proc/nowhere/below"),
        *("x" * 255, "x" * 256, "x" * 5000, "x/" * 3000),
    )
)
BY_KIND: dict[Any, st.SearchStrategy[str]] = {
    int: NUMBERS | TEXTS,
    float: NUMBERS | TEXTS,
    str: TEXTS | NUMBERS,
    list[str]: TEXTS | NUMBERS,
    list[Path]: PATHS | TEXTS,
    Path: PATHS | TEXTS,
}
BY_NAME: dict[str, st.SearchStrategy[str]] = {
    "dataset": st.sampled_from(("tiny", "other", "TINY", "cifar10", "shapes10", "../tiny", "a/b")),
    "name": st.sampled_from(("tiny", "other", "shapes10", "cifar10", "../tiny", "a.b", "blitz")),
    "recipe": st.sampled_from((*(r.name for r in TUTORIALS), "Blitz", "blitz ")),
    "optimizer": st.sampled_from(("sgd", "adam", "adamw", "Adam")),
    "schedule": st.sampled_from(("constant", "linear", "cosine", "step")),
    "split": st.sampled_from(("test", "train", "valid", "Test")),
    "precision": st.sampled_from(("fp32", "bf16", "fp16")),
    "device": st.sampled_from(
        (
            *("auto", "cpu", "CPU", "cpu:", "cpu:0", ":", "mps", "mps:0", "meta", "tpu"),
            *("cuda", "cuda:", "cuda:0", "cuda:99999999999", "cuda:-1", "cuda:٣", "cuda:²"),
            *("cuda:01", "cuda:" + "9" * 5000),
        )
    ),
    "augment": st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from((*recipes.AUGMENTS, "none", "", "flop")),
            st.sampled_from(("", ":", "::", "=")),
            st.just("") | NUMBERS,
        ),
        max_size=3,
    ).map(",".join),
    "per_example": st.sampled_from(
        ("new.csv", "folder/new/er.NPZ", "new.parquet", "file.txt/below.csv", f"{NOT_UTF8}.npz")
    ),
    # The other forms take seconds.
    "to": st.sampled_from(
        (
            *("new.safetensors", "new.CSV", "folder/new/er.pth", "net.pth", "new.h5"),
            *("file.txt/below.pth", f"{NOT_UTF8}.pth", "loop/below.csv"),
        )
    ),
    "model": st.sampled_from(("lenet", "conv3", "LeNet")),
    "tta": st.sampled_from(("none", "mirror", "translate", "Mirror")),
    "resize": st.sampled_from(("crop", "stretch", "Crop")),
    "labels": st.sampled_from(("fine", "coarse", "Fine")),
    "changes": st.builds(
        "{}{}{}".format,
        st.sampled_from((*recipes.to_dict(recipes.get("blitz")), "widths", "hidden", "", "x")),
        st.sampled_from(("=", "==", "")),
        TEXTS | NUMBERS,
    ),
    "url": st.sampled_from(
        (
            *("http://", "http://[::1", "http://nowhere.invalid/a", "https://nowhere.invalid"),
            *("http://x:port/", "http://nowhere.invalid/a b\n", "ftp://x", "gopher://x/y"),
            *("file:///proc/nowhere", "file:", "data:,x"),
        )
    ),
    "md5": st.sampled_from(("d41d8cd98f00b204e9800998ecf8427e", "0" * 32)),
    "corrupt": st.sampled_from(("fog:1", "fog:0", "snow:6", "fog,snow:2", "Fog", ":1", "fog:")),
    "attack": st.sampled_from(
        ("fgsm:8/255", "fgsm:1/0", "fgsm", "pgd:0.1,1", "pgd:0.1,1,l2", "pgd:-1", "pgd:,", "cw:1")
    ),
    "explain": st.sampled_from(("gradient", "grad_cam", "gradient,", "Gradient")),
    "against": st.sampled_from(("same", "eager", "threads=2", "threads=0", "threads=", "x=1", ",")),
    "image": st.sampled_from(("0", "0,1", "-1", "9" * 30, "0,", "1-2")),
    "fold": st.sampled_from(("1/2", "2/1", "0/2", "1/0", "1/9" + "9" * 30, "1", "/", "1/2/3")),
    "checkpoint_every": st.sampled_from(("1", "5min", "30s", "0s", "1e9h", "-1s", "infs", "s")),
}


def values(parameter: Parameter) -> st.SearchStrategy[str]:
    return BY_KIND[parameter.kind] | BY_NAME.get(parameter.name, st.nothing())


def request(path: tuple[str, ...], given: Sequence[tuple[Parameter, str]]) -> list[str]:
    """A whole command line: the usual words, options as given, then arguments."""
    words = [*path, *USUAL.get(path, ())]
    arguments = {
        p.name: USUAL_NAMES.get(path, USUAL_ARGUMENTS.get(p.name, ("nowhere",)))
        for p in COMMANDS[path]
        if not p.words
    }
    for parameter, value in given:
        if parameter.words:
            words.append(value if parameter.is_flag else f"{parameter.words[0]}={value}")
        elif parameter.name in ("runs", "images"):
            arguments[parameter.name] = (*arguments[parameter.name], value)
        else:
            arguments[parameter.name] = (value,)
    return [*words, *(["--"] if arguments else []), *(w for a in arguments.values() for w in a)]


@st.composite
def several(draw: st.DrawFn, path: tuple[str, ...]) -> list[str]:
    """A request with up to six hostile words for different options, flags among them."""
    available = [p for p in COMMANDS[path] if p.name != "debug"]  # which shows a traceback
    chosen = draw(st.permutations(available))[: draw(st.integers(0, 6))]
    return request(
        path, [(p, draw(st.sampled_from(p.words) if p.is_flag else values(p))) for p in chosen]
    )


KNOWN_WORDS = sorted(
    {word for path in COMMANDS for word in path}
    | {word for available in COMMANDS.values() for p in available for word in p.words}
    | {"tiny", "blitz", "run0", "--version", "--help", "-h", "--", "1"}
)
ANY_WORDS = st.lists(
    (st.sampled_from(KNOWN_WORDS) | TEXTS).filter(lambda word: word != "--debug"), max_size=5
)


# Where it is typed --------------------------------------------------------------------------------


def make_set(name: str, sizes: tuple[int, int], classes: Sequence[str]) -> Dataset:
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate(sizes)
        for labels in [torch.arange(size) % len(classes)]
    )
    return make_dataset(name, train, test, tuple(classes), "tests")


def fill(place: Path) -> None:
    """Data sets, two runs and one that was stopped, pictures, and things that are no such thing."""
    tiny = make_set("tiny", (8, 4), "ab")
    data.save(tiny, place / "data")
    data.save(make_set("other", (6, 3), "abc"), place / "data")
    recipe = recipes.get("blitz").replace(epochs=1)
    config = make_config(recipe, tiny, runtime=Runtime(threads=1))
    for name in ("run0", "run1"):
        loop.train(place / name, config, tiny)
    loop.train(place / "stopped", config, tiny, stop=lambda: signal.SIGTERM)
    (place / "pictures").mkdir()
    for row, image in enumerate(tiny.test_images[:2]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"pictures/{row}.png")
    values = load_file(place / "run0/final.safetensors")
    torch.save(values, place / "net.pth")
    torch.save(torch.nn.Linear(1, 1), place / "module.pth")
    arrays = {k: v.numpy() for k, v in tiny._asdict().items() if "_" in k}
    np.savez(place / "set.npz", **arrays)
    for name in (ODD, NOT_UTF8):
        shutil.copy(place / "pictures/0.png", place / f"{name}.png")
        (place / name).symlink_to("run0")
    (place / "folder").mkdir()
    (place / "file.txt").write_text("hello")
    (place / "link").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")


def tree_of(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of each file and link below, and None for a folder."""
    found: dict[str, tuple[int, int] | None] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            about = os.lstat(path)
            is_folder = stat.S_ISDIR(about.st_mode)
            found[os.path.relpath(path, folder)] = (
                None if is_folder else (about.st_size, about.st_mtime_ns)
            )
    return found


def empty(folder: Path, but: Path | None = None) -> None:
    """Remove everything in a folder but the folder itself, which may be the working directory."""
    for path in set(folder.iterdir()) - {but}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def stopping_after(steps: int) -> Generator[Callable[[], int | None]]:
    """As ``catching_signals``, with a SIGTERM that comes by itself."""
    asked = iter(range(steps))
    yield lambda: signal.SIGTERM if next(asked, None) is None else None


def draw_nothing(*_: Any, **__: Any) -> None:
    """Instead of pictures, which take seconds and have tests of their own."""


def measure_nothing(work: Any, makes: Any, *_: Any, **__: Any) -> dict[str, dict[str, float]]:
    """Instead of timing, which takes as long as it is told to."""
    names = ("median_seconds", "images_per_second", "times_module", "spread", "first_call_seconds")
    return {name: dict.fromkeys(names, 1.0) for name in makes}


def save_something(drawn: Any, path: Path) -> Path:
    with replacing(path) as temporary:
        temporary.write_bytes(b"an image")
    return path


Fcifar = Callable[[Sequence[str]], Outcome]


@pytest.fixture(scope="module")
def fcifar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fcifar]:
    """Types words in a folder that is always the same, and checks what every request promises."""
    place = tmp_path_factory.mktemp("fuzz")
    fresh, here = place / "fresh", place / "here/inner"
    whole_command = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        # First, for the runs to be reproduced: on some processors, how an image is rounded depends
        # on how many there are.
        patch.setitem(measuring.evaluate.__wrapped__.__kwdefaults__, "batch_size", 4)
        fill(fresh)
        shutil.copytree(fresh, here, symlinks=True)
        before = tree_of(here.parent)
        known = environment.describe()
        patch.chdir(here)
        patch.setenv("FCIFAR_DATA", str(here / "data"))
        patch.delenv("FCIFAR_RUNS", raising=False)
        patch.setenv("COLUMNS", "80")
        patch.setenv("CXX", "no-such-compiler")  # so that --compile is refused
        # No network, no threads, no pictures; nothing slow.
        patch.setattr(socket, "getaddrinfo", mock.Mock(side_effect=socket.gaierror("no network")))
        patch.setattr(torch, "set_num_threads", draw_nothing)
        patch.setattr(exporting, "CHECKED", 4)
        patch.setattr(os, "fsync", draw_nothing)
        patch.setattr(typer.main, "get_command", whole_command)
        patch.setattr(environment, "describe", lambda models=(): known)
        patch.setattr(environment, "git_commit", draw_nothing)
        small = functools.partial(shapes10.generate, train_size=8, test_size=4)
        patch.setattr(shapes10, "generate", small)
        for name in ("run", "evaluation", "examples"):
            patch.setattr(draw, name, draw_nothing)
        patch.setattr(grids, "compose", draw_nothing)
        patch.setattr(blocks, "to_svg", lambda *_: "<svg></svg>")
        for module in (canvas, draw):
            patch.setattr(module, "save", save_something)
        patch.setattr(bench, "measure_step", measure_nothing)
        patch.setattr(bench, "synthetic", draw_nothing)
        patch.setattr(signals, "catching_signals", lambda: stopping_after(3))

        def run(words: Sequence[str]) -> Outcome:
            try:
                outcome = type_in(words)
            finally:
                after = tree_of(here.parent)
                new = {name for name, _ in after.items() ^ before.items()}
                files = {name for name in new if after.get(name)}
                if new:
                    empty(here.parent, but=here)
                    empty(here)
                    shutil.copytree(fresh, here, symlinks=True, dirs_exist_ok=True)
            check(outcome, words)
            check_places(outcome, words, new, files)
            return outcome

        yield run
        assert tree_of(here.parent) == before


def type_in(words: Sequence[str]) -> Outcome:
    """Run the command line with streams that encode as those of a terminal do."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with (
        mock.patch.object(sys, "argv", ["fcifar", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit_,
    ):
        cli.main()
    for stream in (out, err):
        stream.flush()
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return Outcome(int(exit_.value.code or 0), *texts)


def check(outcome: Outcome, words: Sequence[str]) -> None:
    """Done, or an error in one line, without a traceback and without steering the terminal."""
    status, out, err = outcome
    assert status in (0, 1, 2, STOPPED), (words, outcome)
    assert "Traceback" not in out + err, (words, err)
    lines = err.split("\n")
    assert lines.pop() == "", "the last line is whole"
    assert all(line.isprintable() for line in (*lines, *out.split("\n"))), (words, outcome)
    errors = [line for line in lines if line.startswith("error:")]
    if status == 1 and words[0] in ANSWERS and not errors:
        assert out, "the answer is no"
    elif status in (1, 2):
        assert errors == lines[-1:], (words, err)
        assert len(errors[0]) > len("error: "), (words, "it says something")
        assert out == "" or "a command is missing" in err, (words, out)
    else:
        assert not errors, (words, err)


def check_places(outcome: Outcome, words: Sequence[str], new: set[str], files: set[str]) -> None:
    """Nothing half-written, nothing where nobody asked for it, and nothing of a refused request."""
    assert not [name for name in new if PARTIAL in name], (words, new)
    drawn = [Path(name) for name in new if Path(name).name == BUILT_IN]
    new = new - {str(p) for file in drawn for p in (file, *file.parents)}
    if outcome.status == 2:
        assert not new, (words, outcome, new)
    # What asks for two things may have got the first of them, whole.
    two = all(any(w.startswith(option) for w in words) for option in ("--per-example", "--out"))
    if outcome.status == 1 and "fcifar train --resume" not in outcome.err and not two:
        assert not new & files, (words, outcome, new)
    asked = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    places = {"inner/runs", "inner/data", *(f"inner/{name}.png" for name in NAMES)}
    places |= {os.path.normpath(os.path.join("inner", word)) for word in asked}
    for name in new:
        around = {name, *map(str, Path(name).parents)}
        above = any(place.startswith(name + "/") for place in places)
        assert above or around & places, (words, name)


# Tests --------------------------------------------------------------------------------------------


def test_the_usual_requests_are_carried_out(fcifar: Fcifar) -> None:
    """Otherwise the tests below would look at refusals alone."""
    for path in COMMANDS:
        done = fcifar(request(path, []))
        assert done.status == UNUSUAL.get(path, 0), done
    assert fcifar(["runs", "rm", "run0", "run1", "--yes"]).status == 0
    assert fcifar(["train", "--dataset=tiny", "--epochs=1000000"]).status == STOPPED
    assert fcifar(["train", "--resume", "stopped"]).status == 0


@pytest.mark.parametrize(
    ("path", "parameter"),
    HOSTILE,
    ids=[" ".join((*path, *(p.words[:1] or (p.name,)))) for path, p in HOSTILE],
)
@settings(max_examples=settings.default.max_examples // 12)  # of each of many options
@given(data=st.data())
def test_a_hostile_value(
    fcifar: Fcifar, path: tuple[str, ...], parameter: Parameter, data: st.DataObject
) -> None:
    fcifar(request(path, [(parameter, data.draw(values(parameter)))]))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
def test_several_hostile_values(fcifar: Fcifar, path: tuple[str, ...], data: st.DataObject) -> None:
    fcifar(data.draw(several(path)))


@given(words=ANY_WORDS)
def test_any_words(fcifar: Fcifar, words: list[str]) -> None:
    fcifar(words)
