"""The command line: parse, build a Recipe and a Runtime, call, print.

Modules here import torch only inside commands, so that ``--help`` stays fast.
"""

import atexit
import ctypes
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

import typer

from fcifar.cli import (
    bench,
    cache,
    compare,
    data,
    evaluate,
    export,
    influence,
    info,
    labels,
    lr_find,
    output,
    plugins,
    predict,
    report,
    reproduce,
    runs,
    soup,
    train,
)
from fcifar.errors import (
    ExternalError,
    UsageError,
    did_you_mean,
    located,
    one_line,
    raised_at,
    reason,
)
from fcifar.recipes.checks import refused

app = typer.Typer(
    name="fcifar",
    help="CIFAR-10 image classification as pure functions in PyTorch.",
    epilog="Start with: fcifar train --dataset shapes10 --compile\n\n"
    "FCIFAR_DATA, FCIFAR_RUNS and FCIFAR_CACHE set the folders of data sets, of runs and of "
    "compiled programs. NO_COLOR and FORCE_COLOR are respected.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.command(name="train")(train.train)
app.command(name="lr-find")(lr_find.lr_find)
app.command(name="eval")(evaluate.evaluate)
app.command(name="predict")(predict.predict)
app.command(name="compare")(compare.compare)
app.command(name="influence")(influence.influence)
app.command(name="export")(export.export)
app.command(name="soup")(soup.soup)
app.command(name="labels")(labels.labels)
app.command(name="report")(report.report)
app.command(name="reproduce")(reproduce.reproduce)
app.command(name="verify")(reproduce.verify)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(cache.app, name="cache")
app.add_typer(info.recipes_app, name="recipes")
app.command(name="bench")(bench.bench)
app.command(name="env")(info.env)
app.callback()(info.version)

SPIN_COUNT = 10_000  # the default of $GOMP_SPINCOUNT

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_* of malloc.h
_SEVERAL = os.environ.get("WORLD_SIZE", "1") != "1"  # processes, as started by torchrun
_ACCEPTED = {"int": "a whole number", "float": "a number", "string": "UTF-8 text"}
_Misuse = typer.BadParameter.__mro__[2]  # the base of typer's errors about the command line


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for external errors, 2 for usage errors."""
    _limit_spinning()
    output.escape_unencodable()
    if _SEVERAL and os.environ.get("RANK", "0") != "0":
        output.silence()
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        if command not in ("train", "reproduce"):  # the others run on rank 0 alone
            sys.exit(0)
    # A machine with nvcc and without a GPU gets a warning about that from torch.compile.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        with plugins.importable(sys.argv[1:]):
            words = list(map(_expand_home, sys.argv[1:]))
            status = app(words, prog_name="fcifar", standalone_mode=False)
    except UsageError as error:
        status = _fail(error, 2)
    except ExternalError as error:
        status = _fail(error, 1)
    except OSError as error:
        where = f": {one_line(error.filename)}" if error.filename else ""
        status = _fail(error, 1, f"{reason(error)}{where}")
    except KeyboardInterrupt as error:
        status = _fail(error, 130, "interrupted")
    except (typer.Abort, _Misuse) as error:
        # The message is empty after typer has printed the help.
        missing = "a command is missing; give one of those above"
        status = _fail(error, 2, _message(error) or missing)
    except Exception as error:  # from a user's code, or a bug
        user_line = raised_at(error)
        more = "" if "--debug" in sys.argv else "; add --debug for the traceback"
        status = _fail(error, 2 if user_line else 1, f"{_unexpected(error, user_line)}{more}")
    sys.exit(status if isinstance(status, int) else 0)


def entry() -> NoReturn:
    """Run the command line as a process of its own, which ends with it.

    Python would then spend half a second on freeing what torch has loaded. Functions registered
    with ``atexit`` are called first.
    """
    _keep_freed_memory()
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader of the output has closed it
        status = status or 1
    os._exit(status)


def _limit_spinning() -> None:
    """Let waiting OpenMP threads sleep after a fraction of a millisecond, unless configured.

    By default they spin thirty times as long, which slows training down several times beside other
    work (docs/speed.md). OpenMP reads the variable when torch is loaded. Results do not change.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def _keep_freed_memory() -> None:
    """Let the C library (glibc) keep what this process frees, for its later allocations.

    By default it returns large blocks to the system. The tensors of the next step are then in new
    pages, each of which the system fills with zeros. It cannot be undone: for a process that does
    nothing else.

    The first allocations of a size, up to about eight, still take new pages. Blocks are aligned by
    cutting pieces off, and the first seven pieces of each size wait in the thread's cache (tcache),
    where they are not merged with the freed block beside them, which is then too small by a piece.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _expand_home(word: str) -> str:
    """Expand ~ at the start of a path, which shells do not do in ``--out=~/x``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def _unexpected(error: Exception, user_line: str) -> str:
    """Return the message about an unexpected exception."""
    kind = type(error).__name__
    text = located(error).removeprefix(f"{kind}: ")
    if user_line:
        return f"the code of {user_line.partition(',')[0]} stopped with {kind}: {text}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"fcifar stopped with {kind}: {text} ({where.filename}, line {where.lineno})"


def _message(error: BaseException) -> str:
    """Return typer's message, with values and suggestions in our form."""
    if options := getattr(error, "possibilities", None):
        wrong = getattr(error, "option_name", "")
        return f"No such option: {wrong}{did_you_mean(wrong, options)}"
    parameter, errors = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if parameter and errors:  # pydantic's, which parses values for typer
        wrong, *_ = errors()
        accepted = _ACCEPTED.get(wrong["type"].partition("_")[0], "valid")
        return str(refused(parameter.opts[0], wrong["input"], accepted))
    text = getattr(error, "format_message", lambda: "aborted")()
    context = getattr(error, "ctx", None)
    if context is None or not text or text.endswith("?"):
        return text
    return f"{text.rstrip('.')}; {context.command_path} --help shows what it takes"


def _fail(error: BaseException, status: int, message: str | None = None) -> int:
    """Print an error, on one of several ranks alone, and return the exit status."""
    if not _SEVERAL:
        _print_error(error, message)
        return status
    from fcifar.train import distributed

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it as soon as one rank failed
    if distributed.should_print(error):
        output.stderr.quiet = False
        _print_error(error, message)
    if isinstance(error, distributed.LostError):
        # A thread of torch that waits for the lost rank can keep Python from exiting.
        sys.stdout.flush()
        os._exit(status)
    return status


def _print_error(error: BaseException, message: str | None) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    for note in getattr(error, "__notes__", ()):  # such as a list of files
        output.note(f"  {note}")
    output.error(" ".join((message or str(error)).split()))
