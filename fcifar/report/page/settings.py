"""The settings of runs on a page: what was changed first."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcifar import recipes
from fcifar.recipes.recipe import option_name
from fcifar.report.page.commands import TEXTS
from fcifar.report.page.gathering import Run
from fcifar.report.page.html import Html, folded, join, pair, table, tag
from fcifar.train.config import RunConfig


def of_run(run: Run) -> Html:
    """The settings of one run: what differs from the recipe of that name, then all."""
    name = run.config.recipe.name
    now, base = recipe_values(run.config), base_values(run.config)
    parts = []
    if base is None:
        parts.append(tag("p", f"This version of fcifar has no recipe {name}."))
    elif changes := [key for key in now if now[key] != base.get(key)]:
        rows = [(key, shown(now[key]), shown(base.get(key, "-"))) for key in changes]
        parts.append(table(f"Changed from the recipe {name}", ("setting", "here", "recipe"), rows))
    else:
        parts.append(tag("p", f"Every setting is that of the recipe {name}."))
    parts.append(table("The run", ("", ""), runtime_values(run.config).items()))
    return join([pair(*parts), _all(now)])


def of_runs(runs: Sequence[Run]) -> Html:
    """The settings of several runs: what differs among them, what from their recipes, then all."""
    values = [
        {"recipe": run.config.recipe.name} | recipe_values(run.config) | runtime_values(run.config)
        for run in runs
    ]
    names = list(dict.fromkeys(key for each in values for key in each))
    differing = [key for key in names if len({shown(each.get(key, "-")) for each in values}) > 1]
    parts = [tag("p", "No setting differs among these runs.")]
    if differing:
        rows = [(key, *(shown(each.get(key, "-")) for each in values)) for key in differing]
        parts = [table("What differs", ("setting", *(run.name for run in runs)), rows)]
    bases = [base_values(run.config) for run in runs]
    common = [
        (key, shown(value))
        for key, value in values[0].items()
        if key not in differing
        and any(base is not None and key in base and base[key] != value for base in bases)
    ]
    if common:
        parts.append(table("In all of them, and not in the recipe", ("setting", "here"), common))
    rest = {key: value for key, value in values[0].items() if key not in differing}
    return join([pair(*parts), _all(rest, "All that they have in common")])


def of_group(runs: Sequence[Run], swept: Sequence[str]) -> Html:
    """The settings of a group: those of its first run, but for what is swept."""
    first = runs[0].config
    base = base_values(first)
    now = {k: v for k, v in recipe_values(first).items() if option_name(k) not in swept}
    parts = []
    if base is not None:
        rows = [(k, shown(v), shown(base.get(k, "-"))) for k, v in now.items() if v != base.get(k)]
        caption = f"Changed from the recipe {first.recipe.name}, in all runs"
        parts = [table(caption, ("setting", "here", "recipe"), rows)] if rows else []
    seeds = sorted({run.config.seed for run in runs})
    ran = runtime_values(first) | {"seed": ", ".join(map(str, seeds))}
    return join([pair(*parts, table("The runs", ("", ""), ran.items())), _all(now)])


def recipe_values(config: RunConfig) -> dict[str, Any]:
    """What the recipe of a run says, by name: the options of the network among the rest.

    Precision and compiling are those that the run had, whatever its recipe prefers.
    """
    ran = {"precision": config.runtime.precision, "compile": config.compile}
    return _flat(recipes.to_dict(config.recipe)) | ran


def base_values(config: RunConfig) -> dict[str, Any] | None:
    """The same of the recipe of that name as this version has it; None where it has none."""
    base = recipes.RECIPES.get(config.recipe.name)
    return None if base is None else _flat(recipes.to_dict(base))


def runtime_values(config: RunConfig) -> dict[str, Any]:
    """Where and how a run ran, by name."""
    runtime = config.runtime
    values = {
        "data set": config.dataset,
        "seed": config.seed,
        "device": runtime.device,
        "threads": runtime.threads,
        "deterministic": shown(runtime.deterministic),
    }
    if config.vmap_size:
        values["mapped over"] = f"{config.vmap_size} runs at once"
    return values


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in values.items() if k not in ("name", "model_options", *TEXTS)}
    return {"model": own.pop("model"), **values["model_options"], **own}


def shown(value: Any) -> str:
    """A value as a person reads it."""
    match value:
        case True:
            return "yes"
        case False:
            return "no"
        case tuple() | list():
            return ", ".join(map(shown, value)) or "none"
        case dict():
            return ", ".join(f"{key} {shown(each)}" for key, each in value.items()) or "none"
        case "":
            return "none"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e5 else str(value)


def _all(values: Mapping[str, Any], heading: str = "All settings") -> Html:
    rows = [(key, shown(value)) for key, value in values.items()]
    return folded(f"{heading} ({len(rows)})", table(heading, ("setting", "value"), rows))
