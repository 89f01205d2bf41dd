"""Serving of the page, in this process and for nobody else unless asked to."""

import importlib.metadata
import importlib.util
import ipaddress
import os
import pathlib
import socket
import sys
import tempfile
import threading
from collections.abc import Callable

from repae_jax.errors import UserError, not_installed

_OLDEST = 6  # major version of Gradio
_CLOSING = 3  # seconds that open connections have when the server stops


def check_gradio() -> None:
    """Raise UserError if Gradio is missing, or older than the page needs."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"{not_installed('gradio')} (or the extra [demo] of this package)")
    version = importlib.metadata.version("gradio")
    if int(version.split(".")[0]) < _OLDEST:
        raise UserError(
            f"gradio is {version}: the page needs {_OLDEST} or newer, pip install -U gradio"
        )


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a socket; port 0 takes any free port.

    Raises:
      UserError: the port is taken, or the host is no address of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}: give 0 (any free port) to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host is {host!r}, which is no address ({error.strerror})") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise UserError(
            f"--host {host} --port {port} cannot be opened ({error.strerror}): choose another "
            "port, or 0 for any free one"
        ) from error
    return opened


def is_local(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(make_page: Callable, opened: socket.socket) -> None:
    """Serve a page until a signal ends the command; leaves no files behind.

    Nothing outside is called: no analytics, no telemetry, no public link.

    Args:
      make_page: returns the `gr.Blocks`; Gradio is imported after its settings are made.
      opened: from `open_socket`.
    """
    with tempfile.TemporaryDirectory(prefix="repae_jax_demo_", ignore_cleanup_errors=True) as files:
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
            GRADIO_TEMP_DIR=files,
            GRADIO_EXAMPLES_CACHE=str(pathlib.Path(files) / "examples"),
        )
        server = _make_server(make_page())
        thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            host, port = opened.getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(f"open http://{host}:{port} in a browser; Ctrl-C stops the server", flush=True)
            while thread.is_alive():
                thread.join(0.5)
        finally:
            server.should_exit = True
            thread.join(_CLOSING + 2)
            opened.close()


def _make_server(page):
    import fastapi
    import gradio
    import uvicorn

    from repae_jax.demo.page import page_options

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gradio.mount_gradio_app(app, page, path="/", **page_options())
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_CLOSING)
    )


def _wait_until_started(server, thread):
    while not server.started:
        thread.join(0.05)
        if not thread.is_alive():
            raise UserError("the server could not start; its messages are above")


def warn_of_host(host: str) -> None:
    """Say on standard error that others can use the page."""
    print(
        f"warning: --host {host} lets everybody who reaches this machine use the page, which has "
        "no password",
        file=sys.stderr,
        flush=True,
    )
