"""Folders of images: ``train/<class>/<file>`` and ``test/<class>/<file>``, or ``<class>/<file>``.

``layout`` says of each image which split and class it is of, from paths alone; ``read`` decodes.
"""

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from fcifar import random
from fcifar.data import image_files
from fcifar.data.dataset import EMPTY, SIDE, Content, Split
from fcifar.data.image_files import Picture, UnreadableError
from fcifar.data.split import hold_out_of_each
from fcifar.data.throttle import Progress
from fcifar.errors import ExternalError, UsageError, one_line

Decode = Callable[[str, Any], Picture]  # raises UsageError or ExternalError

SPLITS = MappingProxyType(
    {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("test", "testing"), "test"),
        **dict.fromkeys(("val", "valid", "validation"), "valid"),
    }
)
"""What folders of splits are called, in lower case, and the split."""

_SET = re.compile(r"[ _-]?set$")  # "training_set"
_TABLE = re.compile(r"(train|training|test|testing|val|valid|validation|)_?labels\.csv")
_ANNOTATIONS = re.compile(r"(train|test|val)_annotations\.txt")  # of tiny-ImageNet
_INSIDE = ("images", "image", "imgs", "img")  # a folder of nothing but the images of a class
_MOST_LISTED = 100  # that are recorded by name


class Place(NamedTuple):
    """Which split and class an image is of."""

    split: str  # "train", "test" or "valid"; "" for an image in no folder of a split
    label: str  # the class, composed as Unicode's NFC; "" for an image without one
    path: str


class Layout(NamedTuple):
    """A folder of images, by its paths."""

    places: list[Place]  # of every image
    tops: dict[str, str]  # what the folder of a split is called; empty where there are none
    tables: dict[str, str]  # of a split whose classes a table of labels says: its path
    unmatched: dict[str, int]  # how many rows of a table name no image, by its path
    empty: list[Place]  # folders, and files that cannot be read here, of a class


def split_of(folder: str) -> str:
    """``"test"`` of ``"Testing"`` or ``"test_set"``; ``""`` of the name of no split."""
    return SPLITS.get(_SET.sub("", folder.lower()), "")


def is_table(path: str) -> bool:
    """Whether a path may be a table of labels: Kaggle's ``trainLabels.csv``, and the like."""
    name = PurePosixPath(path).name.lower()
    return bool(_TABLE.fullmatch(name) or _ANNOTATIONS.fullmatch(name))


def is_picture(path: str, content: Any) -> bool:
    """Whether a file is an image, by its name or else by its content; or is one decoded already."""
    if not isinstance(content, bytes) or image_files.is_image(path):
        return True
    return (
        not path.endswith("/")
        and image_files.may_be_image(path)
        and image_files.holds_image(io.BytesIO(content))
    )


def is_layout(files: Mapping[str, Any]) -> bool:
    """Whether there is any image."""
    return any(is_picture(path, content) for path, content in files.items())


# Which split and class ----------------------------------------------------------------------------


def layout(
    paths: Iterable[str], beside: Iterable[str] = (), tables: Mapping[str, bytes] | None = None
) -> Layout:
    """Which split and class each image is of.

    The folder of a split is called as in ``SPLITS``, in any case; without one, an image is of no
    split. Below it comes the folder of a class; single folders that hold all the others do not
    count, nor does a folder ``images`` in each class. Images that lie in no folder of a class get
    theirs from a table of labels, where there is one.

    Args:
        paths: of the images, relative, with "/".
        beside: folders, whose paths end in "/", and image files that cannot be read.
        tables: content of tables by path, see ``is_table``.

    Raises:
        UsageError: two folders are of one split, or a table cannot be read.
    """
    images, beside, tables = sorted(paths, key=_order), sorted(beside, key=_order), tables or {}
    tops = _tops(images, tables)
    found, empty, used, unmatched = [], [], {}, {}
    groups = {**{top: split for split, top in tops.items()}, **({} if tops else {"": ""})}
    for top, split in groups.items():
        start = f"{top}/" if top else ""
        here = {path: _parts(path, start) for path in images if path.startswith(start)}
        rows = _short(list(here.values()))
        labels = [row[0] if len(row) == 2 else "" for row in rows]
        if rows and all(len(row) == 1 for row in rows):
            table, known = _table(tables, split, top)
            labels = [known.get(row[0]) or known.get(_stem(row[0]), "") for row in rows]
            if table:
                used[split] = table
                names = {name for row in rows for name in (row[0], _stem(row[0]))}
                unmatched[table] = len(known.keys() - names)
        found += [Place(split, _nfc(label), path) for path, label in zip(here, labels, strict=True)]
        others = [path for path in beside if path.startswith(start)]
        cut = _short([*here.values(), *(_parts(path, start) for path in others)], len(here))
        empty += [
            Place(split, _nfc(row[0]), path)
            for path, row in zip(others, cut[len(here) :], strict=True)
            if len(row) == 2
        ]
    taken = {place.path for place in found}
    found += [Place("", "", path) for path in images if path not in taken]
    return Layout(found, tops, used, unmatched, empty)


