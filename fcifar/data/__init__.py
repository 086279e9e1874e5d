"""Prepared data sets, and how to prepare them.

A data set is prepared once, by importing or fetching it, as one file in the data root; ``load``
maps that file into memory. Importing this package loads torch only when a name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fcifar.data.paths import data_root

if TYPE_CHECKING:
    from fcifar.data.dataset import Dataset, ImportOptions, Split, content_digest, make_dataset
    from fcifar.data.download import fetch
    from fcifar.data.readers import import_source
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

_MODULES = {
    "dataset": ("Dataset", "ImportOptions", "Split", "content_digest", "make_dataset"),
    "download": ("fetch",),
    "readers": ("import_source",),
    "store": ("Info", "Summary", "info", "list_prepared", "load", "save", "verify"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"fcifar.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'fcifar.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
