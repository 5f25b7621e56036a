"""Sets a federation up: an authority, the server's certificate, a key pair and a folder for each hospital."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fl_utils.deployment.flower import credentials
from fl_utils.deployment.flower.settings import Federation, FederationError, hospital_folder, server_folder, write_federation


def new_federation(folder: Path, federation: Federation, *, hosts: Sequence[str] = ()) -> None:
    """Makes the folders of all members; the images are put in afterwards (`hospital_data`).

    Args:
      folder: must be new or empty; only its owner can enter it.
      federation: what was agreed on.
      hosts: further names and addresses by which hospitals reach the server.
    Raises:
      FederationError: the folder is in use.
      CredentialError: a host's name cannot stand in a certificate.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FederationError(f"{folder} is not empty. Name a new folder with --folder, or remove that one.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        _fill(folder, federation, hosts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing half-made
        raise


def _fill(folder: Path, federation: Federation, hosts: Sequence[str]) -> None:
    authority, server = folder / "authority", server_folder(folder)
    credentials.make_authority(authority)
    credentials.make_server_certificate(authority, server, hosts=[federation.host_and_port[0], *hosts])
    (server / "hospitals").mkdir()
    for hospital in range(federation.config.num_clients):
        own = hospital_folder(folder, hospital)
        credentials.make_hospital_key(own)
        own.chmod(0o700)
        shutil.copyfile(authority / "ca.crt", own / "ca.crt")
        shutil.copyfile(own / "key.pub", server / "hospitals" / f"{hospital}.pub")
        write_federation(own, federation)
    write_federation(folder, federation)
    write_federation(server, federation)