def _order(path: str) -> tuple[str, str]:
    """The same for either spelling of a name, composed or not."""
    return _nfc(path), path


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _parts(path: str, start: str) -> tuple[str, ...]:
    return tuple(path.removeprefix(start).split("/"))


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _tops(paths: Sequence[str], tables: Mapping[str, bytes]) -> dict[str, str]:
    """The folder of each split."""
    depths: dict[str, set[int]] = {}
    for path in paths:
        if "/" in path:
            depths.setdefault(path.split("/")[0], set()).add(path.count("/"))
    named = [(split_of(top), top) for top in sorted(depths) if split_of(top)]
    tops = dict(named)
    for split, top in named:
        if tops[split] != top:
            raise UsageError(
                f"{one_line(top)}/ and {one_line(tops[split])}/ are both of the {split} split; "
                "keep one, or put all of it into one"
            )
    others = [top for top in depths if not split_of(top)]
    # Trains beside buses: a class, which holds images as all the others do.
    alike = all(depths[top] == {1} for top in depths)
    if len(tops) == 1 and others and alike and not any(map(is_table, tables)):
        return {}
    return {} if tops.keys() == {"valid"} else tops


def _short(rows: Sequence[tuple[str, ...]], count: int | None = None) -> list[tuple[str, ...]]:
    """Paths below a split without the folders that say nothing: ``(class, file)`` at best.

    Args:
        count: how many of them, from the first, say which folders these are. None: all.
    """
    rows = list(rows)
    asked = rows[:count]
    if asked and all(len(row) > 2 and row[-2].lower() in _INSIDE for row in asked):
        rows = [
            (*row[:-2], row[-1]) if len(row) > 2 and row[-2].lower() in _INSIDE else row
            for row in rows
        ]
    while (asked := rows[:count]) and len({row[0] for row in asked}) == 1:
        depths = {len(row) for row in asked}
        name = asked[0][0]
        # The last folder above the images is their class.
        if min(depths) > 2 or (depths == {2} and (name.lower() in _INSIDE or split_of(name))):
            rows = [row[1:] if row[0] == name else () for row in rows]
        else:
            break
    return rows


def _table(tables: Mapping[str, bytes], split: str, top: str) -> tuple[str, dict[str, str]]:
    """The path of a split's table, and the class of each file by its name; or nothing."""
    for path in sorted(tables):
        folder, _, name = path.rpartition("/")
        match = _TABLE.fullmatch(name.lower()) or _ANNOTATIONS.fullmatch(name.lower())
        if match is None or folder not in ("", top):
            continue
        # What has labels and is in no folder of a split is to train with.
        if match[1] and split_of(match[1]) != (split or "train"):
            continue
        return path, _labels(path, tables[path])
    return "", {}


def _labels(path: str, content: bytes) -> dict[str, str]:
    """The class of each file: a table's second column, or the one that is called label."""
    text = content.decode("utf-8-sig", "replace")
    tabs = path.lower().endswith(".txt")
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t" if tabs else ","))
    except csv.Error as error:
        raise UsageError(f"{one_line(path)} is not a table of labels: {error}") from error
    head = [] if tabs else [name.strip().lower() for name in rows[0]] if rows else []
    column = next((head.index(name) for name in ("label", "class") if name in head[1:]), 1)
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and not tabs):
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


