"""Download the official files of the data sets and check their hashes."""

import logging
from pathlib import Path

import pooch
import requests

from utils import UserError, progress


def fetch(url, known_hash, folder):
    """Download a file into folder, unless it is there. known_hash: "md5:..." or "sha256:...".

    Of a download that fails or has another hash nothing is left; a UserError says why.
    """
    path = Path(folder).absolute() / url.rsplit("/", 1)[1]
    if path.exists():
        print(f"{path} is there already: not fetched again")
        return
    print(f"fetching {url}", flush=True)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with progress(total=1, unit="B", unit_scale=True, delay=0, leave=True) as bar:  # pooch sets the total
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
            pooch.retrieve(url, known_hash, path.name, path.parent, downloader=downloader)
    except (requests.RequestException, ValueError) as error:  # ValueError: another hash
        why = " ".join(str(error).split())
        raise UserError(
            f"{url} could not be fetched ({why}). Try again, or put the file at {path} by hand"
        ) from None
