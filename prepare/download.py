"""Fetches the official files of the data sets: into a temporary name, going on where a transfer broke off,
and under their own name only when size and checksum are right."""

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

from utils import UserError, is_web_page, progress

TIMEOUT = 30  # seconds without a byte
RETRIES = 5  # in a row that bring nothing


class Remote(NamedTuple):
    """A file on a server."""

    url: str
    algorithm: str  # of the checksum, a name in hashlib
    checksum: str  # in hexadecimal
    size: int = 0  # bytes; 0 if it is not published


FILES = {
    "dsprites": Remote(
        "https://github.com/google-deepmind/dsprites-dataset/raw/master/"
        "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        "md5",
        "7da33b31b13a06f4b04a70402ce90c2e",
    ),
    "celeba": Remote(
        "https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
        "sha256",
        "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
        1_443_490_838,
    ),
    "3dchairs": Remote(
        "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar",
        "md5",
        "7941bff4d19665ed2dd8c82e88293e1b",
    ),
}


def fetch(name, folder):
    """Fetches the file of a data set into folder, unless it is there; returns its path."""
    remote = FILES[name]
    path = Path(folder) / remote.url.rsplit("/", 1)[1]
    if path.exists():
        print(f"{path} is there already: not fetched again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    print(f"fetching {remote.url}", flush=True)
    transfer(remote, part)
    found = file_checksum(part, remote.algorithm)
    if found != remote.checksum:
        part.unlink()
        raise UserError(
            f"{remote.url} is not the official file: {remote.algorithm} {found}, "
            f"not {remote.checksum}; removed"
        )
    os.replace(part, path)
    return path


def transfer(remote, part):
    """Fetches into part until it has all bytes, trying again while that brings any."""
    failures = 0
    while failures < RETRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            return transfer_once(remote, part, before)
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # there is nothing after what we have, and that is not the file
                part.unlink()
            elif error.code < 500:
                raise UserError(f"{remote.url}: the server answers {error.code} {error.reason}") from None
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
    host = urllib.parse.urlsplit(remote.url).netloc
    reason = getattr(problem, "reason", None) or problem
    raise UserError(
        f"{host} cannot be reached, or breaks off ({reason}), after {after:,} bytes; "
        "the same command goes on from there"
    )


def transfer_once(remote, part, start):
    """One request, for the bytes from start on."""
    if remote.size and start >= remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:
            start = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else remote.size
        first = answer.read(512)
        check_answer(remote, answer, first, start, total)
        bar = progress(total=total or None, initial=start, unit="B", unit_scale=True, delay=0, leave=True)
        with bar, open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            data = first
            while data:
                file.write(data)
                bar.update(len(data))
                if total and file.tell() > total:
                    raise UserError(f"{remote.url} sends more than {total:,} bytes")
                data = answer.read(2**18)
            if file.tell() < total:
                raise http.client.IncompleteRead(b"", total - file.tell())


def check_answer(remote, answer, first, start, total):
    """UserError if what comes is not the file, by its first bytes and its length."""
    if start == 0 and (is_web_page(first) or answer.headers.get_content_type() == "text/html"):
        raise UserError(
            f"{remote.url} answers with a web page instead of the file, as when a quota is used up: "
            "try later, or get it elsewhere and give it with --archive"
        )
    if remote.size and total != remote.size:
        raise UserError(f"{remote.url} has {total:,} bytes, the official file {remote.size:,}")


def file_checksum(path, algorithm):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
