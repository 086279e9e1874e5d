"""From a source in any accepted form to a data set in the store."""

import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.data import archive, arrays, folders, official, pictures, shapes10, store
from fcifar.data.dataset import Content, Dataset, make_dataset
from fcifar.data.pictures import Picture
from fcifar.data.progress import Progress, paced
from fcifar.errors import UserError, WorldError, did_you_mean, one_line, shown

FOLDERS = "class folders"


class Wishes(NamedTuple):
    """How to read a source where there is more than one way."""

    resize: str | None = None  # how pictures become 32x32, a key of pictures.FITS; None: they are
    labels: str | None = None  # of CIFAR-100: fine or coarse; None: fine
    test_fraction: float = 0.0  # of each class, in (0, 1); 0: there is a test folder
    seed: int = 0  # of the key that chooses these
    skip_unreadable: bool = False  # leave out images that cannot be read, instead of refusing


def import_source(
    source: Path,
    name: str | None,
    root: Path,
    *,
    wishes: Wishes = Wishes(),  # noqa: B008
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Read a source, store it as ``name`` and return it, memory-mapped.

    The form of the source is told by what is in it, and rows come in an order that does not depend
    on the order of an archive. ``progress(description, done, total)`` is called at most 20 times a
    second; total is 0 when unknown.

    Args:
        name: None for "cifar10" where the classes are those of CIFAR-10, "cifar100" or
            "cifar100-coarse" for CIFAR-100, and what the source is called for all else.
        wishes: how to read it.

    Raises:
        UserError: the source is not acceptable, a wish does not fit it, or the name is taken or
            not allowed.
        WorldError: the source cannot be read, or the store not written.

    Whatever is raised, the store is as it was.
    """
    _check(wishes)
    if name is not None:
        check_free(name, root, overwrite)
    report = paced(progress)
    convert = None if wishes.resize is None else _resizing(wishes.resize)
    files, others = archive.read(source, _is_wanted, report, convert)
    form, content = _read(files, others, source, wishes, report)
    rest = _rest(content.preparation)
    if name is None:
        name = _name(source, content, form)
        check_free(name, root, overwrite)
    origin = f"{form} {one_line(source.resolve().name)}{rest}{_in_words(wishes)}"
    return keep(content, name, root, origin, source=one_line(source), progress=report)


def keep(
    content: Content, name: str, root: Path, origin: str, *, source: str, progress: Progress
) -> Dataset:
    """Store what a reader found as ``name`` and return it, memory-mapped.

    Args:
        origin: where it came from, for a person.
        source: what a message calls it.
    """
    try:
        dataset = make_dataset(name, content.train, content.test, content.classes, origin)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    dataset = dataset._replace(preparation=content.preparation)
    progress(f"storing {name}", 0, 0)
    store.save(dataset, root)
    return store.load(name, root)


def check_free(name: str, root: Path, overwrite: bool) -> None:
    """Raise a UserError unless ``name`` may be stored."""
    path = store.path_of(name, root)
    if name == shapes10.NAME:
        raise UserError(f"{name!r} is the built-in data set; choose another name")
    if path.exists() and not overwrite:
        raise UserError(
            f"there is a data set {name!r} in {one_line(root)} already; "
            "add --force to replace it, or choose another name"
        )


def _check(wishes: Wishes) -> None:
    for option, value, choices in (
        ("--resize", wishes.resize, pictures.FITS),
        ("--labels", wishes.labels, official.LABELS),
    ):
        if value is not None and value not in choices:
            raise UserError(
                f"{option} is {shown(value)}; it must be {' or '.join(choices)}"
                f"{did_you_mean(value, choices)}"
            )
    if wishes.test_fraction and not 0 < wishes.test_fraction < 1:
        raise UserError(f"--test-fraction is {wishes.test_fraction}; it must lie between 0 and 1")


def _is_wanted(path: str) -> bool:
    known = official.is_part(path) or folders.is_table(path) or path.endswith(".npy")
    return known or pictures.is_image(path)


def _resizing(how: str) -> archive.Convert:
    """An image as its 32x32 pixels, or why it cannot be read; what is none, as it is."""

    def convert(path: str, data: bytes) -> Any:
        if not folders.is_picture(path, data):
            return data
        try:
            return _decode(path, data, how)
        except UserError as error:
            return error

    return convert


def _decode(path: str, data: Any, how: str | None) -> Picture:
    """An image, unless it has been decoded when it was read, or could not be."""
    if isinstance(data, Exception):
        raise data
    if isinstance(data, Picture):
        return data
    ending = pictures.ending_of(path)
    return pictures.decode(io.BytesIO(data), one_line(path), how, ending=ending)


def _read(
    files: dict[str, Any], others: list[str], source: Path, wishes: Wishes, progress: Progress
) -> tuple[str, Content]:
    """The form of the source, in words, and what is in it."""
    try:
        if official.is_layout(files):
            _refuse(wishes, "CIFAR-10", ())
            return "official Python version", official.read(files)
        if official.is_layout_100(files):
            _refuse(wishes, "CIFAR-100", ("labels",))
            labels = wishes.labels or official.LABELS[0]
            return f"official CIFAR-100, {labels} labels,", official.read_100(files, labels)
        if official.is_binary_layout(files):
            _refuse(wishes, "CIFAR-10", ())
            return "official binary version", official.read_binary(files)
        if arrays.is_layout(files):
            _refuse(wishes, "an .npz", ("resize",))
            return "arrays", arrays.read(files, wishes.resize)
        if folders.is_layout(files):
            fitting = ("resize", "test_fraction", "skip_unreadable")
            _refuse(wishes, "a folder of class folders", fitting)
            content = folders.read(
                files,
                progress,
                decode=partial(_decode, how=wishes.resize),
                others=others,
                test_fraction=wishes.test_fraction,
                seed=wishes.seed,
                skip_unreadable=wishes.skip_unreadable,
            )
            resize = {"resize": wishes.resize} if wishes.resize else {}
            return FOLDERS, content._replace(preparation={**resize, **content.preparation})
    except (UserError, WorldError) as error:
        named = type(error)(f"{one_line(source)}: {error}")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error
    left, _ = pictures.left_out(others)
    if left:
        raise UserError(
            f"{one_line(source)} holds no images that can be read, but {pictures.in_words(left)}"
        )
    raise archive.unknown(source)


def _refuse(wishes: Wishes, what: str, fitting: tuple[str, ...]) -> None:
    """Raise a UserError if there is a wish that a form of source does not fulfil."""
    for name in ("resize", "labels", "test_fraction", "skip_unreadable"):
        if getattr(wishes, name) and name not in fitting:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with {what}, which this is; leave it out"
            )


def _rest(preparation: Mapping[str, Any]) -> str:
    """What a folder has besides, in words: nobody shall think that it was taken."""
    left: Mapping[str, int] = preparation.get("left_out", {})
    kinds = [f"{count:,} {what}" for what, count in left.items() if what.startswith(".")]
    places = {what: count for what, count in left.items() if not what.startswith(".")}
    parts = [f"{', '.join(map(one_line, kinds[:3]))}{', ...' * (len(kinds) > 3)}"] if kinds else []
    if places:
        count, where = sum(places.values()), ", ".join(map(one_line, [*places][:3]))
        more = ", ..." if len(places) > 3 else ""
        parts.append(f"{count:,} image{'s'[: count > 1]} in {where}{more}")
    if count := preparation.get("unreadable", 0):
        parts.append(f"{count:,} that cannot be read")
    return f", without {' and '.join(parts)}" if parts else ""


def _in_words(wishes: Wishes) -> str:
    parts = [f"resized ({wishes.resize})"] if wishes.resize else []
    if wishes.test_fraction:
        parts.append(f"{wishes.test_fraction:g} of each class to test with (seed {wishes.seed})")
    return "".join(f", {part}" for part in parts)


def _name(source: Path, content: Content, form: str) -> str:
    """What to call a data set of which nobody says."""
    if content.classes == official.CLASSES:
        return "cifar10"
    if "CIFAR-100" in form:
        return "cifar100-coarse" if "coarse" in form else "cifar100"
    stem = re.sub(r"\.(zip|npz|tar|tgz|tar\.gz)$", "", source.resolve().name.lower())
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:64]
    if not name:
        raise UserError(
            f"{one_line(repr(source.name))} makes no name for a data set; give one with --name"
        )
    return name
