"""Published data sets, downloaded and checked by torchvision."""

import contextlib
import http.client
import importlib.util
import io
import socket
import tempfile
import threading
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fcifar.data import image_files
from fcifar.data.catalog import DEFAULT, Known, get
from fcifar.data.dataset import SIDE, Content, Dataset, Split
from fcifar.data.readers import ImportOptions, check_free, import_source, keep
from fcifar.data.throttle import Progress, paced
from fcifar.errors import ExternalError, UsageError, one_line, reason, shown

_PATIENCE = 30.0  # seconds without an answer before the network counts as absent


def fetch(
    root: Path,
    name: str = DEFAULT,
    *,
    url: str | None = None,
    md5: str | None = None,
    downloaded: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Download a data set of ``KNOWN``, store it under its name and return it, memory-mapped.

    Nothing is printed; ``progress`` is called as in ``import_source``.

    Args:
        url: a mirror: of the official archive of CIFAR, or of the folder that has the files of
            another set. The official md5 is expected.
        md5: of an archive of CIFAR, instead of the official one.
        downloaded: the folder in which torchvision has the set already. Nothing is downloaded.

    Raises:
        UsageError: there is no such set, it is there already and is not to be replaced, it is not
            in ``downloaded``, a package that reads it is not installed, or ``url`` is no URL.
        ExternalError: there is no network or no such file, the md5 differs, or the disk is full.
            Nothing is left behind.
    """
    known = get(name)
    check_free(name, root, overwrite)
    _check_readable(known)
    _check_address(known, url, md5, downloaded)
    report = paced(progress)
    if downloaded is not None:
        return _read_downloaded(known, downloaded, root, report, overwrite)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as folder:
            with _watched(Path(folder), known, report), _patient():
                content = _download(known, Path(folder), url, md5, report)
            return _keep(known, content, Path(folder), root, report, overwrite)
    except (UsageError, ExternalError):
        raise
    except ValueError as error:
        raise UsageError(
            f"cannot download {url!r}: {reason(error)}; give the URL of a mirror"
        ) from error
    # torchvision reports a wrong md5 as a RuntimeError.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise ExternalError(
            f"cannot download {url or name}: {reason(error)}; use --dataset shapes10, which needs "
            f"no network, or {_other_way(known)}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # up to the first folder that is not empty
            for folder in made:
                folder.rmdir()


def _check_address(known: Known, url: str | None, md5: str | None, downloaded: Path | None) -> None:
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"the URL is {shown(url)}; it must begin with http:// or https://, and what is on this "
            "machine is prepared with fcifar data import"
        )
    if md5 is not None and not _is_archive(known):
        raise UsageError(
            f"--md5 is of an archive of CIFAR; {known.name} is several files, each with its own"
        )
    if downloaded is not None and (url or md5):
        raise UsageError("--root says where the files are, and --url and --md5 are to get them")


def _is_archive(known: Known) -> bool:
    """Whether it is CIFAR, whose archive we read ourselves: torchvision would unpickle anything."""
    return known.torchvision.startswith("CIFAR")


def _other_way(known: Known) -> str:
    if _is_archive(known):
        return "`fcifar data import` with a copy of the archive"
    return f"`fcifar data fetch {known.name} --root DIR` with torchvision's copy of it"


def _download(
    known: Known, folder: Path, url: str | None, md5: str | None, progress: Progress
) -> Content | None:
    """Fill ``folder``; what is read of it already, or None for an archive."""
    if not _is_archive(known):
        return _read(known, folder, url=url, download=True, progress=progress)
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    source = getattr(datasets, known.torchvision)
    download_url(url or source.url, str(folder), source.filename, md5 or source.tgz_md5)
    return None


def _read_downloaded(
    known: Known, folder: Path, root: Path, progress: Progress, overwrite: bool
) -> Dataset:
    try:
        content = None
        if not _is_archive(known):
            with contextlib.redirect_stdout(io.StringIO()):
                content = _read(known, folder, url=None, download=False, progress=progress)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{one_line(folder)} has no {known.name} as torchvision puts it there: {reason(error)}"
        ) from error
    return _keep(known, content, folder, root, progress, overwrite)


def _keep(
    known: Known,
    content: Content | None,
    folder: Path,
    root: Path,
    progress: Progress,
    overwrite: bool,
) -> Dataset:
    """Store what was read, or what an archive of CIFAR in ``folder``, or its folder, has in it."""
    if content is not None:
        origin = f"torchvision's {known.torchvision}"
        return keep(content, known.name, root, origin, source=known.name, progress=progress)
    from torchvision import datasets

    source = getattr(datasets, known.torchvision)
    places = [folder / source.filename, folder / source.base_folder]
    found = next((path for path in places if path.exists()), None)
    if found is None:
        raise UsageError(
            f"{one_line(folder)} has neither {source.filename} nor {source.base_folder}/ in it"
        )
    options = ImportOptions(labels=known.labels or None)
    return import_source(
        found, known.name, root, options=options, progress=progress, overwrite=overwrite
    )


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Sockets opened in the block give up after a while; torchvision's would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _watched(folder: Path, known: Known, progress: Progress) -> Iterator[None]:
    """Report how large ``folder`` has grown while the block runs.

    torchvision offers no callback, only a bar of its own on standard error, and notes on standard
    output. These are kept from the screen, for the caller may have a bar already, or may want
    silence.
    """
    finished = threading.Event()

    def watch() -> None:
        largest = 0
        while not finished.wait(0.1):
            largest = max(largest, _size(folder))
            if largest < known.bytes:  # then it is unpacked, and read
                progress(f"downloading {known.name}", largest, known.bytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        finished.set()
        watcher.join()


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):  # files come and go
        for path in folder.rglob("*"):
            size += path.stat().st_size
    return size


# What torchvision reads --------------------------------------------------------------------------


def _check_readable(known: Known) -> None:
    """Raise a UsageError if a package that reads the files of ``known`` is not installed."""
    if known.needs and importlib.util.find_spec(known.needs) is None:
        raise UsageError(
            f"{known.name} needs {known.needs} to read its files; "
            f"install it with: pip install 'fcifar[{known.name}]'"
        )


def _read(
    known: Known, folder: Path, *, url: str | None, download: bool, progress: Progress
) -> Content:
    """The images in ``folder``, which torchvision fills first if ``download``.

    torchvision checks the md5 of what it downloads, and unpickles nothing for the sets of
    ``KNOWN``. Grey images become RGB; other sizes are resized as ``image_files.fit`` says.

    Args:
        url: a mirror: the address of the folder that has the files, under their usual names.

    Raises:
        RuntimeError: torchvision did not find or could not download the files.
    """
    from torchvision import datasets

    source = getattr(datasets, known.torchvision)
    if url is not None:
        source = _mirrored(source, url)
    # Both are made before the first is read: what is missing shows at once.
    found = [source(folder, download=download, **arguments) for arguments in known.splits]
    total, done = sum(map(len, found)), 0
    splits, kinds = [], []
    for images in found:
        pixels, labels = bytearray(), []
        for row in range(len(images)):
            image, label = images[row]
            pixels += image_files.fit(image)
            resized = image.size != (SIDE, SIDE)
            kinds.append(image_files.Picture(b"", image.mode, resized=resized))
            labels.append(int(label))
            done += 1
            progress("resizing images", done, total)
        splits.append(_split(pixels, labels))
    train, test = splits
    preparation = {"images": total, "resize": "crop", **image_files.summed(kinds)}
    return Content(train, test, _classes(found[0], train), preparation=preparation)


def _split(pixels: bytearray, labels: Sequence[int]) -> Split:
    rows = torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, SIDE, SIDE, 3)
    return Split(rows.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.int64))


def _classes(images: Any, split: Split) -> tuple[str, ...]:
    """The names that torchvision knows, or numbers: SVHN's digits have none."""
    names = getattr(images, "classes", None)
    return tuple(names) if names else tuple(map(str, range(1 + int(split.labels.max()))))


def _mirrored(source: type, url: str) -> type:
    """torchvision's class, with another address and the same names and checksums of files."""
    base = url.rstrip("/") + "/"
    if hasattr(source, "mirrors"):
        changes: dict[str, Any] = {"mirrors": [base]}
    elif hasattr(source, "split_list"):
        changes = {
            "split_list": {
                split: [base + file, file, md5]
                for split, (_, file, md5) in source.split_list.items()
            }
        }
    else:
        changes = {"url": base + source.filename}
    return type(source.__name__, (source,), changes)
