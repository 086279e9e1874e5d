"""A web server on this machine, in place of those that publish data sets."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Generator
from pathlib import Path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """torchvision hangs up after its first look, which is no error."""


@contextlib.contextmanager
def serving(folder: Path) -> Generator[str]:
    """The address of a server for the files in ``folder``."""
    server = _QuietServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
