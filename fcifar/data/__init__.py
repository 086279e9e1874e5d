"""Images in: prepared data sets, and every way of preparing one.

A data set is prepared once, by importing or fetching it, and is one file in the data root from
then on. ``load`` maps that file into memory.

Importing this package loads torch only when a name is first used: where data sets lie, and what
they are called, is known without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fcifar.data.paths import data_root

if TYPE_CHECKING:
    from fcifar.data.dataset import Dataset, Split, content_digest, make_dataset
    from fcifar.data.download import fetch
    from fcifar.data.readers import ImportOptions, import_source
    from fcifar.data.store import Info, Summary, info, list_prepared, load, save, verify

__all__ = [
    "Dataset",
    "ImportOptions",
    "Info",
    "Split",
    "Summary",
    "content_digest",
    "data_root",
    "fetch",
    "import_source",
    "info",
    "list_prepared",
    "load",
    "make_dataset",
    "save",
    "verify",
]

_HOMES = {
    "dataset": ("Dataset", "Split", "content_digest", "make_dataset"),
    "download": ("fetch",),
    "readers": ("ImportOptions", "import_source"),
    "store": ("Info", "Summary", "info", "list_prepared", "load", "save", "verify"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"fcifar.data.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'fcifar.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
