"""Fetch published data sets. torchvision downloads and checks them."""

import contextlib
import http.client
import importlib.util
import io
import socket
import tempfile
import threading
import urllib.error
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from fcifar.data import image_files
from fcifar.data.catalog import DEFAULT, Known, get
from fcifar.data.dataset import SIDE, Content, Dataset, ImportOptions, Split
from fcifar.data.readers import check_free, import_source, keep
from fcifar.data.throttle import Progress, paced
from fcifar.errors import ExternalError, UsageError, one_line, reason, shown

_TIMEOUT = 30.0  # seconds without an answer


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
        url: a mirror of the official CIFAR archive, or of the folder with the files of another
            data set. The official md5 is expected.
        md5: of a CIFAR archive, instead of the official one.
        downloaded: a folder in which torchvision has the data set already. Nothing is downloaded.

    Raises:
        UsageError: the data set is unknown, is stored already, is not in ``downloaded``, needs a
            package that is not installed, or ``url`` is not a URL.
        ExternalError: there is no network or no such file, the md5 differs, or the disk is full.
            No files are left behind.
    """
    known = get(name)
    check_free(name, root, overwrite)
    _check(known, url, md5, downloaded)
    report = paced(progress)
    if downloaded is not None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                content = _read(known, downloaded, progress=report)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"{one_line(downloaded)} has no {name} as torchvision puts it there: "
                f"{reason(error)}"
            ) from error
        return _store(known, content, downloaded, root, report, overwrite)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as folder:
            with _downloading(Path(folder), known, report):
                content = _read(known, Path(folder), url, md5, download=True, progress=report)
            return _store(known, content, Path(folder), root, report, overwrite)
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
        other_way = f"`fcifar data fetch {name} --root DIR` with torchvision's copy of it"
        if _is_archive(known):
            other_way = "`fcifar data import` with a copy of the archive"
        raise ExternalError(
            f"cannot download {url or name}: {reason(error)}; use --dataset shapes10, which needs "
            f"no network, or {other_way}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # stops at the first folder that is not empty
            for folder in made:
                folder.rmdir()


def _check(known: Known, url: str | None, md5: str | None, downloaded: Path | None) -> None:
    if known.needs and importlib.util.find_spec(known.needs) is None:
        raise UsageError(
            f"{known.name} needs {known.needs} to read its files; "
            f"install it with: pip install 'fcifar[{known.name}]'"
        )
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"the URL is {shown(url)}; it must begin with http:// or https://; prepare local files "
            "with fcifar data import"
        )
    if md5 is not None and not _is_archive(known):
        raise UsageError(
            f"--md5 is for one archive, of CIFAR; {known.name} has several files with known md5s"
        )
    if downloaded is not None and (url or md5):
        raise UsageError("--root reads local files; leave out --url and --md5, or --root")


def _is_archive(known: Known) -> bool:
    """Whether it is CIFAR, whose archive is read here: torchvision would unpickle anything."""
    return known.torchvision.startswith("CIFAR")


def _store(
    known: Known,
    content: Content | None,
    folder: Path,
    root: Path,
    progress: Progress,
    overwrite: bool,
) -> Dataset:
    """Store ``content``, or that of the CIFAR archive in ``folder``, packed or unpacked."""
    if content is not None:
        origin = f"torchvision's {known.torchvision}"
        return keep(content, known.name, root, origin, source=known.name, progress=progress)
    from torchvision import datasets

    source = getattr(datasets, known.torchvision)
    paths = [folder / source.filename, folder / source.base_folder]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise UsageError(
            f"{one_line(folder)} has neither {source.filename} nor {source.base_folder}/ in it"
        )
    options = ImportOptions(labels=known.labels or None)
    return import_source(
        found, known.name, root, options=options, progress=progress, overwrite=overwrite
    )


@contextlib.contextmanager
def _downloading(folder: Path, known: Known, progress: Progress) -> Generator[None]:
    """Report the size of ``folder`` while the block runs. Sockets that it opens time out.

    torchvision has no callback, only a progress bar on standard error and notes on standard
    output, which are hidden.
    """
    finished = threading.Event()

    def watch() -> None:
        largest = 0
        while not finished.wait(0.1):
            with contextlib.suppress(OSError):  # files come and go
                largest = max(largest, sum(path.stat().st_size for path in folder.rglob("*")))
            if largest < known.bytes:  # otherwise it is being unpacked and read
                progress(f"downloading {known.name}", largest, known.bytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        finished.set()
        watcher.join()


def _read(
    known: Known,
    folder: Path,
    url: str | None = None,
    md5: str | None = None,
    *,
    download: bool = False,
    progress: Progress,
) -> Content | None:
    """Return the images in ``folder``, which torchvision fills first if ``download``.

    torchvision checks the md5 of every download, and unpickles nothing for the data sets of
    ``KNOWN``. Grey images become RGB; other sizes are resized by ``image_files.fit``.

    Of CIFAR, the archive is only downloaded, and None is returned.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    source = getattr(datasets, known.torchvision)
    if _is_archive(known):
        if download:
            download_url(url or source.url, str(folder), source.filename, md5 or source.tgz_md5)
        return None
    if url is not None:
        source = _mirrored(source, url)
    # Both are made before the first is read, to report missing files at once.
    found = [source(folder, download=download, **arguments) for arguments in known.splits]
    total = sum(map(len, found))
    splits, decoded = [], []
    for images in found:
        pixels, labels = bytearray(), []
        for row in range(len(images)):
            image, label = images[row]
            pixels += image_files.fit(image)
            resized = image.size != (SIDE, SIDE)
            decoded.append(image_files.Decoded(b"", image.mode, resized=resized))
            labels.append(int(label))
            progress("resizing images", len(decoded), total)
        labels = torch.tensor(labels, dtype=torch.int64)
        splits.append(Split(image_files.to_tensor(pixels), labels))
    train, test = splits
    # SVHN's digits have no names.
    classes = getattr(found[0], "classes", None) or map(str, range(1 + int(train.labels.max())))
    preparation = {"images": total, "resize": "crop", **image_files.changes(decoded)}
    return Content(train, test, tuple(classes), preparation=preparation)


def _mirrored(source: Any, url: str) -> type:
    """torchvision's class with another address, and the same names and checksums of files."""
    base = url.rstrip("/") + "/"
    if hasattr(source, "mirrors"):
        changes: dict[str, Any] = {"mirrors": [base]}
    elif hasattr(source, "split_list"):
        files = source.split_list.items()
        changes = {"split_list": {split: [base + f, f, md5] for split, (_, f, md5) in files}}
    else:
        changes = {"url": base + source.filename}
    return type(source.__name__, (source,), changes)
