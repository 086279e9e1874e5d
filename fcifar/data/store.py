"""The store: a folder with one safetensors file for each prepared data set.

Files are written atomically: an error before the final renaming leaves the store unchanged.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcifar.data import shapes10
from fcifar.data.catalog import KNOWN
from fcifar.data.dataset import EMPTY, Dataset, Split, check, make_dataset
from fcifar.data.digest import of_store
from fcifar.data.paths import ENDING, NAME, path_of
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, reason
from fcifar.io import remove_partial, replacing

FORMAT = "fcifar-dataset-1"
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
_VALID = ("valid_images", "valid_labels")  # where there is a given validation split
_CHUNK = 50_000  # images
_ABANDONED = 3600  # seconds; no file takes that long to write
_DAMAGED = (OSError, SafetensorError, ValueError, LookupError)


class Summary(NamedTuple):
    """A prepared data set, or why its file cannot be used."""

    name: str
    classes: tuple[str, ...]
    train_size: int
    test_size: int
    source: str
    digest: str
    path: Path
    bytes: int  # size of the file; 0 for a built-in data set that has not been used yet
    built_in: bool
    problem: str = ""  # why the file cannot be used; the fields above are empty then
    valid_size: int = 0  # given validation images


class Info(NamedTuple):
    """Statistics of a prepared data set. Counts are by class, in label order."""

    name: str
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    # By channel, of training pixels in [0, 1]; of test pixels if there are no training images.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    digest: str
    path: Path
    bytes: int
    valid_counts: tuple[int, ...] = ()  # of given validation images, if any
    preparation: Mapping[str, Any] = MappingProxyType({})  # see dataset.Content


def save(dataset: Dataset, root: Path) -> Path:
    """Write a data set to the store, replacing one of the same name. Returns the file.

    Raises:
        UsageError: the name is invalid.
        ExternalError: the file cannot be written. The store is unchanged.
    """
    path = path_of(dataset.name, root)
    names = (*_TENSORS, *(_VALID if len(dataset.valid_labels) else ()))
    tensors = _separate({name: getattr(dataset, name).contiguous() for name in names})
    metadata = {
        "format": FORMAT,
        "classes": json.dumps(dataset.classes),
        "source": dataset.source,
        "digest": dataset.digest,
        "preparation": json.dumps(dict(dataset.preparation)),
    }
    remove_partial(root, older_than=_ABANDONED)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)
    return path


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clone the tensors that share memory, which safetensors refuses.

    Others are not cloned: a memory-mapped test set may be larger than the memory of the machine.
    """
    storages = [x.untyped_storage() for x in tensors.values()]
    pointers = [storage.data_ptr() for storage in storages]
    return {
        name: x if storage.nbytes() == x.nbytes and pointers.count(pointer) == 1 else x.clone()
        for (name, x), storage, pointer in zip(tensors.items(), storages, pointers, strict=True)
    }


