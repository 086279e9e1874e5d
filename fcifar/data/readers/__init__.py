"""From a source in any accepted form to a data set in the store."""

import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fcifar.data import image_files, shapes10, store
from fcifar.data.dataset import Content, Dataset, make_dataset
from fcifar.data.image_files import Picture
from fcifar.data.readers import archive, cifar, folder, npz, parquet, testsets
from fcifar.data.readers.parquet import Shard
from fcifar.data.throttle import Progress, paced
from fcifar.errors import UserError, WorldError, did_you_mean, one_line, shown


class Wishes(NamedTuple):
    """How to read a source where there is more than one way."""

    resize: str | None = (
        None  # how pictures become 32x32, a key of image_files.FITS; None: they are
    )
    labels: str | None = None  # of CIFAR-100: fine or coarse; None: fine
    test_fraction: float = 0.0  # of each class, in (0, 1); 0: there is a test folder
    seed: int = 0  # of the key that chooses these
    skip_unreadable: bool = False  # leave out images that cannot be read, instead of refusing
    corruption: str | None = None  # of CIFAR-10-C, such as fog, where a source has several
    severity: int | None = None  # of it, 1 to 5; None: all of them


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
            "cifar100-coarse" for CIFAR-100, such as "cifar10-c-fog-3" for a corruption, and what
            the source is called for all else.
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
    shards: dict[str, Shard | UserError] = {}
    files, others = _gather(source, wishes, shards, report)
    form, content, suggested = _read(files, shards, others, source, wishes, report)
    rest = _rest(content.preparation)
    if name is None:
        name = _name(source, suggested)
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
        train, test, classes, valid, _ = content
        dataset = make_dataset(name, train, test, classes, origin, valid)
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
        ("--resize", wishes.resize, image_files.FITS),
        ("--labels", wishes.labels, cifar.LABELS),
    ):
        if value is not None and value not in choices:
            raise UserError(
                f"{option} is {shown(value)}; it must be {' or '.join(choices)}"
                f"{did_you_mean(value, choices)}"
            )
    if wishes.test_fraction and not 0 < wishes.test_fraction < 1:
        raise UserError(f"--test-fraction is {wishes.test_fraction}; it must lie between 0 and 1")
    if wishes.severity is not None and not 1 <= wishes.severity <= testsets.SEVERITIES:
        raise UserError(
            f"--severity is {wishes.severity}; it must be a whole number from 1 to "
            f"{testsets.SEVERITIES}"
        )


def _gather(
    source: Path, wishes: Wishes, shards: dict[str, Shard | UserError], progress: Progress
) -> archive.Found:
    """The files of a source that may be part of a data set.

    Args:
        shards: is filled with what is in parquet files, whose bytes are not kept, or with what is
            wrong with them, for beside image files they do not matter.
    """
    corruptions: set[str] = set()
    is_array = source.suffix == ".npy"

    def wanted(path: str) -> bool:
        stem = PurePosixPath(path).stem
        if path.endswith(".npy") and stem in testsets.CORRUPTIONS and not is_array:
            corruptions.add(stem)  # each has 154 MB; all of them together 2.9 GB
            return stem == wishes.corruption
        known = cifar.is_part(path) or folder.is_table(path)
        return known or path.endswith((".npy", parquet.ENDING)) or image_files.is_image(path)

    def convert(path: str, data: bytes) -> Any:
        """An image that is to be resized as its pixels, or why it cannot be; all else as it is."""
        if path.endswith(parquet.ENDING):
            try:
                shards[path] = parquet.read_shard(path, data, decode, wishes.labels, progress)
            except UserError as error:
                shards[path] = error
            return b""
        if wishes.resize is None or not folder.is_picture(path, data):
            return data
        try:
            return decode(path, data)
        except UserError as error:
            return error

    decode = partial(_decode, how=wishes.resize)
    selects = wishes.resize is not None or wishes.corruption is not None
    limit = archive.CONVERTED_LIMIT if selects else archive.TOTAL_LIMIT
    try:
        found = archive.read(source, wanted, progress, convert, limit=limit)
    except UserError as error:
        if corruptions and wishes.corruption is None:  # all of them are too many, and not listed
            every = testsets.refusal(testsets.CORRUPTIONS)
            raise UserError(f"{one_line(source)}: {every}") from error
        raise
    if not corruptions or wishes.corruption in corruptions or _has_images(found.files):
        return found
    if wishes.corruption is None:
        raise UserError(f"{one_line(source)}: {testsets.refusal(corruptions)}")
    raise UserError(f"{one_line(source)}: {testsets.unknown(wishes.corruption, corruptions)}")


def _has_images(files: Mapping[str, Any]) -> bool:
    return any(folder.is_picture(path, content) for path, content in files.items())


def _decode(path: str, data: Any, how: str | None) -> Picture:
    """An image, unless it has been decoded when it was read, or could not be."""
    if isinstance(data, Exception):
        raise data
    if isinstance(data, Picture):
        return data
    ending = image_files.ending_of(path)
    return image_files.decode(io.BytesIO(data), one_line(path), how, ending=ending)


