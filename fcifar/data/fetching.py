"""The official archive, through torchvision."""

import contextlib
import http.client
import io
import socket
import tempfile
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from fcifar.data.dataset import Dataset
from fcifar.data.importing import check_free, import_source
from fcifar.data.progress import Progress
from fcifar.errors import UserError, WorldError, reason, shown

NAME = "cifar10"
_SIZE = 170_498_071  # bytes of the official archive, for the progress bar alone
_PATIENCE = 30.0  # seconds without an answer before the network counts as absent


def fetch(
    root: Path,
    *,
    url: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Download CIFAR-10, store it as ``cifar10`` and return it, memory-mapped.

    ``url`` is a mirror of the official archive, whose md5 is expected unless ``md5`` names
    another. Nothing is printed; ``progress`` is called as in ``import_source``.

    Raises:
        UserError: ``cifar10`` is there already and is not to be replaced, or ``url`` is no URL.
        WorldError: there is no network or no such file, the md5 differs, or the disk is full.
            Nothing is left behind.
    """
    check_free(NAME, root, overwrite)
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    url = url or CIFAR10.url
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(
            f"the URL is {shown(url)}; it must begin with http:// or https://, and what is on this "
            "machine is prepared with fcifar data import"
        )
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as folder:
            archive = Path(folder) / CIFAR10.filename
            with _watched(archive, progress), _patient():
                download_url(url, folder, archive.name, md5 or CIFAR10.tgz_md5)
            return import_source(archive, NAME, root, progress=progress, overwrite=overwrite)
    except (UserError, WorldError):
        raise
    except ValueError as error:
        raise UserError(
            f"cannot download {url!r}: {reason(error)}; give a URL of the official archive"
        ) from error
    # torchvision reports a wrong md5 as a RuntimeError.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise WorldError(
            f"cannot download {url}: {reason(error)}; use --dataset shapes10, which needs no "
            "network, or `fcifar data import` with a copy of the archive"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # up to the first folder that is not empty
            for folder in made:
                folder.rmdir()


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
def _watched(file: Path, progress: Progress | None) -> Iterator[None]:
    """Report how large ``file`` has grown while the block runs.

    torchvision offers no callback, only a bar of its own on standard error. That is kept from
    the screen, for the caller may have a bar already, or may want silence.
    """
    finished = threading.Event()

    def watch() -> None:
        while progress and not finished.wait(0.1):
            size = file.stat().st_size if file.exists() else 0
            progress(f"downloading {file.name}", size, max(size, _SIZE))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        finished.set()
        watcher.join()
