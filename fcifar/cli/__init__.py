"""The command line: parse, build a Recipe and a Runtime, call, print.

Modules here import typer alone at the top; torch comes in when a command runs, so that ``--help``
is quick.
"""

import sys
import traceback

import typer

from fcifar.cli import (
    about,
    bench,
    compare,
    data,
    evaluate,
    extensions,
    output,
    predict,
    reproduce,
    train,
)
from fcifar.errors import UserError, WorldError

app = typer.Typer(
    name="fcifar",
    help="CIFAR-10 image classification as pure functions in PyTorch.",
    epilog="Start with: fcifar train --dataset shapes10 --compile",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
app.command(name="train")(train.train)
app.command(name="eval")(evaluate.evaluate)
app.command(name="predict")(predict.predict)
app.command(name="compare")(compare.compare)
app.command(name="reproduce")(reproduce.reproduce)
app.command(name="verify")(reproduce.verify)
app.add_typer(data.app, name="data")
app.add_typer(about.recipes_app, name="recipes")
app.command(name="bench")(bench.bench)
app.command(name="env")(about.env)
app.callback()(about.version)

_Misuse = typer.BadParameter.__mro__[2]  # what typer raises for any wrong word on the command line


def main() -> None:
    """Run the command line and exit: 0 done, 1 the world failed, 2 the user erred."""
    try:
        with extensions.importable():
            status = app(standalone_mode=False)
    except UserError as error:
        status = _fail(error, 2)
    except (WorldError, OSError) as error:
        status = _fail(error, 1)
    except KeyboardInterrupt as error:
        status = _fail(error, 130, "interrupted")
    except (typer.Abort, _Misuse) as error:
        message = getattr(error, "format_message", lambda: "aborted")()
        # The message is empty where typer has shown the help instead.
        status = _fail(error, 2, message or "a command is missing; give one of those above")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: BaseException, status: int, message: str | None = None) -> int:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    output.error(" ".join((message or str(error)).split()))
    return status
