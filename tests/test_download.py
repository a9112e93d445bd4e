"""Downloads, from a server on this machine; nothing here reaches the network."""

import hashlib
import http.server
import threading

import pytest

from images import FILES, refusal, run, write_zip
from prepare import sets


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.server.status != 200:
            return self.send_error(self.server.status)
        self.send_response(200)
        self.send_header("Content-Length", len(self.server.body))
        self.end_headers()
        self.wfile.write(self.server.body[: self.server.breaks])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server whose file is what the table has for CelebA: .body, broken off after .breaks bytes."""
    body = write_zip(tmp_path / "served.zip", FILES).read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.requests, server.status, server.breaks = body, 0, 200, None
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        offer(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}", body)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def offer(monkeypatch, address, body):
    celeba = sets.SETS["celeba"]._replace(
        url=f"{address}/img_align_celeba.zip", hash=f"sha256:{hashlib.sha256(body).hexdigest()}"
    )
    monkeypatch.setitem(sets.SETS, "celeba", celeba)


def test_a_file_is_fetched_checked_prepared_and_not_fetched_again(server, tmp_path, capsys):
    for _ in range(2):
        run("celeba", "--dset_dir", tmp_path / "data", "--download")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"celeba_64x64.json", "celeba_64x64.npy", "img_align_celeba.zip"}
    assert server.requests == 1 and "not fetched again" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["another file", "a page", "broken off", "404", "503", "no server"])
def test_what_goes_wrong_is_one_line_that_says_what_to_fetch_by_hand_and_leaves_nothing(
    server, tmp_path, fault, capsys, monkeypatch
):
    if fault == "no server":
        offer(monkeypatch, "http://127.0.0.1:1", server.body)
    elif fault.isdecimal():
        server.status = int(fault)
    elif fault == "broken off":
        server.breaks = 1000
    else:
        server.body = b"<!DOCTYPE html>Quota exceeded" if fault == "a page" else b"x" + server.body[1:]
    folder = tmp_path / "data"
    lines = refusal(capsys, "celeba", "--dset_dir", folder, "--download").splitlines()
    line = next(line for line in lines if line.startswith("prepare"))
    assert (
        line == lines[-1] and sets.SETS["celeba"].url in line and str(folder / "img_align_celeba.zip") in line
    )
    assert list(folder.iterdir()) == []
