"""Fetches the official files of the data sets; their hashes are checked."""

import logging
from pathlib import Path

import pooch
import requests

from utils import UserError, progress


def fetch(url, known_hash, folder):
    """Fetch a file into folder, unless one of its name is there; returns its path.

    known_hash: as pooch has it, "md5:..." or "sha256:...". A file with another hash, and what a transfer that failed
    has left, are removed; a UserError says why.
    """
    path = Path(folder).absolute() / url.rsplit("/", 1)[1]
    if path.exists():
        print(f"{path} is there already: not fetched again", flush=True)
        return path
    print(f"fetching {url}", flush=True)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with progress(total=1, unit="B", unit_scale=True, delay=0, leave=True) as bar:  # pooch sets the total
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
            pooch.retrieve(url, known_hash, path.name, path.parent, downloader=downloader)
    except (requests.RequestException, ValueError) as error:  # ValueError: another hash
        raise UserError(
            f"{url} could not be fetched ({' '.join(str(error).split())}). Try again, or fetch it by hand, from any "
            f"place, to {path}"
        ) from None
    return path
