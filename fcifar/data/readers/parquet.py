"""Parquet files as Hugging Face publishes data sets: encoded images, labels, and class names.

A repository of a data set has ``train-00000-of-00001.parquet`` and the like, often in ``data/``.
An image is a struct of ``bytes`` and ``path``, or bytes. Class names are in the schema's metadata.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch

from fcifar.data import image_files
from fcifar.data.dataset import EMPTY, SIDE, Content, Split
from fcifar.data.image_files import Picture, UnreadableError
from fcifar.data.readers.npz import class_names
from fcifar.data.split import hold_out_test
from fcifar.data.throttle import Progress
from fcifar.errors import UsageError, names_of, one_line, reason

ENDING = ".parquet"
ROWS_LIMIT = 2_000_000  # of one file
BYTES_LIMIT = 2**31  # of one column of a file, decompressed
_MOST_LISTED = 100  # images that cannot be read that are recorded by name
_BATCH = 64  # rows that are in memory as encoded images

_IMAGES = ("img", "image", "images")
_LABELS = ("label", "labels", "fine_label", "fine_labels", "class", "target")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""By the words that Hugging Face takes in the name of a file or folder."""

Decode = Callable[[str, bytes], Picture]


class Shard(NamedTuple):
    """What is in one file."""

    pixels: bytes  # 3072 of each image that could be read, rows of RGB triples
    labels: tuple[int | str, ...]  # of these
    classes: tuple[str, ...]  # the names of labels that are numbers; empty where they have none
    decoded: tuple[Picture, ...] = ()  # what was done to each image, without its pixels
    failures: tuple[UsageError, ...] = ()  # why the others could not be read


def is_layout(paths: Sequence[str]) -> bool:
    """Whether there is any such file."""
    return any(path.endswith(ENDING) for path in paths)


def read_shard(
    path: str,
    data: bytes,
    decode: Decode,
    labels: str | None = None,
    progress: Progress | None = None,
) -> Shard:
    """Decode every image of a file, ``_BATCH`` rows at a time.

    Args:
        path: what messages call the file.
        decode: ``(where, content of an image file) -> Picture``, which may raise an
            ``UnreadableError``.
        labels: "fine" or "coarse", of CIFAR-100; None for fine, and for all else.

    Raises:
        UsageError: pyarrow is not installed, or the file is damaged or has no images and labels.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{one_line(path)} needs pyarrow, which is not installed; pip install 'fcifar[parquet]'"
        )
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        features = _features(schema.metadata)
        image = _column(path, schema.names, features, "Image", _IMAGES)
        wanted = (f"{labels}_label", f"{labels}_labels") if labels else _LABELS
        label = _column(path, schema.names, features, "" if labels else "ClassLabel", wanted)
        rows = file.metadata.num_rows
        _check_size(path, file.metadata)
        pixels, found, decoded, failures = bytearray(), [], [], []
        for batch in file.iter_batches(_BATCH, columns=[image, label], use_threads=False):
            for row in batch.to_pylist():
                where = f"{path}, image {len(found) + len(failures)}"
                content, number = (
                    _content(where, image, row[image]),
                    _label(where, label, row[label]),
                )
                try:
                    picture = decode(where, content)
                except UnreadableError as error:
                    failures.append(error)
                    continue
                pixels += picture.pixels
                decoded.append(picture._replace(pixels=b""))
                found.append(number)
            if progress is not None:
                progress("decoding images", len(found) + len(failures), rows)
    except UsageError:
        raise
    except Exception as error:  # damaged bytes lead pyarrow to errors of many kinds
        raise UsageError(
            f"{one_line(path)} cannot be read as a parquet file ({reason(error)}); get a fresh "
            "copy of it"
        ) from error
    names = _names(features.get(label))
    return Shard(bytes(pixels), tuple(found), names, tuple(decoded), tuple(failures))


def read(
    shards: Mapping[str, Shard],
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Content:
    """The data set in ``shards``, by the paths of their files, which tell the splits.

    A file is of the split that its name or its folder says, as ``train-00000-of-00001.parquet`` or
    ``test/0000.parquet``; where no file says one, all are training images. Where there are training
    and validation images and no test images with labels, the validation images are the test split.
    Without any training images it is a test set alone.

    Args:
        test_fraction: of each class, to test with, where there is no file of test images.
        seed: of the key that chooses these.
        skip_unreadable: leave out images that cannot be read, instead of refusing.

    Returns:
        the splits, with ``preparation``: what was left out, and what was done to pixels.

    Raises:
        UsageError: there are no test images, several data sets, labels that do not agree, or images
            that cannot be read.
    """
    _check_one(shards)
    failures = [error for path in sorted(shards) for error in shards[path].failures]
    decoded = [picture for shard in shards.values() for picture in shard.decoded]
    if failures and not skip_unreadable:
        raise image_files.cannot_read(failures, len(decoded) + len(failures))
    splits = {path: split_of(path) for path in sorted(shards)}
    if not any(splits.values()):
        splits = dict.fromkeys(splits, "train")
    test_from = ""
    if not test_fraction:
        splits, test_from = _with_test(splits, shards)
    elif "test" in splits.values():  # unlabelled ones too: nothing says to leave them out
        raise UsageError("there are test images already; leave --test-fraction out")
    used = {path: shards[path] for path, own in splits.items() if own}
    classes, numbers = _numbered(used)

    def split(name: str) -> Split:
        paths = [path for path, own in splits.items() if own == name]
        if not paths:
            return EMPTY
        pixels = bytearray().join(shards[path].pixels for path in paths)
        labels = [number for path in paths for number in numbers[path]]
        if not labels:
            return EMPTY
        rows = torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, SIDE, SIDE, 3)
        return Split(rows.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))

    train, valid, test = map(split, ("train", "valid", "test"))
    if test_fraction:
        train, test = hold_out_test(train, classes, test_fraction, seed)
    preparation = {
        "images": sum(len(shard.decoded) for shard in used.values()),
        **image_files.summed(picture for shard in used.values() for picture in shard.decoded),
        "unreadable": len(failures),
        "unreadable_files": [image_files.short(error) for error in failures[:_MOST_LISTED]],
        "others": [path for path, own in splits.items() if not own],
        "test_from": test_from,
    }
    return Content(train, test, classes, valid, preparation)


def _with_test(
    splits: Mapping[str, str], shards: Mapping[str, Shard]
) -> tuple[dict[str, str], str]:
    """The split of each file, one of them "test", and what these files are in the source, if it is
    not that.
    """
    # As ImageNet has it: labels of test images are not published, and are -1.
    bare = [
        path
        for path, own in splits.items()
        if own == "test" and shards[path].labels and set(shards[path].labels) == {-1}
    ]
    there = {own for path, own in splits.items() if path not in bare}
    if "test" in there:
        return dict(splits), ""
    if {"train", "valid"} <= there:
        renamed = {path: "test" if own == "valid" else own for path, own in splits.items()}
        return {path: "" if path in bare else own for path, own in renamed.items()}, "validation"
    why = f"no file is called test-*{ENDING}, and test images are needed"
    if bare:
        why = f"the labels in {one_line(bare[0])} are all -1, and test images need theirs"
    raise UsageError(f"{why}; add --test-fraction 0.1 for a part of the training images")


def split_of(path: str) -> str:
    """The split that a file is of by its name, or else by its folder: train, valid, test, or "".

    >>> from fcifar.data.readers.parquet import split_of
    >>> split_of("data/validation-00000-of-00002.parquet"), split_of("test/0000.parquet")
    ('valid', 'test')
    """
    for part in reversed(PurePosixPath(path).parts):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _check_one(paths: Mapping[str, Any]) -> None:
    """Raise a UsageError where files lie as those of several data sets do."""
    folders = {
        "/".join(part for part in PurePosixPath(path).parent.parts if part.lower() not in _SPLITS)
        for path in paths
    }
    if len(folders) > 1:
        names = [f"{folder or '.'}/" for folder in sorted(folders)]
        raise UsageError(
            f"there are several data sets, in {one_line(names_of(names))}; give the folder of one"
        )


def _numbered(
    shards: Mapping[str, Shard],
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Class names, and the labels of each shard as numbers of them."""
    named = {shard.classes for shard in shards.values() if shard.classes}
    texts = {label for shard in shards.values() for label in shard.labels if isinstance(label, str)}
    numbers = {
        path: [label for label in shard.labels if isinstance(label, int)]
        for path, shard in shards.items()
    }
    if texts and any(numbers.values()):
        raise UsageError("labels are text here and numbers there; give files of one data set")
    if texts:
        classes = tuple(sorted(texts))
        number_of: dict[int | str, int] = {name: i for i, name in enumerate(classes)}
        return classes, {
            path: [number_of[label] for label in shard.labels] for path, shard in shards.items()
        }
    if len(named) > 1:
        raise UsageError("the files have different class names; give files of one data set")
    if named:
        return named.pop(), numbers
    each = [torch.tensor(labels, dtype=torch.int64) for labels in numbers.values()]
    return class_names(None, each), numbers


