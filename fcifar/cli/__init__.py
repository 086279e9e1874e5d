"""The command line: parse, build a Recipe and a Runtime, call, print.

Modules here import typer alone at the top; torch comes in when a command runs, so that ``--help``
is quick.
"""

import logging
import os
import signal
import sys
import traceback

import typer

from fcifar.cli import (
    bench,
    compare,
    data,
    evaluate,
    export,
    info,
    output,
    plugins,
    predict,
    report,
    reproduce,
    runs,
    train,
)
from fcifar.errors import ExternalError, UsageError, did_you_mean, located, raised_at

app = typer.Typer(
    name="fcifar",
    help="CIFAR-10 image classification as pure functions in PyTorch.",
    epilog="Start with: fcifar train --dataset shapes10 --compile\n\n"
    "FCIFAR_DATA and FCIFAR_RUNS name the folders of data sets and of runs. NO_COLOR and "
    "FORCE_COLOR are respected.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.command(name="train")(train.train)
app.command(name="eval")(evaluate.evaluate)
app.command(name="predict")(predict.predict)
app.command(name="compare")(compare.compare)
app.command(name="export")(export.export)
app.command(name="report")(report.report)
app.command(name="reproduce")(reproduce.reproduce)
app.command(name="verify")(reproduce.verify)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(info.recipes_app, name="recipes")
app.command(name="bench")(bench.bench)
app.command(name="env")(info.env)
app.callback()(info.version)

SPIN_COUNT = 10_000  # what $GOMP_SPINCOUNT becomes, where nothing like it is set

_Misuse = typer.BadParameter.__mro__[2]  # what typer raises for any wrong word on the command line


def main() -> None:
    """Run the command line and exit: 0 done, 1 the world failed, 2 the user erred."""
    _let_threads_sleep()
    output.escape_unencodable()
    if _is_other_rank():
        output.silence()
        if _command_name() not in ("train", "reproduce"):  # which every rank carries out
            sys.exit(0)
    # A machine with nvcc and without a GPU gets a warning about that from torch.compile.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        with plugins.importable(sys.argv[1:]):
            words = list(map(_at_home, sys.argv[1:]))
            status = app(words, standalone_mode=False)
    except UsageError as error:
        status = _fail(error, 2)
    except (ExternalError, OSError) as error:
        status = _fail(error, 1)
    except KeyboardInterrupt as error:
        status = _fail(error, 130, "interrupted")
    except (typer.Abort, _Misuse) as error:
        message = _message(error)
        # The message is empty where typer has shown the help instead.
        status = _fail(error, 2, message or "a command is missing; give one of those above")
    except Exception as error:  # out of a user's own code, or a mistake in ours
        place = raised_at(error)
        more = "" if "--debug" in sys.argv else "; add --debug for the traceback"
        status = _fail(error, 2 if place else 1, f"{_unexpected(error, place)}{more}")
    sys.exit(status if isinstance(status, int) else 0)


def _let_threads_sleep() -> None:
    """Have OpenMP threads wait for each other asleep after a fraction of a millisecond.

    By default they spin thirty times as long, on cores that other processes could use, and training
    beside other work becomes several times slower (docs/speed.md). OpenMP reads the variable when
    torch is loaded. No result depends on it.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def _is_other_rank() -> bool:
    """Whether this is one of several processes, and not rank 0."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def _command_name() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _at_home(word: str) -> str:
    """A word with ~ in front of a path expanded: shells leave that of ``--out=~/x`` as it is."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def _unexpected(error: Exception, place: str) -> str:
    """What a message says of an exception that no part of the program has expected."""
    kind, text = type(error).__name__, located(error).removeprefix(f"{type(error).__name__}: ")
    if place:
        return f"the code of {place.partition(',')[0]} stopped with {kind}: {text}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"fcifar stopped with {kind}: {text} ({where.filename}, line {where.lineno})"


def _message(error: BaseException) -> str:
    """What typer says, with our way of offering another option."""
    if options := getattr(error, "possibilities", None):
        wrong = getattr(error, "option_name", "")
        return f"No such option: {wrong}{did_you_mean(wrong, options)}"
    return getattr(error, "format_message", lambda: "aborted")()


def _fail(error: BaseException, status: int, message: str | None = None) -> int:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return _fail_on_one_rank(error, status, message)
    return _say(error, status, message)


def _fail_on_one_rank(error: BaseException, status: int, message: str | None) -> int:
    """Let one of several ranks say what went wrong, and end at once."""
    from fcifar.train import distributed

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it as soon as one rank failed
    if distributed.should_print(error):
        output.speak()
        _say(error, status, message)
    if isinstance(error, distributed.LostError):
        # A thread of torch's that waits for the lost rank can keep Python from ending.
        sys.stdout.flush()
        os._exit(status)
    return status


def _say(error: BaseException, status: int, message: str | None) -> int:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    for note in getattr(error, "__notes__", ()):  # such as a list of files
        output.note(f"  {note}")
    output.error(" ".join((message or str(error)).split()))
    return status
