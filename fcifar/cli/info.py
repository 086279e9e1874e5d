"""fcifar recipes, fcifar env, fcifar --version."""

import dataclasses
from typing import Annotated, Any

import typer

import fcifar
from fcifar.cli import completion, options, output

recipes_app = typer.Typer(
    help="List the recipes, or show one.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fcifar {fcifar.__version__}")
        raise typer.Exit


def version(
    show: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """CIFAR-10 image classification as pure functions in PyTorch."""


@recipes_app.callback()
def list_recipes(
    context: typer.Context, json: options.Json = False, debug: options.Debug = False
) -> None:
    """List the recipes."""
    if context.invoked_subcommand is not None:
        return
    from fcifar.recipes import RECIPES, to_dict

    if json:
        output.document([to_dict(recipe) for recipe in RECIPES.values()])
        return
    output.table(
        ("recipe", "what", "batch", "epochs", "expected"),
        [
            (r.name, r.summary, str(r.batch_size), str(r.epochs), r.expected or "-")
            for r in RECIPES.values()
        ],
    )
    output.stdout.print()
    output.stdout.print(
        "expected: test accuracy on CIFAR-10 (JPEG copy) and training time, on two CPU cores "
        "with --compile",
        style="dim",
    )


@recipes_app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The recipe.", autocompletion=completion.recipes)
    ],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show every setting of a recipe.

    [dim]fcifar recipes show speed94[/]
    """
    from fcifar import recipes

    values = recipes.to_dict(recipes.get(name))
    if json:
        output.document(values)
    else:
        about = {f.name: f.metadata.get("about") for f in dataclasses.fields(recipes.Recipe)}
        output.facts((name, value) for name, value in values.items() if not about[name])
        output.stdout.print()
        settings = [(name, str(values[name]), text) for name, text in about.items() if text]
        output.table(("setting", "value", ""), settings)


@recipes_app.command()
def parts(json: options.Json = False, debug: options.Debug = False) -> None:
    """List what a recipe can name: networks with their options, optimizers, augmentations."""
    import inspect

    from fcifar import models, optim, recipes
    from fcifar.recipes import recipe

    networks = {name: recipes.options_of(name)[0] for name in models.MODELS}
    strengths = {
        name: [p.upper() for p in list(inspect.signature(make).parameters)[:1]]
        for name, make in recipes.AUGMENTS.items()
    }
    optimizers = [*recipe.OPTIMIZERS, *optim.REGISTERED]
    if json:
        output.document(
            {
                "models": networks,
                "optimizers": optimizers,
                "schedules": list(recipe.SCHEDULES),
                "augmentations": list(strengths),
            }
        )
        return
    output.table(
        ("part", "name", "takes"),
        [
            *(("model", name, ", ".join(known) or "-") for name, known in networks.items()),
            *(("optimizer", name, "-") for name in optimizers),
            *(("schedule", name, "-") for name in recipe.SCHEDULES),
            *(("augment", name, ", ".join(s) or "-") for name, s in strengths.items()),
        ],
    )


def env(json: options.Json = False, debug: options.Debug = False) -> None:
    """Show what a result depends on besides the recipe: versions, machine, compilers."""
    from fcifar.train import environment

    values = environment.describe()
    if json:
        output.document(values)
    else:
        output.facts(_flatten(values))


def _leaves(values: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested values by dotted name."""
    return [
        leaf
        for name, value in values.items()
        for leaf in (
            _leaves(value, f"{above}{name}.")
            if isinstance(value, dict)
            else [(f"{above}{name}", value)]
        )
    ]


def _flatten(values: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name == "switches":
            pairs.append((name, ", ".join(f"{k} {v}" for k, v in _leaves(value))))
        elif name == "variables":
            pairs += [(f"${variable}", setting) for variable, setting in value.items()]
        elif isinstance(value, dict):
            pairs += list(value.items())
        elif isinstance(value, list):
            pairs.append((name, ", ".join(value)))
        else:
            pairs.append((name, "none" if value is None else value))
    return pairs
