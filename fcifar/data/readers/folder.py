"""Folders of images: ``train/<class>/<file>`` and ``test/<class>/<file>``, or ``<class>/<file>``.

``layout`` derives the split and class of each image from the paths; ``read`` decodes the images.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fcifar.data import image_files
from fcifar.data.dataset import EMPTY, Content, ImportOptions, Split
from fcifar.data.image_files import Decoded, Failure, UnreadableError
from fcifar.data.split import hold_out_test
from fcifar.errors import ExternalError, UsageError, one_line

Members = Mapping[str, Mapping[str, Sequence[str]]]  # sorted paths by split and class

SPLITS = MappingProxyType(
    {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("test", "testing"), "test"),
        **dict.fromkeys(("val", "valid", "validation"), "valid"),
    }
)
"""Split by the name of its folder, in lower case."""

_SET = re.compile(r"[ _-]?set$")  # "training_set"
_TABLE = re.compile(
    r"(train|training|test|testing|val|valid|validation|)_?labels\.csv"
    r"|(?P<tiny_imagenet>train|test|val)_annotations\.txt"
)
_INSIDE = ("images", "image", "imgs", "img")  # a folder around the images of a class


class Labelled(NamedTuple):
    """The split and class of a file."""

    split: str  # "train", "test" or "valid"; "" if it is in no folder of a split
    label: str  # the class in Unicode's NFC; "" if it has none
    path: str


class Layout(NamedTuple):
    """A folder of images, by its paths."""

    images: list[Labelled]
    tops: dict[str, str]  # folder by split; empty if there are none
    tables: dict[str, str]  # path of the table of labels by split, if it has one
    unmatched: int  # rows of tables without an image
    empty: list[Labelled]  # folders and unreadable files of a class


def split_of(folder: str) -> str:
    """``"test"`` for ``"Testing"`` or ``"test_set"``; ``""`` if the name is not that of a split."""
    return SPLITS.get(_SET.sub("", folder.lower()), "")


def is_table(path: str) -> bool:
    """Whether a file may be a table of labels, such as Kaggle's ``trainLabels.csv``."""
    return _TABLE.fullmatch(PurePosixPath(path).name.lower()) is not None


def is_image(path: str, content: Any) -> bool:
    """Whether a file is an image, decoded or not, by its ending or else by its content."""
    if not image_files.may_be_image(path):
        return image_files.is_image(path)
    if not isinstance(content, bytes):
        return True
    return not path.endswith("/") and image_files.holds_image(io.BytesIO(content))


def is_layout(files: Mapping[str, Any]) -> bool:
    """Whether there is an image."""
    return any(is_image(path, content) for path, content in files.items())


# Which split and class ----------------------------------------------------------------------------


def layout(
    paths: Iterable[str], beside: Iterable[str] = (), tables: Mapping[str, bytes] | None = None
) -> Layout:
    """Derive the split and class of each image.

    Folders of splits are named as in ``SPLITS``, in any case. The folders in them are the classes;
    single folders that hold all others are ignored, and so is a folder ``images`` in each class.
    Images that are not in class folders have their classes in a table of labels.

    Args:
        paths: of the images, relative, with "/".
        beside: folders, whose paths end in "/", and unreadable image files.
        tables: content of tables by path, see ``is_table``.
    """
    tables = tables or {}
    paths, beside = sorted(paths, key=_order), sorted(beside, key=_order)
    tops = _tops(paths, tables)
    images, empty, used, unmatched = [], [], {}, 0
    for split, top in (tops or {"": ""}).items():
        start = f"{top}/" if top else ""
        here, lost = ([p for p in group if p.startswith(start)] for group in (paths, beside))
        parts = [tuple(path.removeprefix(start).split("/")) for path in (*here, *lost)]
        rows = _short(parts, len(here))
        labels = [row[0] if len(row) == 2 else "" for row in rows]
        if here and all(len(row) == 1 for row in rows[: len(here)]):
            names = [row[0] for row in rows[: len(here)]]
            stems = [PurePosixPath(name).stem for name in names]
            table, known = _table(tables, split, top)
            both = zip(names, stems, strict=True)
            labels[: len(here)] = [known.get(n) or known.get(s, "") for n, s in both]
            if table:
                used[split] = table
                unmatched += len(known.keys() - {*names, *stems})
        every = [
            Labelled(split, _nfc(label), path)
            for label, path in zip(labels, (*here, *lost), strict=True)
        ]
        images += every[: len(here)]
        empty += [file for file in every[len(here) :] if file.label]
    taken = {image.path for image in images}
    images += [Labelled("", "", path) for path in paths if path not in taken]
    return Layout(images, tops, used, unmatched, empty)


