"""The commands that make a run again."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from fcifar import recipes
from fcifar.recipes import Recipe
from fcifar.train.config import RunConfig

TEXTS = ("summary", "source", "notes", "expected")  # of a recipe, for a person
_LISTED = ("augment", "resolutions")
_WORD = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_ITEM = re.compile(r"[\w.:+-]+", re.ASCII)
_NOT_TEXT = {"true", "false", "null", "none", "NaN", "Infinity"}


def train_command(config: RunConfig) -> str | None:
    """A command line that trains with the same settings, whatever the defaults are.

    None where no command says it: for a recipe, or an option of a network, of one's own.
    """
    recipe, runtime = config.recipe, config.runtime
    if recipe.name not in recipes.RECIPES:
        return None
    changes = changed(recipe, recipes.RECIPES[recipe.name])
    if changes is None:
        return None
    words = ["fcifar", "train", recipe.name, "--dataset", config.dataset]
    for change in changes:
        words += ["--set", change]
    words += ["--seed", str(config.seed), "--threads", str(runtime.threads)]
    words += ["--precision", runtime.precision, "--device", runtime.device]
    words.append("--deterministic" if runtime.deterministic else "--fast")
    words.append("--compile" if config.compile else "--no-compile")
    return shlex.join(words)


def typed_command(argv: Any) -> str | None:
    """The command line that a manifest says was typed; None where it was no ``fcifar train``."""
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        return None
    return shlex.join(["fcifar", *argv[1:]]) if argv[1:2] == ["train"] else None


def check_commands(path: Path) -> list[str]:
    """Commands that check the run or the group at ``path``."""
    return [shlex.join(["fcifar", command, str(path)]) for command in ("verify", "reproduce")]


def changed(recipe: Recipe, base: Recipe) -> list[str] | None:
    """``--set`` texts that make ``recipe`` of ``base``, but for its texts; None if none can."""
    now, then = recipes.to_dict(recipe), recipes.to_dict(base)
    found = []
    if now["model"] != then["model"]:
        found.append(f"model={now['model']}")
        then["model_options"] = {}
    for name, value in now.items():
        if name not in ("name", "model", "model_options", *TEXTS) and value != then[name]:
            found.append(f"{name}={_value(name, value)}")
    options, before = now["model_options"], then["model_options"]
    differing = [n for n in options if n not in before or options[n] != before[n]]
    # An option cannot be taken away, nor one reached that is called as a value of the recipe.
    if set(before) - set(options) or set(differing) & set(now):
        return None
    return [*found, *(f"{name}={_value(name, options[name])}" for name in differing)]


def _value(name: str, value: Any) -> str:
    """A value as ``--set`` reads it."""
    if name in _LISTED:
        plain = all(_ITEM.fullmatch(item) for item in value)
        return (",".join(value) or "none") if plain else json.dumps(list(value))
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in _NOT_TEXT:
        return value
    return json.dumps(value, separators=(",", ":"))
