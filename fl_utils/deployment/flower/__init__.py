"""The federation on Flower's deployment engine: a server and hospitals, each a process of its own.

`settings` says what is agreed on and who keeps what; `run_server` and `run_client` are the two processes; `Local`
runs all of them on one machine. Set-up: `new_federation`, with `hospital_data.write_hospital` for the images.
"""

import importlib
import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read by Flower when it would report its use to its makers

# Reached by name, so that what needs neither Flower nor TensorFlow loads neither.
_PLACES = {
    "run_server": "server", "run_client": "client", "Local": "local", "put_down": "local", "new_federation": "setup",
    "read_status": "board", "read_events": "board", "read_journal": "journal",
    "fingerprint": "journal", "make_federation": "settings", "read_federation": "settings", "Federation": "settings",
    "SecureSum": "settings", "FederationError": "settings", "RULES": "settings", "METHODS": "settings",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
