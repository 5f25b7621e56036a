"""Serves the owner's page by gunicorn: one process that answers, in threads, below one that watches it and the signals."""

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gunicorn.app.base import BaseApplication

from fl_utils.deployment.nvflare.page.app import LOOPBACK, make_app
from fl_utils.deployment.nvflare.page.owner import hospital_of
from fl_utils.deployment.nvflare.settings import ConsortiumError


class _Served(BaseApplication):
    def __init__(self, load: Callable, settings: dict):
        self._load, self._settings = load, settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self):
        # In the process that answers: should it ever be started anew, no session of the one before is good any more.
        return self._load()


def serve(
    folder: Path, port: int, say: Callable[[str], None], *, host: str = "127.0.0.1", names: Sequence[str] = (),
    session_minutes: float = 15,
) -> None:
    """Serves the page until SIGTERM or Ctrl-C; call it in the main thread.

    The page itself speaks plain HTTP. On another address than loopback the session's cookie is therefore marked Secure:
    browsers send it through a TLS proxy only, and nobody stays signed in without one.

    Args:
      folder: the hospital's.
      port: 0 for any free one.
      say: is handed a sentence with the address, as soon as it can be opened.
      host: the address to listen on, IPv4 or a name.
      names: host names, beside loopback's, under which browsers may ask for the page.
      session_minutes: how long a session lasts after the last page that was opened.
    Raises:
      ConsortiumError: the folder is no hospital's, or the address cannot be listened on.
    """
    folder = Path(folder).resolve()
    hospital = hospital_of(folder)
    on_loopback = _is_loopback(host)
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise ConsortiumError(f"The page cannot listen on {host}:{port} ({error}). Name another --port.") from None
    address = f"http://{host}:{listening.getsockname()[1]}/"
    watching = os.getpid()
    settings = {
        "bind": f"fd://{listening.detach()}", "workers": 1, "worker_class": "gthread", "threads": 4, "timeout": 120,
        "graceful_timeout": 5, "loglevel": "warning", "umask": 0o077, "control_socket_disable": True, "forwarded_allow_ips": "",
        "when_ready": lambda server: _say(say, f"The page of {hospital} is at {address}; Ctrl-C ends it."),
    }
    hosts = sorted({*LOOPBACK, *names, host} - {"0.0.0.0"})
    try:
        _Served(lambda: make_app(folder, session_minutes=session_minutes, hosts=hosts, secure=not on_loopback), settings).run()
    except SystemExit as ended:
        if os.getpid() != watching:  # the one that answered; what the caller does next is not for it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code or 0)
        if ended.code:
            raise ConsortiumError(f"The page ended by itself (gunicorn's code {ended.code}); it printed why.") from None


def _say(say: Callable[[str], None], text: str) -> None:
    say(text)
    sys.stdout.flush()  # or the process that is begun next would have it to say as well


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
