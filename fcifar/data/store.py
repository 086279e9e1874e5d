"""The store: a folder with one safetensors file for each prepared data set.

A file appears whole or not at all: it is written beside its place, forced to the disk, and then
renamed. Whatever goes wrong before the renaming leaves the store as it was.
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
from fcifar.data.dataset import EMPTY, Dataset, Split, check, content_digest, make_dataset
from fcifar.data.paths import NAME, path_of
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, reason
from fcifar.io import remove_partial, replacing

FORMAT = "fcifar-dataset-1"
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
_VALID = ("valid_images", "valid_labels")  # where there is a given validation split
_ABANDONED = 3600  # seconds; no file takes that long to write


class Summary(NamedTuple):
    """What the head of a prepared file tells without reading the images."""

    name: str
    classes: tuple[str, ...]
    train_size: int
    test_size: int
    source: str
    digest: str
    path: Path
    bytes: int  # size of the file; 0 for a built-in set that has not been used yet
    built_in: bool
    problem: str = ""  # why the file cannot be used; the fields above are empty then
    valid_size: int = 0  # given validation images


class Info(NamedTuple):
    """A prepared data set in numbers. Counts are by class, in label order."""

    name: str
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    mean: tuple[float, ...]  # of the training pixels by channel, in [0, 1]; of the test pixels of a
    # test set alone
    std: tuple[float, ...]
    source: str
    digest: str
    path: Path
    bytes: int
    valid_counts: tuple[int, ...] = ()  # of the given validation images; () where there are none
    preparation: Mapping[str, Any] = MappingProxyType({})  # what the import did and left out


# Writing ------------------------------------------------------------------------------------------


def save(dataset: Dataset, root: Path) -> Path:
    """Write a data set to the store, replacing one of that name. Returns the file.

    Raises:
        UsageError: the name is not allowed.
        ExternalError: the file cannot be written. The store is then as it was.
    """
    path = path_of(dataset.name, root)
    # Cloned, for safetensors refuses tensors that share memory.
    names = (*_TENSORS, *(_VALID if len(dataset.valid_labels) else ()))
    tensors = {name: getattr(dataset, name).contiguous().clone() for name in names}
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


# Reading ------------------------------------------------------------------------------------------


def load(name: str, root: Path) -> Dataset:
    """The data set ``name``, memory-mapped. ``shapes10`` is drawn on first use, then stored.

    Raises:
        UsageError: there is no such data set; the message says what there is.
        ExternalError: its file is damaged, or is not one of ours.
    """
    path = path_of(name, root)
    if name == shapes10.NAME and not path.exists():
        save(_draw_shapes10(), root)
    if not path.exists():
        raise UsageError(_missing(name, root))
    return _read(path)


def verify(name: str, root: Path) -> str:
    """Read every byte of a data set and return its digest.

    Raises:
        UsageError: there is no such data set.
        ExternalError: its content is not what was stored.
    """
    dataset = load(name, root)
    given = dataset.valid_images, dataset.valid_labels
    found = content_digest(*dataset[1:5], dataset.classes, *given)
    if found != dataset.digest:
        raise ExternalError(
            f"{one_line(path_of(name, root))} is damaged: its content has digest {found}, not "
            f"{one_line(dataset.digest)} as recorded; {_remedy(name)}"
        )
    return found


def list_prepared(root: Path) -> list[Summary]:
    """What can be loaded from ``root``, by name, built-in sets included.

    A damaged file is listed with its ``problem``, so that it hides none of the others.
    """
    paths = {path.stem: path for path in root.glob("*.safetensors") if NAME.fullmatch(path.stem)}
    paths.setdefault(shapes10.NAME, path_of(shapes10.NAME, root))
    return [_summary(name, path) for name, path in sorted(paths.items())]


def info(name: str, root: Path) -> Info:
    """Count and measure a data set. Raises as ``load`` does."""
    dataset = load(name, root)
    path = path_of(name, root)
    train, valid, test = (
        tuple(torch.bincount(labels, minlength=len(dataset.classes)).tolist())
        for labels in (dataset.train_labels, dataset.valid_labels, dataset.test_labels)
    )
    mean, std = _channel_statistics(dataset.train_images if any(train) else dataset.test_images)
    return Info(
        name=name,
        classes=dataset.classes,
        train_counts=train,
        test_counts=test,
        mean=mean,
        std=std,
        source=dataset.source,
        digest=dataset.digest,
        path=path,
        bytes=path.stat().st_size,
        valid_counts=valid if any(valid) else (),
        preparation=dataset.preparation,
    )


def _read(path: Path) -> Dataset:
    try:
        with safe_open(path, framework="pt") as file:
            classes, source, digest = _head(file.metadata())
            preparation = _preparation(file.metadata())
            given = _VALID if set(_VALID) & set(file.keys()) else ()
            tensors = {key: file.get_tensor(key) for key in (*_TENSORS, *given)}
        train = Split(tensors["train_images"], tensors["train_labels"])
        test = Split(tensors["test_images"], tensors["test_labels"])
        valid = Split(tensors["valid_images"], tensors["valid_labels"]) if given else EMPTY
        check(train, test, classes, valid)
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise ExternalError(
            f"{one_line(path)} is damaged or not a prepared data set ({reason(error)}); "
            f"{_remedy(path.stem)}"
        ) from error
    where = str(path.absolute())
    return Dataset(path.stem, *train, *test, classes, source, digest, where, preparation, *valid)


def _summary(name: str, path: Path) -> Summary:
    built_in = name == shapes10.NAME
    if built_in and not path.exists():
        classes, source = tuple(shapes10.CLASSES), shapes10.SOURCE
        return Summary(name, classes, 0, 0, source, "", path, 0, built_in)
    try:
        with safe_open(path, framework="pt") as file:
            classes, source, digest = _head(file.metadata())
            keys = set(file.keys())
            train, test, valid = (
                file.get_slice(f"{split}_images").get_shape()[0]
                if split != "valid" or "valid_images" in keys
                else 0
                for split in ("train", "test", "valid")
            )
        size = path.stat().st_size
        return Summary(
            name, classes, train, test, source, digest, path, size, built_in, valid_size=valid
        )
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        return Summary(name, (), 0, 0, "", "", path, 0, built_in, problem=reason(error))


def _head(metadata: dict[str, str] | None) -> tuple[tuple[str, ...], str, str]:
    """Class names, source and digest."""
    if not metadata or metadata.get("format") != FORMAT:
        raise ValueError(f"it is not in the format {FORMAT}")
    try:
        classes = json.loads(metadata["classes"])
    except RecursionError as error:
        raise ValueError("its class names are nested") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its class names are no list of text")
    return tuple(classes), metadata["source"], metadata["digest"]


def _preparation(metadata: dict[str, str]) -> dict[str, Any]:
    """What the import did; nothing in files of before that was recorded."""
    try:
        found = json.loads(metadata.get("preparation", "{}"))
    except RecursionError as error:
        raise ValueError("what its import did is nested") from error
    if not isinstance(found, dict):
        raise ValueError("what its import did is no JSON object")
    return found


def _draw_shapes10() -> Dataset:
    drawn = shapes10.generate()
    train = Split(drawn.train_images, drawn.train_labels)
    test = Split(drawn.test_images, drawn.test_labels)
    return make_dataset(shapes10.NAME, train, test, shapes10.CLASSES, shapes10.SOURCE)


def _missing(name: str, root: Path) -> str:
    there = [summary.name for summary in list_prepared(root)]
    fetch = f", fetch it with `fcifar data fetch {name}`" if name in KNOWN else ""
    hint = "" if name in KNOWN else did_you_mean(name, [*there, *KNOWN])
    return (
        f"there is no data set {name!r} in {one_line(root)}, which offers: {', '.join(there)}"
        f"; prepare it with `fcifar data import`{fetch}, "
        f"or use the built-in one with `--dataset {shapes10.NAME}`{hint}"
    )


def _remedy(name: str) -> str:
    if name == shapes10.NAME:
        return "delete the file, and it will be drawn again"
    return "delete the file, or import its source again with --force"


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel. Exact sums, by counting the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    )
    weights = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    variance = (weights * torch.square(values - mean[:, None])).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