def read(
    files: Mapping[str, Any],
    progress: Progress,
    *,
    decode: Decode,
    others: Iterable[str] = (),
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Content:
    """Decode every image. Classes, and the rows of each, come in the order of their names.

    Classes are numbered in the alphabetical order of their names, which for CIFAR-10 is the
    official order. Where there are images to train and to validate with and none to test with that
    have labels, those to validate with are the test split; else they are the given validation
    split. Images of no split are left out.

    Args:
        files: images, encoded or decoded, and tables of labels, by path; folders end in "/".
        decode: ``(path, content) -> Picture``.
        others: paths of files that are not in ``files``.
        test_fraction: of the images of each class, rounded, and at least one, to test with, where
            there is no test folder. 0 asks for a test folder.
        seed: of the key that chooses them.
        skip_unreadable: leave out images that cannot be read, instead of refusing.

    Returns:
        the splits, with ``preparation``: what was left out, and what was done to pixels.

    Raises:
        UsageError: a split or class is missing or empty, or files are no 32x32 images. These are
            named.
        ExternalError: files may not be read. These are named.
    """
    others = list(others)
    found = layout(
        (path for path in files if is_picture(path, files[path])),
        [path for path in files if path.endswith("/")] + [p for p in others if _is_lost(p)],
        {path: content for path, content in files.items() if is_table(path)},
    )
    members, left = _members(found, test_fraction)
    _check(found, members, held_out=bool(test_fraction))
    splits, decoded, failures = _decode_all(members, files, decode, progress)
    if failures and not skip_unreadable:
        raise image_files.cannot_read(list(failures.values()), len(decoded) + len(failures))
    if failures:
        _check(found, _without(members, failures), held_out=bool(test_fraction))
    train, test = splits["train"], splits.get("test")
    if test is None:
        kept, held_out = hold_out_of_each(random.key(seed), train.labels, test_fraction)
        train, test = (Split(*(part[rows] for part in train)) for rows in (kept, held_out))
    named, rest = image_files.left_out(others)
    tested = () if test_fraction else (_test_split(found),)
    preparation = {
        "images": len(decoded),
        **image_files.summed(decoded),
        "unreadable": len(failures),
        "unreadable_files": [image_files.short(e) for e in [*failures.values()][:_MOST_LISTED]],
        "left_out": {**named, **left},
        "other_files": rest,
        "labels_from": found.tables,
        "rows_without_image": sum(found.unmatched.values()),
        "test_from": "" if "valid" not in tested else f"{found.tops['valid']}/",
    }
    valid = splits.get("valid", EMPTY)
    return Content(train, test, tuple(members["train"]), valid, preparation)


def _is_lost(path: str) -> bool:
    """Whether a file is an image of a kind that cannot be read here."""
    return bool(image_files.left_out([path])[0])


Members = Mapping[str, Mapping[str, Sequence[str]]]  # by split and class: paths, in order


def _members(found: Layout, test_fraction: float) -> tuple[Members, dict[str, int]]:
    """The images to decode, and how many are left out by folder."""
    if not found.tops:
        members = {"train": _by_class(found, "")}
        if not test_fraction:
            raise UsageError(
                "there are class folders, and neither train/ nor test/ above them; add "
                "--test-fraction 0.1 to hold a tenth of each class out for testing"
            )
        return members, {}
    outside = Counter(
        f"{place.path.split('/')[0]}/" if "/" in place.path else "no folder"
        for place in found.places
        if not place.split
    )
    test = _test_split(found)
    labelled = {place.split for place in found.places if place.label}
    bare = {
        f"{found.tops[split]}/ (no labels)": sum(place.split == split for place in found.places)
        for split in found.tops
        if split != "train" and split not in labelled
    }
    if test_fraction:
        if "test" in labelled:
            raise UsageError("there is a test folder already; leave --test-fraction out")
        test = ""
    elif not test:
        if bare:
            where = one_line(found.tops.get("test", found.tops.get("valid")))
            raise UsageError(
                f"the images in {where}/ have no labels; add --test-fraction 0.1 to test with a "
                "part of train/"
            )
        raise UsageError(
            "there is no test/<class>/ folder; both train and test are needed, or add "
            "--test-fraction 0.1 for a part of train/"
        )
    if "train" not in found.tops:
        raise UsageError("there is no train/<class>/ folder; both train and test are needed")
    used = {"train": "train", **({"test": test} if test else {})}
    if "valid" in labelled and test != "valid":
        used["valid"] = "valid"
    left = {**dict(sorted(outside.items())), **bare}
    return {name: _by_class(found, split) for name, split in used.items()}, left


def _test_split(found: Layout) -> str:
    """The split to test with: that of validation where images to test with have no labels."""
    labelled = {place.split for place in found.places if place.label}
    return next((split for split in ("test", "valid") if split in labelled), "")


def _by_class(found: Layout, split: str) -> dict[str, list[str]]:
    """Image paths by class, both in sorted order."""
    start = f"{found.tops[split]}/" if split in found.tops else ""
    here = [place for place in found.places if place.split == split]
    if lost := [place.path for place in here if not place.label]:
        if split in found.tables:
            raise UsageError(
                f"{one_line(found.tables[split])} has no class for {len(lost):,} of {len(here):,} "
                f"images, {one_line(lost[0])} among them; add them, or move these files away"
            )
        raise UsageError(
            f"{one_line(lost[0])} does not lie in a folder {one_line(start)}<class>/; move it there"
        )
    classes: dict[str, list[str]] = {}
    for place in sorted(here, key=lambda place: (place.label, _order(place.path))):
        classes.setdefault(place.label, []).append(place.path)
    return classes


def _without(members: Members, lost: Iterable[str]) -> Members:
    gone = set(lost)
    return {
        split: {name: [p for p in paths if p not in gone] for name, paths in classes.items()}
        for split, classes in members.items()
    }


def _check(found: Layout, members: Members, *, held_out: bool) -> None:
    """Raise a UsageError unless every class has images wherever it needs some."""
    tops = {
        name: found.tops.get(_test_split(found) if name == "test" else name, "") for name in members
    }
    for name, classes in members.items():
        start = f"{tops[name]}/" if tops[name] else ""
        split = _test_split(found) if name == "test" else name if found.tops else ""
        for place in found.empty:
            if place.split == split and place.label not in classes:
                lost = Counter(
                    image_files.ending_of(other.path)
                    for other in found.empty
                    if other[:2] == place[:2] and not other.path.endswith("/")
                )
                there = (
                    f" that can be read in it: {image_files.in_words(lost)}" if lost else " in it"
                )
                raise UsageError(
                    f"{one_line(start + place.label)}/ has no image{there}; put image files "
                    "(.png, .jpg, ...) there or remove the folder"
                )
        if gone := [label for label, paths in classes.items() if not paths]:
            raise UsageError(
                f"no image of class {one_line(repr(gone[0]))} in {one_line(start) or 'it'} can be "
                "read; replace them, or remove the class"
            )
    if lost := sorted(set(members.get("valid", ())) - set(members["train"])):
        raise UsageError(
            f"class {one_line(repr(lost[0]))} is in {one_line(tops['valid'])}/ but not in "
            f"{one_line(tops['train'])}/; put images of it there, or remove it"
        )
    if held_out:
        if few := [name for name, paths in members["train"].items() if len(paths) < 2]:
            raise UsageError(
                f"class {one_line(repr(few[0]))} has a single image; to hold a part of it out for "
                "testing, it needs two or more"
            )
        return
    for split, other in (("train", "test"), ("test", "train")):
        if lost := sorted(set(members[other]) - set(members[split])):
            raise UsageError(
                f"class {one_line(repr(lost[0]))} is in {one_line(tops[other])}/ but not in "
                f"{one_line(tops[split])}/; every class needs both"
            )


def _decode_all(
    members: Members, files: Mapping[str, Any], decode: Decode, progress: Progress
) -> tuple[dict[str, Split], list[Picture], dict[str, UsageError | ExternalError]]:
    """The splits, what was done to their images, and which of them cannot be read."""
    total = sum(len(paths) for classes in members.values() for paths in classes.values())
    splits: dict[str, Split] = {}
    decoded: list[Picture] = []
    failures: dict[str, UsageError | ExternalError] = {}
    numbers = {name: number for number, name in enumerate(members["train"])}
    for split, classes in members.items():
        pixels, labels = bytearray(), []
        for name, paths in classes.items():
            for path in paths:
                try:
                    picture = decode(path, files[path])
                except (UnreadableError, ExternalError) as error:
                    failures[path] = error
                else:
                    pixels += picture.pixels
                    labels.append(numbers[name])
                    decoded.append(picture._replace(pixels=b""))
                progress("decoding images", len(decoded) + len(failures), total)
        splits[split] = Split(_to_images(pixels), torch.tensor(labels, dtype=torch.int64))
    return splits, decoded, failures


def _to_images(pixels: bytearray) -> torch.Tensor:
    rows = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.empty(0).byte()
    return rows.reshape(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).contiguous()
