"""From a source in any accepted form to a data set in the store."""

from pathlib import Path

from fcifar.data import archive, arrays, folders, official, shapes10, store
from fcifar.data.dataset import Content, Dataset, make_dataset
from fcifar.data.progress import Progress, paced
from fcifar.errors import UserError, one_line


def import_source(
    source: Path,
    name: str,
    root: Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Read a source, store it as ``name`` and return it, memory-mapped.

    The form of the source is told by what is in it, and rows come in an order that does not depend
    on the order of an archive. ``progress(description, done, total)`` is called at most 20 times a
    second; total is 0 when unknown.

    Raises:
        UserError: the source is not acceptable, or the name is taken or not allowed.
        WorldError: the source cannot be read, or the store not written.

    Whatever is raised, the store is as it was.
    """
    check_free(name, root, overwrite)
    report = paced(progress)
    files = archive.read(source, _is_wanted, report)
    form, content = _read(files, source, report)
    origin = f"{form} {one_line(source.resolve().name)}"
    try:
        dataset = make_dataset(name, content.train, content.test, content.classes, origin)
    except UserError as error:
        raise UserError(f"{one_line(source)}: {error}") from error
    report(f"storing {name}", 0, 0)
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


def _is_wanted(path: str) -> bool:
    return folders.is_image(path) or official.is_part(path) or path.endswith(".npy")


def _read(files: dict[str, bytes], source: Path, progress: Progress) -> tuple[str, Content]:
    """The form of the source, in words, and what is in it."""
    try:
        if official.is_layout(files):
            return "official Python version", official.read(files)
        if official.is_binary_layout(files):
            return "official binary version", official.read_binary(files)
        if arrays.is_layout(files):
            return "arrays", arrays.read(files)
        if folders.is_layout(files):
            return "class folders", folders.read(files, progress)
    except UserError as error:
        raise UserError(f"{one_line(source)}: {error}") from error
    raise archive.unknown(source)
