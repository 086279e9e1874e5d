"""Shell completion. Must not import torch, so that it stays fast."""

import typer

from fcifar.data.catalog import KNOWN
from fcifar.data.paths import ENDING, NAME, data_root

RECIPES = (
    *("blitz", "blitz64", "blitz10", "dropout-adam", "conv3-aug"),
    *("speed94", "speed93", "speed90", "speed94-gpu", "speed95", "speed96", "resnet18"),
    *("resnet20", "resnet56", "resnet110", "preact-resnet18", "wrn-16-8", "wrn-28-10"),
    *("vit-tiny", "mlp-mixer"),
)
"""The names in ``recipes.RECIPES``, whose import takes over a second; a test compares the two."""


def recipes(incomplete: str) -> list[str]:
    return [name for name in RECIPES if name.startswith(incomplete)]


def fetchable(incomplete: str) -> list[tuple[str, str]]:
    """Names and summaries of data sets that can be fetched."""
    return [(k.name, k.summary) for k in KNOWN.values() if k.name.startswith(incomplete)]


def prepared(context: typer.Context, incomplete: str) -> list[str]:
    """Names of prepared data sets, and of the built-in one."""
    try:
        paths = list(data_root(context.params.get("data_dir")).glob(f"*{ENDING}"))
    except OSError:
        paths = []
    names = {path.name.removesuffix(ENDING) for path in paths} | {"shapes10"}
    return sorted(name for name in names if NAME.fullmatch(name) and name.startswith(incomplete))


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    """Names of prepared data sets, then of those that can be fetched."""
    here = prepared(context, incomplete)
    return [*here, *(name for name, _ in fetchable(incomplete) if name not in here)]


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Names in the folder of runs. Where none fits, the shell completes paths."""
    from fcifar.train.run_dir import runs_root

    try:
        paths = sorted(runs_root(context.params.get("runs_dir")).iterdir())
    except OSError:
        paths = []
    return [p.name for p in paths if p.name.startswith(incomplete) and p.is_dir()]
