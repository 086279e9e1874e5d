"""Parquet files of data sets on Hugging Face: encoded images, labels and class names.

The repository of a data set has ``train-00000-of-00001.parquet`` and the like, often in ``data/``.
An image is a struct of ``bytes`` and ``path``, or bytes. Class names are in the schema's metadata.
"""

import importlib.util
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch

from fcifar.data import image_files
from fcifar.data.dataset import Content, ImportOptions, Split
from fcifar.data.image_files import Decoded, UnreadableError
from fcifar.data.readers.npz import class_names
from fcifar.data.split import hold_out_test
from fcifar.data.throttle import Progress
from fcifar.errors import UsageError, names_of, one_line, reason

ENDING = ".parquet"
ROWS_LIMIT = 2_000_000  # of a file
BYTES_LIMIT = 2**31  # of a column of a file, decompressed
_BATCH = 64  # rows in memory as encoded images

_IMAGES = ("img", "image", "images")
_LABELS = ("label", "labels", "fine_label", "fine_labels", "class", "target")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Split by the words that Hugging Face recognizes in names of files and folders."""


class Shard(NamedTuple):
    """The content of a file."""

    pixels: bytes  # 3072 of each readable image, rows of RGB triples
    labels: tuple[int | str, ...]  # of these images
    classes: tuple[str, ...]  # names of integer labels, if known
    decoded: tuple[Decoded, ...]  # changes to these images, without pixels
    failures: tuple[UsageError, ...]  # errors of the other images


def read_shard(path: str, data: bytes, options: ImportOptions, progress: Progress) -> Shard:
    """Decode every image of a file. ``labels`` and ``resize`` of the options are used."""
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
        labels = options.labels
        names = (f"{labels}_label", f"{labels}_labels") if labels else _LABELS
        label = _column(path, schema.names, features, "" if labels else "ClassLabel", names)
        rows = file.metadata.num_rows
        _check_size(path, file.metadata)
        pixels, found, decoded, failures = bytearray(), [], [], []
        for batch in file.iter_batches(_BATCH, columns=[image, label], use_threads=False):
            for row in batch.to_pylist():
                where = f"{path}, image {len(found) + len(failures)}"
                content = io.BytesIO(_content(where, image, row[image]))
                number = _label(where, label, row[label])
                try:
                    each = image_files.decode(content, one_line(where), options.resize)
                except UnreadableError as error:
                    failures.append(UnreadableError(str(error)))  # without the data
                    continue
                pixels += each.pixels
                decoded.append(each._replace(pixels=b""))
                found.append(number)
            progress("decoding images", len(found) + len(failures), rows)
    except UsageError:
        raise
    except Exception as error:  # damaged bytes lead pyarrow to errors of many types
        raise UsageError(
            f"{one_line(path)} cannot be read as a parquet file ({reason(error)}); get a fresh "
            "copy of it"
        ) from error
    classes = features.get(label, {}).get("names")
    is_text = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    names = tuple(classes) if is_text else ()
    return Shard(bytes(pixels), tuple(found), names, tuple(decoded), tuple(failures))


def read(files: Mapping[str, Shard | UsageError], options: ImportOptions) -> Content:
    """Return the data set in ``files``, by path.

    The name or folder of a file determines its split: ``train-00000-of-00001.parquet``,
    ``test/0000.parquet``. If none does, all images are training images. If there are training and
    validation images and no labelled test images, the validation images are the test split. Without
    training images there is a test split only. ``test_fraction``, ``seed`` and ``skip_unreadable``
    of the options are used.
    """
    shards: dict[str, Shard] = {}
    for path, shard in sorted(files.items()):
        if isinstance(shard, UsageError):
            raise shard
        shards[path] = shard
    _check_one(shards)
    failures = [error for shard in shards.values() for error in shard.failures]
    if failures and not options.skip_unreadable:
        count = len(failures) + sum(len(shard.decoded) for shard in shards.values())
        raise image_files.cannot_read(failures, count)
    splits, test_from = _splits(shards, options)
    used = {path: shards[path] for path, split in splits.items() if split}
    classes, numbers = _numbered(used)
    parts = {}
    for split in ("train", "valid", "test"):
        paths = [path for path in used if splits[path] == split]
        pixels = bytearray().join(used[path].pixels for path in paths)
        labels = [number for path in paths for number in numbers[path]]
        labels = torch.tensor(labels, dtype=torch.int64)
        parts[split] = Split(image_files.to_tensor(pixels), labels)
    train, valid, test = parts.values()
    if options.test_fraction:
        train, test = hold_out_test(train, classes, options)
    decoded = [image for shard in used.values() for image in shard.decoded]
    preparation = {
        **image_files.preparation(decoded, failures),
        "others": [path for path, split in splits.items() if not split],
        "test_from": test_from,
    }
    return Content(train, test, classes, valid, preparation)


def _splits(shards: Mapping[str, Shard], options: ImportOptions) -> tuple[dict[str, str], str]:
    """The split of each file, "" if it is left out; "validation" if that is the test split."""
    splits = {path: split_of(path) for path in shards}
    if not any(splits.values()):
        splits = dict.fromkeys(splits, "train")
    if options.test_fraction:
        if "test" in splits.values():  # labelled or not
            raise UsageError("there are test images already; leave --test-fraction out")
        return splits, ""
    # Unpublished labels of test images are -1, as in ImageNet.
    bare = [
        path
        for path, split in splits.items()
        if split == "test" and set(shards[path].labels) == {-1}
    ]
    there = {split for path, split in splits.items() if path not in bare}
    if "test" in there:
        return splits, ""
    if {"train", "valid"} <= there:
        roles = {"train": "train", "valid": "test"}
        return {path: roles.get(split, "") for path, split in splits.items()}, "validation"
    why = f"no file is called test-*{ENDING}, and test images are needed"
    if bare:
        why = f"the labels in {one_line(bare[0])} are all -1, and test images need theirs"
    raise UsageError(f"{why}; add --test-fraction 0.1 for a part of the training images")


def split_of(path: str) -> str:
    """Return the split of a file by its name, or else by its folder: train, valid, test, or "".

    >>> from fcifar.data.readers.parquet import split_of
    >>> split_of("data/validation-00000-of-00002.parquet"), split_of("test/0000.parquet")
    ('valid', 'test')
    """
    for part in reversed(PurePosixPath(path).parts):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _check_one(paths: Collection[str]) -> None:
    """Raise a UsageError if there are several data sets, each in its own folder."""
    folders = {
        "/".join(part for part in PurePosixPath(path).parent.parts if part.lower() not in _SPLITS)
        for path in paths
    }
    if len(folders) > 1:
        names = [f"{folder or '.'}/" for folder in sorted(folders)]
        raise UsageError(
            f"there are several data sets, in {one_line(names_of(names))}; give the folder of one"
        )


def _numbered(shards: Mapping[str, Shard]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Class names, and the integer labels of each shard."""
    named = {shard.classes for shard in shards.values() if shard.classes}
    texts = {label for shard in shards.values() for label in shard.labels if isinstance(label, str)}
    index: dict[int | str, int] = {name: number for number, name in enumerate(sorted(texts))}
    if texts and any(isinstance(n, int) for shard in shards.values() for n in shard.labels):
        raise UsageError("labels are text here and numbers there; give files of one data set")
    numbers = {
        path: [index[label] if isinstance(label, str) else label for label in shard.labels]
        for path, shard in shards.items()
    }
    if texts:
        return tuple(sorted(texts)), numbers
    if len(named) > 1:
        raise UsageError("the files have different class names; give files of one data set")
    if named:
        return named.pop(), numbers
    return class_names(None, [torch.tensor(each).long() for each in numbers.values()]), numbers


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Hugging Face's description of each column, if there is one."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _column(
    path: str, columns: Sequence[str], features: Mapping[str, Any], kind: str, names: Sequence[str]
) -> str:
    """The first column of these names, else the only one of this kind on Hugging Face."""
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


def _check_size(path: str, metadata: Any) -> None:
    """Raise a UsageError if the file would not fit into memory, according to its metadata."""
    sizes = [0] * metadata.num_columns
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for i in range(group.num_columns):
            sizes[i] += group.column(i).total_uncompressed_size
    if metadata.num_rows > ROWS_LIMIT or max(sizes, default=0) > BYTES_LIMIT:
        raise UsageError(
            f"{one_line(path)} has {metadata.num_rows:,} rows of {max(sizes, default=0):,} bytes; "
            f"at most {ROWS_LIMIT:,} rows of {BYTES_LIMIT:,} bytes are accepted"
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
