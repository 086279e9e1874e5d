"""fcifar recipes, fcifar env, fcifar --version."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import typer

import fcifar
from fcifar.cli import completion, output
from fcifar.cli.options import Debug, Json, argument, option

recipes_app = typer.Typer(help="List the recipes, or show one.", invoke_without_command=True)


def _print_version(show: bool) -> None:
    if show:
        print(f"fcifar {fcifar.__version__}")
        raise typer.Exit


def version(
    show: Annotated[
        bool,
        option("--version", "Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """CIFAR-10 image classification as pure functions in PyTorch."""


@recipes_app.callback()
def list_recipes(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """List the recipes."""
    if context.invoked_subcommand is not None:
        return
    from fcifar.recipes import RECIPES, to_dict

    if json:
        output.document([to_dict(recipe) for recipe in RECIPES.values()])
        return
    rows = [
        (r.name, r.summary, str(r.batch_size), str(r.epochs), r.expected or "-")
        for r in RECIPES.values()
    ]
    output.table(("recipe", "what", "batch", "epochs", "expected"), rows)
    text = "expected: test accuracy on CIFAR-10 (JPEG copy) and training time, on two CPU cores "
    output.stdout.print(f"\n{text}with --compile", style="dim")


@recipes_app.command()
def show(
    name: Annotated[str, argument("NAME", "The recipe.", completion.recipes)],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show every setting of a recipe.

    [dim]fcifar recipes show speed94[/]
    """
    from fcifar import recipes

    output.result(recipes.to_dict(recipes.get(name)), _show_recipe, json)


def _show_recipe(values: dict[str, Any]) -> None:
    from fcifar.recipes import Recipe
    from fcifar.report.text import shown

    about = {f.name: f.metadata.get("about") for f in dataclasses.fields(Recipe)}
    pairs = ((name, value) for name, value in values.items() if not about[name])
    output.facts(pair for pair in pairs if pair[1])
    output.stdout.print()
    settings = [(name, shown(values[name]), text) for name, text in about.items() if text]
    output.table(("setting", "value", ""), settings)


@recipes_app.command()
def parts(json: Json = False, debug: Debug = False) -> None:
    """List the models with their options, optimizers, schedules and augmentations for recipes."""
    from fcifar import models, optim, recipes
    from fcifar.recipes import recipe

    known_models = {name: recipes.options_of(name)[0] for name in models.MODELS}
    strengths = {
        name: [parameter.name.upper() for parameter in recipes.strengths_of(name)]
        for name in (*recipes.AUGMENTS, *recipes.MIXES)
    }
    optimizers, schedules = [*recipe.OPTIMIZERS, *optim.REGISTERED], list(recipe.SCHEDULES)
    if json:
        plain = {"optimizers": optimizers, "schedules": schedules, "augmentations": list(strengths)}
        output.document({"models": known_models, **plain})
        return
    rows = [
        *(("model", name, ", ".join(known) or "-") for name, known in known_models.items()),
        *(("optimizer", name, "-") for name in optimizers),
        *(("schedule", name, "-") for name in schedules),
        *(("augment", name, ", ".join(s) or "-") for name, s in strengths.items()),
    ]
    output.table(("part", "name", "takes"), rows)


def env(json: Json = False, debug: Debug = False) -> None:
    """Show the environment that results depend on: versions, machine, compilers."""
    from fcifar.train import environment

    output.result(environment.describe(), _show_environment, json)


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Nested values with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name} {value}"


def _show_environment(values: dict[str, Any]) -> None:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name == "switches":
            pairs.append((name, ", ".join(_leaves(value))))
        elif name == "variables":
            pairs += [(f"${variable}", setting) for variable, setting in value.items()]
        elif isinstance(value, dict):
            pairs += list(value.items())
        elif isinstance(value, list):
            pairs.append((name, ", ".join(value)))
        else:
            pairs.append((name, "none" if value is None else value))
    output.facts(pairs)
