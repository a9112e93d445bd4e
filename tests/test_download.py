"""Downloads, from a server on this machine that does what servers do; nothing here reaches the network."""

import hashlib
import http.server
import re
import threading

import pytest

import dataset
from images import FILES, write_zip
from prepare import download

BODY = bytes(range(256)) * 4000  # 1 MB


class Server(http.server.ThreadingHTTPServer):
    """Serves .body at every address; .breaks lists after how many bytes the next answers break off."""

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.breaks, self.requests, self.kind, self.ranges, self.status = (
            body,
            [],
            [],
            "application/zip",
            True,
            200,
        )
        self.url = f"http://127.0.0.1:{self.server_address[1]}/img_align_celeba.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if server.status != 200 or start >= len(server.body):
            return self.send_error(server.status if server.status != 200 else 416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", len(server.body) - start)
        self.end_headers()
        end = start + server.breaks.pop(0) if server.breaks else len(server.body)
        self.wfile.write(server.body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server whose file is what the table of files has for CelebA."""
    with Server(BODY) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        offer(server, monkeypatch)
        yield server
        server.shutdown()


def offer(server, monkeypatch, size=True, url=None):
    remote = download.Remote(
        url or server.url, "sha256", hashlib.sha256(server.body).hexdigest(), size and len(server.body)
    )
    monkeypatch.setitem(download.FILES, "celeba", remote)


def refusal(capsys, folder):
    assert dataset.main(["celeba", "--dset_dir", str(folder), "--download"]) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if "B/s" not in line and line]
    assert len(err) == 1 and err[0].startswith("dataset.py: ")
    return err[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_checked_prepared_and_not_fetched_again(server, tmp_path, monkeypatch, capsys):
    server.body = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    (tmp_path / "a.zip").unlink()
    offer(server, monkeypatch)
    for _ in range(2):
        assert dataset.main(["celeba", "--dset_dir", str(tmp_path), "--download"]) == 0
    assert names(tmp_path) == ["celeba_64x64.json", "celeba_64x64.npy", "img_align_celeba.zip"]
    assert server.requests == [None]
    assert "not fetched again" in capsys.readouterr().out


@pytest.mark.parametrize("size", [True, False], ids=["size known", "size not published"])
def test_a_broken_transfer_goes_on_where_it_was(server, tmp_path, size, monkeypatch):
    offer(server, monkeypatch, size)
    server.breaks = [300_000, 400_000]
    assert download.fetch("celeba", tmp_path).read_bytes() == BODY
    assert server.requests == [None, "bytes=300000-", "bytes=700000-"]
    assert names(tmp_path) == ["img_align_celeba.zip"]


def test_a_later_call_goes_on_and_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "img_align_celeba.zip.part").write_bytes(BODY[:500_000])
    assert download.fetch("celeba", tmp_path).read_bytes() == BODY
    assert server.requests == ["bytes=500000-"]
    server.ranges = False
    (tmp_path / "img_align_celeba.zip").rename(tmp_path / "img_align_celeba.zip.part")
    (tmp_path / "img_align_celeba.zip.part").write_bytes(b"x" * 600_000)
    assert download.fetch("celeba", tmp_path).read_bytes() == BODY


def test_a_part_that_is_whole_is_not_asked_for_and_a_wrong_one_is_removed(
    server, tmp_path, monkeypatch, capsys
):
    part = tmp_path / "img_align_celeba.zip.part"
    part.write_bytes(BODY)
    assert download.fetch("celeba", tmp_path).read_bytes() == BODY and server.requests == []
    (tmp_path / "img_align_celeba.zip").unlink()
    part.write_bytes(b"x" + BODY[1:500_000])
    assert "not the official file: sha256" in refusal(capsys, tmp_path)
    assert names(tmp_path) == []
    offer(server, monkeypatch, size=False)
    part.write_bytes(BODY + b"x")  # the server answers 416
    assert download.fetch("celeba", tmp_path).read_bytes() == BODY


def test_a_server_that_always_breaks_off_ends_in_one_line_that_keeps_what_came(server, tmp_path, capsys):
    server.breaks = [1000] + [0] * 20
    assert "after 1,000 bytes; the same command goes on" in refusal(capsys, tmp_path)
    assert names(tmp_path) == ["img_align_celeba.zip.part"] and len(server.requests) == 1 + download.RETRIES


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_a_quota_page_is_recognised_and_nothing_is_kept(server, tmp_path, kind, capsys):
    server.body, server.kind = b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", kind
    assert "web page instead of the file, as when a quota" in refusal(capsys, tmp_path)
    assert names(tmp_path) == []


def test_a_quota_page_does_not_end_up_behind_the_part_that_came_before(server, tmp_path, capsys):
    (tmp_path / "img_align_celeba.zip.part").write_bytes(BODY[:500])
    server.body, server.kind, server.ranges = b"<html>" + bytes(2000), "text/html", False
    assert "web page" in refusal(capsys, tmp_path)
    assert (tmp_path / "img_align_celeba.zip.part").read_bytes() == BODY[:500]


def test_a_file_of_another_size_or_checksum_is_not_used(server, tmp_path, monkeypatch, capsys):
    server.body = BODY + b"x"
    assert "1,024,001 bytes, the official file 1,024,000" in refusal(capsys, tmp_path)
    server.body = b"x" + BODY[1:]
    assert "not the official file" in refusal(capsys, tmp_path)
    assert names(tmp_path) == []


def test_no_such_file_and_no_network_are_one_line(server, tmp_path, monkeypatch, capsys):
    server.status = 404
    assert "the server answers 404" in refusal(capsys, tmp_path) and len(server.requests) == 1
    server.status = 503
    assert "Service Unavailable" in refusal(capsys, tmp_path)
    offer(server, monkeypatch, url="http://127.0.0.1:1/img_align_celeba.zip")
    assert "cannot be reached" in (line := refusal(capsys, tmp_path)) and "refused" in line
    monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
    assert "Name or service not known" in refusal(capsys, tmp_path)


def no_network(*args, **options):
    raise download.urllib.error.URLError(OSError(-2, "Name or service not known"))


def test_the_addresses_and_checksums_are_those_published():
    celeba = download.FILES["celeba"]
    assert (
        celeba.size == 1_443_490_838 and celeba.checksum.startswith("46fb8944") and len(celeba.checksum) == 64
    )
    assert download.FILES["dsprites"].checksum == "7da33b31b13a06f4b04a70402ce90c2e"
    assert download.FILES["3dchairs"].checksum == "7941bff4d19665ed2dd8c82e88293e1b"
    for name, remote in download.FILES.items():
        sources = dataset.IMAGE_SETS[name].sources if name != "dsprites" else [dataset.official.NAME]
        assert remote.url.rsplit("/", 1)[1] == sources[0]  # where it is looked for
