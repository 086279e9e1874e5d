"""Import a source in any accepted form into the store.

The readers raise a UsageError for content that they do not accept, in one line that names the file.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fcifar.data import image_files, shapes10, store
from fcifar.data.dataset import Content, Dataset, ImportOptions, make_dataset
from fcifar.data.readers import archive, cifar, corrupted, folder, npz, parquet
from fcifar.data.throttle import Progress, paced
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, shown


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

    The content of the source determines its form. The order of the images does not depend on the
    order of an archive. ``progress(description, done, total)`` is called at most 20 times a second;
    total is 0 when unknown.

    Args:
        name: None for "cifar10", "cifar100" or "cifar100-coarse" if that is the content, such as
            "cifar10-c-fog-3" for a corruption, and the name of the source otherwise.

    Raises:
        UsageError: the source is not acceptable, an option does not apply to it, or the name is
            taken or invalid.
        ExternalError: the source cannot be read, or the store cannot be written.

    The store is not changed if an error is raised.
    """
    _check(options)
    if name is not None:
        check_free(name, root, overwrite)
    report = paced(progress)
    found = _gather(source, options, root, report)
    try:
        known = _read(found, source, options, report)
    except (UsageError, ExternalError) as error:
        named = type(error)(f"{one_line(source)}: {error}")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error
    if known is None:
        if left := image_files.left_out(found.others)[0]:
            what = f"no images that can be read, but {image_files.in_words(left)}"
            raise UsageError(f"{one_line(source)} holds {what}")
        raise archive.unknown(source)
    form, content, suggested = known
    if content.classes == cifar.CLASSES and len(content.train.images):
        suggested = "cifar10"
    if options.resize:
        preparation = {"resize": options.resize, **content.preparation}
        content = content._replace(preparation=preparation)
    if name is None:
        name = _name(source, suggested)
        check_free(name, root, overwrite)
    origin = f"{form} {one_line(source.resolve().name)}"
    origin += f"{_omissions(content.preparation)}{_choices(options)}"
    return keep(content, name, root, origin, source=one_line(source), progress=report)


def keep(
    content: Content, name: str, root: Path, origin: str, *, source: str, progress: Progress
) -> Dataset:
    """Store the content of a source as ``name`` and return it, memory-mapped.

    Args:
        origin: description of the source to store.
        source: its name in messages.
    """
    train, test, classes, valid, preparation = content
    try:
        dataset = make_dataset(name, train, test, classes, origin, valid)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    progress(f"storing {name}", 0, 0)
    store.save(dataset._replace(preparation=preparation), root)
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
    if options.severity is not None and not 1 <= options.severity <= npz.SEVERITIES:
        raise UsageError(
            f"--severity is {options.severity}; it must be a whole number from 1 to "
            f"{npz.SEVERITIES}"
        )


def _gather(source: Path, options: ImportOptions, root: Path, progress: Progress) -> archive.Found:
    """Read the files of a source that may be part of a data set.

    The content of an image is its pixels, that of a parquet file its ``Shard``, and that of a
    corruption, if all of them are imported, its ``Part``; or the error of the file, which matters
    only if it is used.

    Args:
        root: of the store, where there is space.
    """
    corruptions: set[str] = set()
    collect = corrupted.make_collect(root, options.severity)

    def is_collected(path: str) -> bool:
        of_all = options.corruption is None and source.suffix != ".npy"
        return of_all and corrupted.is_corruption(path)

    def wanted(path: str) -> bool:
        stem = PurePosixPath(path).stem
        if path.endswith(".npy") and stem in npz.CORRUPTIONS and source.suffix != ".npy":
            corruptions.add(stem)  # each has 154 MB, all of them 2.9 GB
            return options.corruption in (stem, None)
        known = cifar.is_part(path) or folder.is_table(path)
        return known or path.endswith((".npy", parquet.ENDING)) or image_files.is_image(path)

    def convert(path: str, data: bytes) -> Any:
        try:
            if is_collected(path):
                return collect(path, data)
            if path.endswith(parquet.ENDING):
                return parquet.read_shard(path, data, options, progress)
            if folder.is_image(path, data):
                stream, ending = io.BytesIO(data), image_files.ending_of(path)
                return image_files.decode(stream, one_line(path), options.resize, ending=ending)
        except UsageError as error:
            return type(error)(str(error))  # without the traceback, which holds the data
        return data

    selects = options.resize is not None or options.corruption is not None
    limit = archive.CONVERTED_LIMIT if selects else archive.TOTAL_LIMIT
    found = archive.read(source, wanted, progress, convert, limit=limit, uncounted=is_collected)
    is_missing = options.corruption is not None and options.corruption not in corruptions
    if corruptions and is_missing and not folder.is_layout(found.files):
        error = npz.cannot_choose(options.corruption, corruptions)
        raise UsageError(f"{one_line(source)}: {error}")
    return found


