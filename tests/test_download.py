"""Downloads, from a server on this machine; nothing here reaches the network."""

import hashlib
import http.server
import threading

import pytest

from images import FILES, prepared, refusal, run, write_zip
from prepare import sets

NAME = "img_align_celeba.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", self.server.length)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server whose file is what the table has for CelebA."""
    body = write_zip(tmp_path / "served.zip", FILES).read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.length, server.requests, server.status = body, len(body), 0, 200
        url, sha256 = f"http://127.0.0.1:{server.server_port}/{NAME}", hashlib.sha256(body).hexdigest()
        monkeypatch.setitem(
            sets.SETS, "celeba", sets.SETS["celeba"]._replace(url=url, hash=f"sha256:{sha256}")
        )
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_is_fetched_checked_prepared_and_not_fetched_again(server, tmp_path, capsys):
    for _ in range(2):
        run("celeba", "--dset_dir", tmp_path / "data", "--download")
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"celeba_64x64.json", "celeba_64x64.npy", NAME} and server.requests == 1
    assert capsys.readouterr().out.count("preparing") == 1


def test_what_is_fetched_replaces_what_was_prepared_from_another_archive(server, tmp_path):
    sample = write_zip(tmp_path / "sample.zip", dict(list(FILES.items())[:1]))
    run("celeba", "--dset_dir", tmp_path / "data", "--archive", sample)
    run("celeba", "--dset_dir", tmp_path / "data", "--download")
    assert len(prepared(tmp_path / "data")) == len(FILES)


@pytest.mark.parametrize(
    "fault", [{"body": b"another file", "length": 12}, {"body": b"broken off"}, {"status": 503}]
)
def test_what_goes_wrong_is_one_line_that_says_what_to_fetch_by_hand_and_leaves_nothing(
    server, tmp_path, fault, capsys
):
    vars(server).update(fault)
    line = refusal(capsys, "celeba", "--dset_dir", tmp_path / "data", "--download")
    assert sets.SETS["celeba"].url in line and str(tmp_path / "data" / NAME) in line
    assert list((tmp_path / "data").iterdir()) == []