def load(name: str, root: Path) -> Dataset:
    """Return the data set ``name``, memory-mapped. ``shapes10`` is drawn and stored on first use.

    Raises:
        UsageError: there is no such data set.
        ExternalError: its file is damaged, or is not a prepared data set.
    """
    path = path_of(name, root)
    if name == shapes10.NAME and not path.exists():
        drawn = shapes10.generate()
        train, test = Split(*drawn[:2]), Split(*drawn[2:])
        save(make_dataset(name, train, test, shapes10.CLASSES, shapes10.SOURCE), root)
    if not path.exists():
        there = [summary.name for summary in list_prepared(root)]
        fetch = f", fetch it with `fcifar data fetch {name}`" if name in KNOWN else ""
        hint = "" if name in KNOWN else did_you_mean(name, [*there, *KNOWN])
        raise UsageError(
            f"there is no data set {name!r} in {one_line(root)}, only {', '.join(there)}; prepare "
            f"it with `fcifar data import`{fetch}, "
            f"or use the built-in one with `--dataset {shapes10.NAME}`{hint}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            classes, source, digest, preparation = _head(file.metadata())
            given = _VALID if set(_VALID) & set(file.keys()) else ()
            train, test, valid = (
                Split(*map(file.get_tensor, keys)) if keys else EMPTY
                for keys in (_TENSORS[:2], _TENSORS[2:], given)
            )
        check(train, test, classes, valid)
    except _DAMAGED as error:
        raise ExternalError(
            f"{one_line(path)} is damaged or not a prepared data set ({reason(error)}); "
            f"{_remedy(name)}"
        ) from error
    where = str(path.absolute())
    return Dataset(name, *train, *test, classes, source, digest, where, preparation, *valid)


def verify(name: str, root: Path) -> str:
    """Read every byte of a data set and return its digest.

    Raises:
        UsageError: there is no such data set.
        ExternalError: its content is not what was stored.
    """
    dataset = load(name, root)
    try:
        found = of_store(name, root)
    except _DAMAGED as error:
        found = reason(error)
    if found != dataset.digest:
        raise ExternalError(
            f"{one_line(path_of(name, root))} is damaged: its content has digest {found}, not "
            f"{one_line(dataset.digest)} as recorded; {_remedy(name)}"
        )
    return found


def list_prepared(root: Path) -> list[Summary]:
    """Return every data set that ``load`` finds in ``root``, by name, built-in ones included.

    A damaged file is listed with its ``problem``.
    """
    stems = {path.stem for path in root.glob(f"*{ENDING}")} | {shapes10.NAME}
    return [_summary(name, root) for name in sorted(stems) if NAME.fullmatch(name)]


def info(name: str, root: Path) -> Info:
    """Count and measure a data set. Raises as ``load``."""
    dataset = load(name, root)
    path = path_of(name, root)
    train, valid, test = (
        tuple(torch.bincount(labels, minlength=len(dataset.classes)).tolist())
        for labels in (dataset.train_labels, dataset.valid_labels, dataset.test_labels)
    )
    mean, std = _channel_statistics(dataset.train_images if any(train) else dataset.test_images)
    return Info(
        *(name, dataset.classes, train, test, mean, std, dataset.source, dataset.digest, path),
        bytes=path.stat().st_size,
        valid_counts=valid if any(valid) else (),
        preparation=dataset.preparation,
    )


def _summary(name: str, root: Path) -> Summary:
    path, built_in = path_of(name, root), name == shapes10.NAME
    if built_in and not path.exists():
        return Summary(name, shapes10.CLASSES, 0, 0, shapes10.SOURCE, "", path, 0, built_in)
    try:
        dataset = load(name, root)
        return Summary(
            *(name, dataset.classes, len(dataset.train_labels), len(dataset.test_labels)),
            *(dataset.source, dataset.digest, path, path.stat().st_size, built_in),
            valid_size=len(dataset.valid_labels),
        )
    except (ExternalError, OSError) as error:
        problem = reason(error.__cause__ or error)
        return Summary(name, (), 0, 0, "", "", path, 0, built_in, problem)


def _head(metadata: dict[str, str] | None) -> tuple[tuple[str, ...], str, str, dict[str, Any]]:
    """Class names, source, digest and preparation."""
    if not metadata or metadata.get("format") != FORMAT:
        raise ValueError(f"it is not in the format {FORMAT}")
    try:
        classes = json.loads(metadata["classes"])
        preparation = json.loads(metadata.get("preparation", "{}"))
    except RecursionError as error:
        raise ValueError("its metadata is nested too deeply") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its class names are not a list of text")
    if not isinstance(preparation, dict):
        raise ValueError("its preparation is not a JSON object")
    return tuple(classes), metadata["source"], metadata["digest"], preparation


def _remedy(name: str) -> str:
    if name == shapes10.NAME:
        return "delete the file, and it will be drawn again"
    return "delete the file, or import its source again with --force"


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, exact: the 256 values are counted."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(_CHUNK):  # a test set may have gigabytes
        channels = part.unbind(1)
        counts += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in channels])
    weights = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    variance = (weights * torch.square(values - mean[:, None])).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