def _order(path: str) -> tuple[str, str]:
    """A sort key that is the same for composed and decomposed spellings."""
    return _nfc(path), path


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _tops(paths: Sequence[str], tables: Mapping[str, bytes]) -> dict[str, str]:
    """The folder of each split."""
    depths: dict[str, set[int]] = {}
    for path in paths:
        if "/" in path:
            depths.setdefault(path.split("/")[0], set()).add(path.count("/"))
    tops: dict[str, str] = {}
    for top in sorted(depths):
        split = split_of(top)
        if split in tops:
            raise UsageError(
                f"{one_line(tops[split])}/ and {one_line(top)}/ are both of the {split} split; "
                "keep one, or put all of it into one"
            )
        if split:
            tops[split] = top
    # A class "train" beside a class "bus": all folders hold images.
    alike = len(tops) < len(depths) and all(depths[top] == {1} for top in depths)
    if len(tops) == 1 and alike and not any(map(is_table, tables)):
        return {}
    return {} if tops.keys() == {"valid"} else tops


def _short(rows: Sequence[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    """Remove the folders around all classes and in all classes: ``(class, file)`` at best.

    Args:
        rows: parts of paths below a split.
        count: number of rows, from the first, that determine these folders.
    """

    def wrapped(row: tuple[str, ...]) -> bool:
        return len(row) > 2 and row[-2].lower() in _INSIDE

    rows = list(rows)
    if count and all(map(wrapped, rows[:count])):
        rows = [(*row[:-2], row[-1]) if wrapped(row) else row for row in rows]
    while len({row[0] for row in rows[:count]}) == 1:
        name, depths = rows[0][0], {len(row) for row in rows[:count]}
        # The last folder above the images is their class.
        if min(depths) > 2 or (depths == {2} and (name.lower() in _INSIDE or split_of(name))):
            rows = [row[1:] if row[:1] == (name,) else () for row in rows]
        else:
            break
    return rows


def _table(tables: Mapping[str, bytes], split: str, top: str) -> tuple[str, dict[str, str]]:
    """The path of a split's table and the class by file name, or nothing."""
    for path in sorted(tables):
        folder, _, name = path.rpartition("/")
        match = _TABLE.fullmatch(name.lower())
        own = split_of(match[1] or match[2] or "") if match else None
        # Labelled images outside of the folders of splits are training images.
        if own in ("", split or "train") and folder in ("", top):
            return path, _labels(path, tables[path])
    return "", {}


def _labels(path: str, content: bytes) -> dict[str, str]:
    """The class by file name: column "label" or "class" of a table, else the second."""
    text = content.decode("utf-8-sig", "replace")
    has_head = not path.lower().endswith(".txt")
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="," if has_head else "\t"))
    except csv.Error as error:
        raise UsageError(f"{one_line(path)} is not a table of labels: {error}") from error
    head = [name.strip().lower() for name in rows[0]] if has_head and rows else []
    column = next((head.index(name) for name in ("label", "class") if name in head[1:]), 1)
    labels: dict[str, str] = {}
    for number, row in enumerate(rows[has_head:], 1 + has_head):
        if not row:
            continue
        if len(row) <= column or not row[column].strip():
            raise UsageError(
                f"{one_line(path)} has no label in line {number}; it needs the name of a file and "
                "its class in each"
            )
        name, label = PurePosixPath(row[0].strip()).name, row[column].strip()
        if labels.setdefault(name, label) != label:
            raise UsageError(f"{one_line(path)} has two labels for {one_line(name)}; keep one")
    return labels


# Reading ------------------------------------------------------------------------------------------


def read(files: Mapping[str, Any], others: Sequence[str], options: ImportOptions) -> Content:
    """Return the images. Classes, and the images of each, are in alphabetical order, which is the
    official order for CIFAR-10.

    If there are no labelled test images, labelled validation images are the test split; otherwise
    they are the given validation split. Images outside of the splits are left out.

    Args:
        files: decoded images or their errors, and tables of labels, by path; folders end in "/".
        others: paths of files that are not in ``files``.
        options: ``test_fraction``, ``seed`` and ``skip_unreadable`` are used.
    """
    folders = [path for path in files if path.endswith("/")]
    unreadable = [path for path in others if image_files.left_out([path])[0]]
    tables = {path: content for path, content in files.items() if is_table(path)}
    images = (path for path, content in files.items() if is_image(path, content))
    found = layout(images, folders + unreadable, tables)
    roles, left = _roles(found, options)
    members = {role: _by_class(found, split) for role, split in roles.items()}
    _check(found, roles, members)
    splits, decoded, failures = _collect(members, files)
    if failures and not options.skip_unreadable:
        raise image_files.cannot_read(list(failures.values()), len(decoded) + len(failures))
    for role, classes in members.items():
        for label, paths in classes.items():
            if failures.keys() >= set(paths):
                top = found.tops.get(roles[role])
                where = f"{one_line(top)}/" if top else "it"
                raise UsageError(
                    f"no image of class {one_line(repr(label))} in {where} can be read; replace "
                    "them, or remove the class"
                )
    classes, train = tuple(members["train"]), splits["train"]
    if options.test_fraction:
        train, test = hold_out_test(train, classes, options)
    else:
        test = splits["test"]
    named, rest = image_files.left_out(others)
    preparation = {
        **image_files.preparation(decoded, list(failures.values())),
        "left_out": {**named, **left},
        "other_files": rest,
        "labels_from": found.tables,
        "rows_without_image": found.unmatched,
        "test_from": f"{found.tops['valid']}/" if roles.get("test") == "valid" else "",
    }
    return Content(train, test, classes, splits.get("valid", EMPTY), preparation)