def _read(
    found: archive.Found, source: Path, options: ImportOptions, progress: Progress
) -> tuple[str, Content, str] | None:
    """Return a description of the form, the content, and a name for it, which may be empty."""
    files, others = found

    def accept(form: str, *accepted: str) -> None:
        for name, value in options._replace(seed=0)._asdict().items():
            if value and name not in accepted:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} does not go with {form}, which this is; leave it out")

    if any(name in files for name in (*cifar.TRAIN, cifar.TEST, cifar.META)):
        accept("CIFAR-10")
        return "official Python version", cifar.read(files), ""
    if sum(name in files for name in cifar.PARTS_100) > 1:
        accept("CIFAR-100", "labels")
        labels = options.labels or cifar.LABELS[0]
        name = "cifar100-coarse" if labels == "coarse" else "cifar100"
        return f"official CIFAR-100, {labels} labels,", cifar.read_100(files, labels), name
    if any(f"{name}.bin" in files for name in (*cifar.TRAIN, cifar.TEST)):
        accept("CIFAR-10")
        return "official binary version", cifar.read_binary(files), ""
    if folder.is_layout(files):
        accept("a folder of class folders", "resize", "test_fraction", "skip_unreadable")
        return "class folders", folder.read(files, others, options), ""
    if shards := {path: files[path] for path in files if path.endswith(parquet.ENDING)}:
        accept("parquet files", "resize", "test_fraction", "labels", "skip_unreadable")
        return "parquet", parquet.read(shards, options), ""
    called, is_file = "/".join(source.resolve().parts[-2:]), source.suffix == ".npy"
    if options.corruption is None and not is_file and any(map(corrupted.is_corruption, files)):
        accept("a test set alone", "severity")
        return "test set alone", *corrupted.read(files, called, options)
    if npz.is_test_set(files) or is_file:
        accept("a test set alone", "corruption", "severity")
        return "test set alone", *npz.read_test_set(files, called, options)
    if any(path.endswith(".npy") for path in files):
        accept("an .npz", "resize", "test_fraction")
        return "arrays", npz.read(files, options, progress), ""
    return None


def _omissions(preparation: Mapping[str, Any]) -> str:
    """Describe what was left out of a source."""
    left: Mapping[str, int] = preparation.get("left_out", {})
    kinds = [f"{count:,} {what}" for what, count in left.items() if what.startswith(".")]
    folders = {what: count for what, count in left.items() if not what.startswith(".")}
    parts = [image_files.first_three(kinds)] if kinds else []
    if folders:
        count = sum(folders.values())
        where = image_files.first_three([*folders])
        parts.append(f"{count:,} image{'s'[: count > 1]} in {where}")
    if count := preparation.get("unreadable", 0):
        parts.append(f"{count:,} that cannot be read")
    if names := preparation.get("others", []):
        parts.append(image_files.others_in_words(names))
    return f", without {' and '.join(parts)}" if parts else ""


def _choices(options: ImportOptions) -> str:
    """Describe the options that were used."""
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
