"""Images in: prepared data sets, and every way of preparing one.

A data set is prepared once, by importing or fetching it, and is one file in the data root from
then on. ``load`` maps that file into memory.
"""

from fcifar.data.dataset import Dataset, Split, content_digest, make_dataset
from fcifar.data.fetching import fetch
from fcifar.data.importing import import_source
from fcifar.data.store import (
    Info,
    Summary,
    data_root,
    info,
    list_prepared,
    load,
    save,
    verify,
)

__all__ = [
    "Dataset",
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
