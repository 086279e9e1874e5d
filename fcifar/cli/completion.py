"""Shell completion. Must not import torch, so that it stays fast."""

import typer

RECIPES = (
    *("blitz", "blitz64", "blitz10", "dropout-adam", "conv3-aug"),
    *("speed94", "speed93", "speed90", "speed95", "speed96", "resnet18"),
)
"""``recipes.RECIPES`` by name, which a test compares: to import those takes over a second."""


def recipes(incomplete: str) -> list[str]:
    """Names of recipes."""
    return _beginning(RECIPES, incomplete)


def fetchable(incomplete: str) -> list[tuple[str, str]]:
    """Names of data sets that can be fetched, and what they are."""
    from fcifar.data.catalog import KNOWN

    return [(k.name, k.summary) for k in KNOWN.values() if k.name.startswith(incomplete)]


def prepared(context: typer.Context, incomplete: str) -> list[str]:
    """Names of data sets in the store, and of the built-in one."""
    from fcifar.data.paths import ENDING, NAME, data_root

    try:
        paths = list(data_root(context.params.get("data_dir")).glob(f"*{ENDING}"))
    except OSError:
        paths = []
    names = {path.name.removesuffix(ENDING) for path in paths} | {"shapes10"}
    return _beginning(sorted(name for name in names if NAME.fullmatch(name)), incomplete)


def datasets(context: typer.Context, incomplete: str) -> list[str]:
    """As ``prepared``, and those that can be fetched behind them."""
    here = prepared(context, incomplete)
    return [*here, *(name for name, _ in fetchable(incomplete) if name not in here)]


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Names of what is in the folder of runs; where none fits, a shell completes paths."""
    from fcifar.train.run_dir import runs_root

    try:
        paths = sorted(runs_root(context.params.get("runs_dir")).iterdir())
    except OSError:
        paths = []
    return _beginning([path.name for path in paths if path.is_dir()], incomplete)


def _beginning(names: "list[str] | tuple[str, ...]", incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