# One file -----------------------------------------------------------------------------------------


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What Hugging Face says of each column, by its name; nothing where that is not there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _names(feature: Mapping[str, Any] | None) -> tuple[str, ...]:
    names = (feature or {}).get("names")
    is_text = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_text else ()


def _column(
    path: str, columns: Sequence[str], features: Mapping[str, Any], kind: str, names: Sequence[str]
) -> str:
    """The first column of those names, or the one of a kind that Hugging Face gives to it."""
    for name in names:
        if name in columns:
            return name
    of_kind = [name for name in columns if features.get(name, {}).get("_type") == kind]
    if len(of_kind) == 1:
        return of_kind[0]
    raise UsageError(
        f"{one_line(path)} has no column {' or '.join(names)}; it has "
        f"{one_line(names_of([one_line(name) for name in columns])) or 'none'}"
    )


def _check_size(path: str, about: Any) -> None:
    """Raise a UsageError for more than fits into memory, by what the file says of itself."""
    sizes = [0] * about.num_columns
    for group in map(about.row_group, range(about.num_row_groups)):
        for i in range(group.num_columns):
            sizes[i] += group.column(i).total_uncompressed_size
    if about.num_rows > ROWS_LIMIT or max(sizes, default=0) > BYTES_LIMIT:
        raise UsageError(
            f"{one_line(path)} has {about.num_rows:,} rows of {max(sizes, default=0):,} bytes; at "
            f"most {ROWS_LIMIT:,} rows of {BYTES_LIMIT:,} bytes are accepted"
        )


def _content(where: str, column: str, value: Any) -> bytes:
    """The bytes of an image file in a row."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content
    if isinstance(value, dict) and value.get("path"):
        raise UsageError(
            f"{one_line(where)} is a path, {one_line(value['path'])}, and its bytes are not in the "
            "file; import the folder of images itself"
        )
    raise UsageError(
        f"{one_line(where)} is not an image file: column {one_line(column)} holds "
        f"{type(value).__name__}, and bytes of PNG or JPEG files are needed"
    )


def _label(where: str, column: str, value: Any) -> int | str:
    if type(value) is str or (type(value) is int and abs(value) < 2**31):
        return value
    raise UsageError(
        f"{one_line(where)} has {one_line(repr(value))} in column {one_line(column)}; a label is a "
        "whole number or text"
    )
