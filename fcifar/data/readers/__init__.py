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
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, shown


class ImportOptions(NamedTuple):
    """How to read a source where there is more than one way."""

    resize: str | None = None  # how images become 32x32, a key of image_files.FITS; None: they are
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
    options: ImportOptions = ImportOptions(),  # noqa: B008
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
        options: how to read it.

    Raises:
        UsageError: the source is not acceptable, a wish does not fit it, or the name is taken or
            not allowed.
        ExternalError: the source cannot be read, or the store not written.

    Whatever is raised, the store is as it was.
    """
    _check(options)
    if name is not None:
        check_free(name, root, overwrite)
    report = paced(progress)
    shards: dict[str, Shard | UsageError] = {}
    files, others = _gather(source, options, shards, report)
    form, content, suggested = _read(files, shards, others, source, options, report)
    rest = _rest(content.preparation)
    if name is None:
        name = _name(source, suggested)
        check_free(name, root, overwrite)
    origin = f"{form} {one_line(source.resolve().name)}{rest}{_in_words(options)}"
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
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    dataset = dataset._replace(preparation=content.preparation)
    progress(f"storing {name}", 0, 0)
    store.save(dataset, root)
    return store.load(name, root)


def check_free(name: str, root: Path, overwrite: bool) -> None:
    """Raise a UsageError unless ``name`` may be stored."""
    path = store.path_of(name, root)
    if name == shapes10.NAME:
        raise UsageError(f"{name!r} is the built-in data set; choose another name")
    if path.exists() and not overwrite:
        raise UsageError(
            f"there is a data set {name!r} in {one_line(root)} already; "
            "add --force to replace it, or choose another name"
        )


def _check(options: ImportOptions) -> None:
    for option, value, choices in (
        ("--resize", options.resize, image_files.FITS),
        ("--labels", options.labels, cifar.LABELS),
    ):
        if value is not None and value not in choices:
            raise UsageError(
                f"{option} is {shown(value)}; it must be {' or '.join(choices)}"
                f"{did_you_mean(value, choices)}"
            )
    if options.test_fraction and not 0 < options.test_fraction < 1:
        raise UsageError(f"--test-fraction is {options.test_fraction}; it must lie between 0 and 1")
    if options.severity is not None and not 1 <= options.severity <= testsets.SEVERITIES:
        raise UsageError(
            f"--severity is {options.severity}; it must be a whole number from 1 to "
            f"{testsets.SEVERITIES}"
        )


def _gather(
    source: Path, options: ImportOptions, shards: dict[str, Shard | UsageError], progress: Progress
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
            return stem == options.corruption
        known = cifar.is_part(path) or folder.is_table(path)
        return known or path.endswith((".npy", parquet.ENDING)) or image_files.is_image(path)

    def convert(path: str, data: bytes) -> Any:
        """An image that is to be resized as its pixels, or why it cannot be; all else as it is."""
        if path.endswith(parquet.ENDING):
            try:
                shards[path] = parquet.read_shard(path, data, decode, options.labels, progress)
            except UsageError as error:
                shards[path] = error
            return b""
        if options.resize is None or not folder.is_picture(path, data):
            return data
        try:
            return decode(path, data)
        except UsageError as error:
            return error

    decode = partial(_decode, how=options.resize)
    selects = options.resize is not None or options.corruption is not None
    limit = archive.CONVERTED_LIMIT if selects else archive.TOTAL_LIMIT
    try:
        found = archive.read(source, wanted, progress, convert, limit=limit)
    except UsageError as error:
        if corruptions and options.corruption is None:  # all of them are too many, and not listed
            every = testsets.refusal(testsets.CORRUPTIONS)
            raise UsageError(f"{one_line(source)}: {every}") from error
        raise
    if not corruptions or options.corruption in corruptions or _has_images(found.files):
        return found
    if options.corruption is None:
        raise UsageError(f"{one_line(source)}: {testsets.refusal(corruptions)}")
    raise UsageError(f"{one_line(source)}: {testsets.unknown(options.corruption, corruptions)}")


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
    shards: dict[str, Shard | UsageError],
    others: list[str],
    source: Path,
    options: ImportOptions,
    progress: Progress,
) -> tuple[str, Content, str]:
    """The form of the source, in words, what is in it, and a name for it, which may be empty."""
    try:
        if cifar.is_layout(files):
            _refuse(options, "CIFAR-10", ())
            return _called("official Python version", cifar.read(files), options)
        if cifar.is_layout_100(files):
            _refuse(options, "CIFAR-100", ("labels",))
            labels = options.labels or cifar.LABELS[0]
            name = "cifar100-coarse" if labels == "coarse" else "cifar100"
            return f"official CIFAR-100, {labels} labels,", cifar.read_100(files, labels), name
        if cifar.is_binary_layout(files):
            _refuse(options, "CIFAR-10", ())
            return _called("official binary version", cifar.read_binary(files), options)
        has_images = _has_images(files)
        if shards and not has_images:
            fitting = ("resize", "test_fraction", "labels", "skip_unreadable")
            _refuse(options, "parquet files", fitting)
            content = parquet.read(
                _sound(shards),
                test_fraction=options.test_fraction,
                seed=options.seed,
                skip_unreadable=options.skip_unreadable,
            )
            return _called("parquet", content, options)
        if (testsets.is_layout(files) or source.suffix == ".npy") and not has_images:
            _refuse(options, "a test set alone", ("corruption", "severity"))
            called = "/".join(source.resolve().parts[-2:])
            read = testsets.read(files, called, options.corruption, options.severity)
            return "test set alone", *read
        if npz.is_layout(files) and not has_images:
            _refuse(options, "an .npz", ("resize", "test_fraction"))
            content = npz.read(
                files,
                options.resize,
                test_fraction=options.test_fraction,
                seed=options.seed,
                progress=progress,
            )
            return _called("arrays", content, options)
        if folder.is_layout(files):
            fitting = ("resize", "test_fraction", "skip_unreadable")
            _refuse(options, "a folder of class folders", fitting)
            content = folder.read(
                files,
                progress,
                decode=partial(_decode, how=options.resize),
                others=others,
                test_fraction=options.test_fraction,
                seed=options.seed,
                skip_unreadable=options.skip_unreadable,
            )
            return _called("class folders", content, options)
    except (UsageError, ExternalError) as error:
        named = type(error)(f"{one_line(source)}: {error}")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error
    left, _ = image_files.left_out(others)
    if left:
        raise UsageError(
            f"{one_line(source)} holds no images that can be read, but {image_files.in_words(left)}"
        )
    raise archive.unknown(source)


def _sound(shards: dict[str, Shard | UsageError]) -> dict[str, Shard]:
    """Those that could be read. Raises what is wrong with the first that could not."""
    found = {}
    for path, shard in shards.items():
        if isinstance(shard, UsageError):
            raise shard
        found[path] = shard
    return found


def _called(form: str, content: Content, options: ImportOptions) -> tuple[str, Content, str]:
    """With the name cifar10, if there is all of it, and with how images were resized."""
    is_cifar10 = content.classes == cifar.CLASSES and len(content.train.images) > 0
    if options.resize:
        preparation = {"resize": options.resize, **content.preparation}
        content = content._replace(preparation=preparation)
    return form, content, "cifar10" if is_cifar10 else ""


def _refuse(options: ImportOptions, what: str, fitting: tuple[str, ...]) -> None:
    """Raise a UsageError if there is a wish that a form of source does not fulfil."""
    for name in ("resize", "labels", "test_fraction", "skip_unreadable", "corruption", "severity"):
        if getattr(options, name) and name not in fitting:
            raise UsageError(
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


def _in_words(options: ImportOptions) -> str:
    parts = [f"resized ({options.resize})"] if options.resize else []
    if options.test_fraction:
        parts.append(f"{options.test_fraction:g} of each class to test with (seed {options.seed})")
    parts += [options.corruption] if options.corruption else []
    parts += [f"severity {options.severity}"] if options.severity else []
    return "".join(f", {part}" for part in parts)


def _name(source: Path, suggested: str) -> str:
    """The default name of an imported data set."""
    endings = r"\.(zip|npz|npy|parquet|tar|tgz|tar\.gz)$"
    stem = suggested.lower() or re.sub(endings, "", source.resolve().name.lower())
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:64]
    if not name:
        raise UsageError(
            f"{one_line(repr(source.name))} makes no name for a data set; give one with --name"
        )
    return name