def _read(
    files: dict[str, Any],
    shards: dict[str, Shard | UserError],
    others: list[str],
    source: Path,
    wishes: Wishes,
    progress: Progress,
) -> tuple[str, Content, str]:
    """The form of the source, in words, what is in it, and a name for it, which may be empty."""
    try:
        if cifar.is_layout(files):
            _refuse(wishes, "CIFAR-10", ())
            return _called("official Python version", cifar.read(files), wishes)
        if cifar.is_layout_100(files):
            _refuse(wishes, "CIFAR-100", ("labels",))
            labels = wishes.labels or cifar.LABELS[0]
            name = "cifar100-coarse" if labels == "coarse" else "cifar100"
            return f"official CIFAR-100, {labels} labels,", cifar.read_100(files, labels), name
        if cifar.is_binary_layout(files):
            _refuse(wishes, "CIFAR-10", ())
            return _called("official binary version", cifar.read_binary(files), wishes)
        has_images = _has_images(files)
        if shards and not has_images:
            fitting = ("resize", "test_fraction", "labels", "skip_unreadable")
            _refuse(wishes, "parquet files", fitting)
            content = parquet.read(
                _sound(shards),
                test_fraction=wishes.test_fraction,
                seed=wishes.seed,
                skip_unreadable=wishes.skip_unreadable,
            )
            return _called("parquet", content, wishes)
        if (testsets.is_layout(files) or source.suffix == ".npy") and not has_images:
            _refuse(wishes, "a test set alone", ("corruption", "severity"))
            called = "/".join(source.resolve().parts[-2:])
            read = testsets.read(files, called, wishes.corruption, wishes.severity)
            return "test set alone", *read
        if npz.is_layout(files) and not has_images:
            _refuse(wishes, "an .npz", ("resize", "test_fraction"))
            content = npz.read(
                files,
                wishes.resize,
                test_fraction=wishes.test_fraction,
                seed=wishes.seed,
                progress=progress,
            )
            return _called("arrays", content, wishes)
        if folder.is_layout(files):
            fitting = ("resize", "test_fraction", "skip_unreadable")
            _refuse(wishes, "a folder of class folders", fitting)
            content = folder.read(
                files,
                progress,
                decode=partial(_decode, how=wishes.resize),
                others=others,
                test_fraction=wishes.test_fraction,
                seed=wishes.seed,
                skip_unreadable=wishes.skip_unreadable,
            )
            return _called("class folders", content, wishes)
    except (UserError, WorldError) as error:
        named = type(error)(f"{one_line(source)}: {error}")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error
    left, _ = image_files.left_out(others)
    if left:
        raise UserError(
            f"{one_line(source)} holds no images that can be read, but {image_files.in_words(left)}"
        )
    raise archive.unknown(source)


def _sound(shards: dict[str, Shard | UserError]) -> dict[str, Shard]:
    """Those that could be read. Raises what is wrong with the first that could not."""
    found = {}
    for path, shard in shards.items():
        if isinstance(shard, UserError):
            raise shard
        found[path] = shard
    return found


def _called(form: str, content: Content, wishes: Wishes) -> tuple[str, Content, str]:
    """With the name cifar10, if there is all of it, and with how images were resized."""
    is_cifar10 = content.classes == cifar.CLASSES and len(content.train.images) > 0
    if wishes.resize:
        preparation = {"resize": wishes.resize, **content.preparation}
        content = content._replace(preparation=preparation)
    return form, content, "cifar10" if is_cifar10 else ""


def _refuse(wishes: Wishes, what: str, fitting: tuple[str, ...]) -> None:
    """Raise a UserError if there is a wish that a form of source does not fulfil."""
    for name in ("resize", "labels", "test_fraction", "skip_unreadable", "corruption", "severity"):
        if getattr(wishes, name) and name not in fitting:
            raise UserError(
                f"--{name.replace('_', '-')} does not go with {what}, which this is; leave it out"
            )


def _rest(preparation: Mapping[str, Any]) -> str:
    """What was left out of a source, in words."""
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
    if names := preparation.get("others", []):
        parts.append(image_files.others_in_words(names))
    return f", without {' and '.join(parts)}" if parts else ""


def _in_words(wishes: Wishes) -> str:
    parts = [f"resized ({wishes.resize})"] if wishes.resize else []
    if wishes.test_fraction:
        parts.append(f"{wishes.test_fraction:g} of each class to test with (seed {wishes.seed})")
    parts += [wishes.corruption] if wishes.corruption else []
    parts += [f"severity {wishes.severity}"] if wishes.severity else []
    return "".join(f", {part}" for part in parts)


def _name(source: Path, suggested: str) -> str:
    """What to call a data set of which nobody says."""
    endings = r"\.(zip|npz|npy|parquet|tar|tgz|tar\.gz)$"
    stem = suggested.lower() or re.sub(endings, "", source.resolve().name.lower())
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:64]
    if not name:
        raise UserError(
            f"{one_line(repr(source.name))} makes no name for a data set; give one with --name"
        )
    return name