def _roles(found: Layout, options: ImportOptions) -> tuple[dict[str, str], dict[str, int]]:
    """The split in the folder that is used for each split, and the images left out, by folder."""
    if not found.tops:
        if not options.test_fraction:
            raise UsageError(
                "there are class folders, and neither train/ nor test/ above them; add "
                "--test-fraction 0.1 to hold a tenth of each class out for testing"
            )
        return {"train": ""}, {}
    labelled = {image.split for image in found.images if image.label}
    bare = [split for split in found.tops if split != "train" and split not in labelled]
    roles = {"train": "train"}
    if options.test_fraction:
        if "test" in labelled:
            raise UsageError("there is a test folder already; leave --test-fraction out")
    elif test := [split for split in ("test", "valid") if split in labelled]:
        roles["test"] = test[0]
    else:
        problem = "there is no test/<class>/ folder; both train and test are needed, or"
        if bare:
            where = one_line(found.tops.get("test", found.tops.get("valid")))
            problem = f"the images in {where}/ have no labels;"
        raise UsageError(f"{problem} add --test-fraction 0.1 to test with a part of train/")
    if "train" not in found.tops:
        raise UsageError("there is no train/<class>/ folder; both train and test are needed")
    if "valid" in labelled and roles.get("test") != "valid":
        roles["valid"] = "valid"
    outside = Counter(
        f"{image.path.split('/')[0]}/" if "/" in image.path else "no folder"
        for image in found.images
        if not image.split
    )
    counts = Counter(image.split for image in found.images)
    unused = {f"{found.tops[split]}/ (no labels)": counts[split] for split in bare}
    return roles, {**dict(sorted(outside.items())), **unused}


def _by_class(found: Layout, split: str) -> dict[str, list[str]]:
    """Image paths by class, both sorted."""
    here = [image for image in found.images if image.split == split]
    if lost := [image.path for image in here if not image.label]:
        if split in found.tables:
            raise UsageError(
                f"{one_line(found.tables[split])} has no class for {len(lost):,} of {len(here):,} "
                f"images, {one_line(lost[0])} among them; add them, or move these files away"
            )
        start = f"{found.tops[split]}/" if split in found.tops else ""
        raise UsageError(
            f"{one_line(lost[0])} does not lie in a folder {one_line(start)}<class>/; move it there"
        )
    classes: dict[str, list[str]] = {}
    for image in sorted(here, key=lambda image: (image.label, _order(image.path))):
        classes.setdefault(image.label, []).append(image.path)
    return classes


def _check(found: Layout, roles: Mapping[str, str], members: Members) -> None:
    """Raise a UsageError unless every class has images wherever it needs some."""
    tops = {role: found.tops.get(split, "") for role, split in roles.items()}
    for role, split in roles.items():
        for file in found.empty:
            if file.split == split and file.label not in members[role]:
                lost = Counter(
                    image_files.ending_of(other.path)
                    for other in found.empty
                    if other[:2] == file[:2] and not other.path.endswith("/")
                )
                what = (
                    f" that can be read in it: {image_files.in_words(lost)}" if lost else " in it"
                )
                start = f"{tops[role]}/" if tops[role] else ""
                raise UsageError(
                    f"{one_line(start + file.label)}/ has no image{what}; put image files "
                    "(.png, .jpg, ...) there or remove the folder"
                )
    for role, other, solution in (
        ("valid", "train", "put images of it there, or remove it"),
        ("test", "train", "every class needs both"),
        ("train", "test", "every class needs both"),
    ):
        lost = sorted(set(members.get(role, ())) - set(members.get(other, ())))
        if lost and other in roles:
            raise UsageError(
                f"class {one_line(repr(lost[0]))} is in {one_line(tops[role])}/ but not in "
                f"{one_line(tops[other])}/; {solution}"
            )


def _collect(
    members: Members, files: Mapping[str, Any]
) -> tuple[dict[str, Split], list[Decoded], dict[str, Failure]]:
    """The splits, the changes to their images, and the errors of the others."""
    splits: dict[str, Split] = {}
    decoded: list[Decoded] = []
    failures: dict[str, Failure] = {}
    numbers = {name: number for number, name in enumerate(members["train"])}
    for split, classes in members.items():
        pixels, labels = bytearray(), []
        for name, path in ((name, path) for name, paths in classes.items() for path in paths):
            image = files[path]
            if isinstance(image, Decoded):
                pixels += image.pixels
                labels.append(numbers[name])
                decoded.append(image._replace(pixels=b""))
            elif isinstance(image, UnreadableError | ExternalError):
                failures[path] = image
            else:
                raise image
        labels = torch.tensor(labels, dtype=torch.int64)
        splits[split] = Split(image_files.to_tensor(pixels), labels)
    return splits, decoded, failures
