"""The dashboard on a real visdom server: what Chromium shows, and that nothing harms training."""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests
from PIL import Image

from browser import chromium, look, unavailable
from helpers import ROOT, assert_same_run
from training.lock import lock_holder
from training.log import read_log
from utils import UserError
from viz import dashboard
from viz.dashboard import Dashboard

BEGINNINGS = ("dashboard: ", "no dashboard", "viz.dashboard: ")  # of every line that the dashboard prints
WINDOWS = {"run", "recon", "kld", "mu", "var", "reconstruction", "traverse"}


# Servers. All listen on this machine only.


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """A visdom server with a port, a home and a folder of its own."""

    def __init__(self, folder, login=False):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = f"-port {self.port} -bind_local -logging_level ERROR".split() + ["-enable_login"] * login
        # What `python -m visdom.server` runs once it has the files that only a browser needs.
        code = "from visdom.server.run_server import main; main()"
        self.command = [sys.executable, "-c", code, "-env_path", str(folder / "envs"), *flags]
        login = dict(VISDOM_USERNAME="me", VISDOM_PASSWORD="secret", VISDOM_COOKIE="c")
        self.env = {**os.environ, "HOME": str(folder), "VISDOM_USE_ENV_CREDENTIALS": "1", **login}
        (folder / ".visdom").mkdir(parents=True)
        self.start()

    def start(self):
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen(self.command, env=self.env, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or answers(self.url), 300)
        if self.process.poll() is not None:
            unavailable(f"visdom's server does not start: {(self.folder / 'log').read_text()[-300:]}")

    def kill(self):
        self.process.kill()  # also ends it while it is stopped
        self.process.wait()

    def windows(self, env="run"):
        """{window: what the server holds of it} of an environment."""
        reply = requests.post(f"{self.url}/win_data", timeout=10, json={"eid": env, "win": None})
        return json.loads(reply.text) if reply.ok else {}

    def recon(self):
        """x and y of the reconstruction loss."""
        (line,) = self.windows()["recon"]["content"]["data"]
        return line["x"], line["y"]


def answers(url):
    try:
        return requests.get(url, timeout=5)
    except requests.RequestException:
        return None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("visdom"))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path):
    server = Server(tmp_path / "visdom")
    yield server
    server.kill()


@contextmanager
def answering(status):
    """An HTTP server that gives the same answer to all; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web.server_port
        web.shutdown()


# Runs.


def write_run(folder, rows=5, iteration=50, name="run", **changed):
    """A run's folder without its training; changed: columns of its log, lists of numbers."""
    columns = "recon_loss total_kld C kld_0 kld_1 kld_2 mu_0 mu_1 mu_2 var_0 var_1 var_2".split()
    log = {"iter": [10 * (i + 1) for i in range(rows)]}
    log |= {column: [k + i / 7 for i in range(rows)] for k, column in enumerate(columns)} | changed
    (folder / str(iteration)).mkdir(parents=True, exist_ok=True)
    lines = [",".join(log), *(",".join(f"{value:.6g}" for value in row) for row in zip(*log.values()))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    flags = {"viz_name": name, "max_iter": 100, "html": "<b>&"}
    about = {"arguments": flags, "device": "cpu", "threads": 1, "precision": "float32"}
    (folder / "args.json").write_text(json.dumps(about))
    for picture in ("reconstruction", "traverse"):
        Image.new("RGB", (300, 200), (iteration, 0, 0)).save(folder / str(iteration) / f"{picture}.png")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A dashboard that sends again soon."""
    monkeypatch.setattr(dashboard, "INTERVAL", 0.2)
    monkeypatch.setattr(dashboard, "TIMEOUT", (1, 1))


def until(true, limit=120):
    end = time.time() + limit
    while not true():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def printed(capsys):
    """Call it for the lines printed since the last call, all of which must be the dashboard's."""

    def lines():
        out, err = capsys.readouterr()
        found = (out + err).splitlines()
        assert all(line.startswith(BEGINNINGS) for line in found), found
        return found

    return lines


# What a person sees.


@pytest.mark.browser
def test_a_run_is_found_from_the_first_page_shows_what_its_files_say_and_is_updated_in_place(
    server, tmp_path, printed
):
    names = ["a/b", "a_b", "Größe, two #1?"]  # an infinite value would stop visdom's page for good
    for i, name in enumerate(names):
        folder = write_run(tmp_path / str(i), name=name, kld_1=[1, np.inf, np.nan, 2, 3])
        assert dashboard.main([str(folder), "--viz_port", str(server.port)]) == 0
    urls = [line.removeprefix("dashboard: ") for line in printed()]
    with chromium() as page:
        look(page, f"{server.url}/env/main", lambda panes: "Runs" in panes)
        found = page.find_elements("css selector", ".window a[href*=env]")
        links = {each.get_attribute("href").split("/env/")[1] for each in found}
        for name, url in zip(names, urls):
            assert requests.utils.quote(url.split("/env/")[1]) in links
            panes = look(page, url, lambda panes: len(panes) == len(WINDOWS))
            assert name in panes["Run"]["text"] and "50 of 100" in panes["Run"]["text"]
        kl = panes["KL from the prior"]
        assert kl["legend"] == ["total", "C", "z_2", "z_0", "z_1"]
        assert kl["axes"] == ["iterations", "nats per image"]
        assert kl["lines"][-1]["x"] == [10, 20, 30, 40, 50] and kl["lines"][-1]["y"] == [1, None, None, 2, 3]
        assert panes["Traversals, iteration 50"]["image"] == [300, 200]

        write_run(folder, rows=6, iteration=60, name=name)
        assert dashboard.main([str(folder), "--viz_port", str(server.port)]) == 0
        later = look(page, url, lambda panes: "Traversals, iteration 60" in panes)  # not loaded again
        assert [pane["box"] for pane in later.values()] == [pane["box"] for pane in panes.values()]
        assert later["Reconstruction loss"]["lines"][0]["x"][-1] == 60


# What the windows hold.


def test_active_latents_are_drawn_by_kl_and_no_line_for_what_an_objective_does_not_have(tmp_path):
    log = read_log(write_run(tmp_path, C=[np.nan] * 5, kld_1=[1, 1, 1, 1, 0.001]) / "log.csv")
    windows = {window["win"]: window for window in dashboard.curves(log)}
    assert [line["name"] for line in windows["kld"]["data"]] == ["total", "z_2", "z_0"]
    assert [line["y"] for line in windows["var"]["data"]] == [log["var_2"], log["var_0"]]
    assert windows["mu"]["layout"]["xaxis"]["title"].endswith("1 inactive latent not shown")
    assert windows["kld"]["layout"]["yaxis"]["title"] == "nats per image"


def test_scores_and_odd_texts_are_in_the_words_of_a_run(tmp_path):
    scores = {"mig": 0.1234, "dci": None, "settings": {"a": 1}}
    (write_run(tmp_path) / "50" / "metrics.json").write_text(json.dumps(scores))
    words = dashboard.summary(tmp_path, "a<b", {"iter": []}, iteration=60)["data"][0]["content"]
    assert "<h4>a&lt;b</h4>" in words and "html &lt;b&gt;&amp;" in words
    assert "scores at 50</b></td><td>mig 0.123</td>" in words
    assert "60 of 100 (60.0 %)" in words


ADDRESSES = {
    "localhost": "http://localhost:8097",
    "http://gpu7/": "http://gpu7:8097",
    "gpu7:9000": "http://gpu7:9000",
    "https://example.org:443/vis/": "https://example.org:443/vis",
    "[::1]": "http://[::1]:8097",
    "fe80::1": "http://[fe80::1]:8097",
}


def test_a_server_is_given_as_host_or_address_or_one_line_says_that_it_is_none():
    for server, url in ADDRESSES.items():
        assert dashboard.address(server, 8097) == url
    for server in ("http://", "gpu7:many", "[::1"):
        with pytest.raises(UserError, match="is no address of a visdom server"):
            dashboard.address(server, 8097)


@pytest.mark.parametrize("server", ["http://me:secret@gpu7", "me:secret@[gpu7"])
def test_an_address_with_a_login_is_refused_without_a_trace_of_it(runs, server):
    assert "secret" not in (error := runs.refused("run", "--viz_server", server)) and "~/.netrc" in error
    assert not [path for path in runs.folder.glob("*/run/*") if b"secret" in path.read_bytes()]
    assert lock_holder(runs.outputs("run")) is None


def test_the_login_of_a_proxy_is_taken_from_netrc(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with answering(403) as port:
        board = Dashboard(write_run(tmp_path), "run", "127.0.0.1", port)
        with pytest.raises(UserError):
            board.server.post("events", {})
    assert board.server.session.auth == ("me", "secret")


def test_runs_do_not_share_an_environment_and_its_name_is_one_that_pages_and_files_can_have():
    names = ["a/b", "a_b", "a b", "größe-1.5=x", "a#b", "中" * 100, "中" * 101]
    environments = [dashboard.environment(name) for name in names]
    assert len(set(environments)) == len(names)
    assert environments[1] == "a_b" and environments[3] == "größe-1.5=x"  # unchanged where possible
    assert all(re.fullmatch(r"[\w.=-]+", env) and len(env.encode()) < 200 for env in environments)


def test_a_study_shows_its_picture_and_its_table(server, tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "summary.png")
    (tmp_path / "summary.md").write_text("| beta=1 | <2> |")
    assert Dashboard(tmp_path, "study", server.url).send(dashboard.study(tmp_path, "a study"))
    windows = server.windows("study")
    assert set(windows) == {"summary", "table"} and "| beta=1 | &lt;2&gt; |" in windows["table"]["content"]
    assert windows["summary"]["type"] == "image" and windows["summary"]["title"] == "a study"


def test_a_folder_is_shown_again_or_one_line_says_why_not(server, tmp_path, printed):
    folder = write_run(tmp_path / "run")
    assert dashboard.main([str(folder), "--viz_server", server.url]) == 0
    assert len(printed()) == 1
    assert dashboard.main([str(folder), "--viz_port", str(free_port())]) == 1
    (line,) = printed()
    assert "python -m viz.dashboard --server" in line
    (folder / "args.json").write_text("{}")
    assert dashboard.main([str(folder)]) == 1
    (line,) = printed()
    assert "is no run's folder" in line


# The server that a command starts.


@pytest.mark.slow
def test_the_command_starts_a_server_without_a_network_once_its_files_are_there(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "viz.dashboard", "--server", "--viz_port", str(port)]
    no_network = dict(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", HOME=str(tmp_path))
    (tmp_path / ".visdom").mkdir()
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **no_network}, **pipes)
    try:
        line = next(line for line in iter(process.stdout.readline, "") if "visdom" in line)
        if "browser files" in line:
            unavailable(line)
        assert line == f"visdom: http://localhost:{port}, Ctrl-C ends it\n"
        until(lambda: answers(f"http://127.0.0.1:{port}"))
    finally:
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=30)[0]


def test_a_server_that_cannot_fetch_its_files_is_one_line_that_says_what_to_do(monkeypatch, printed):
    def download():
        raise requests.ConnectionError("no route")

    monkeypatch.setattr("visdom.server.build.download_scripts", download)
    assert dashboard.main(["--server"]) == 1
    (line,) = printed()
    assert "start it where there is internet, then copy" in line


def test_without_visdom_one_line_says_how_to_install_it(tmp_path, monkeypatch, printed):
    monkeypatch.setitem(sys.modules, "requests", None)  # which comes with visdom
    monkeypatch.setitem(sys.modules, "visdom.server", None)
    for arguments in ([str(write_run(tmp_path))], ["--server"]):
        assert dashboard.main(arguments) == 1
        (line,) = printed()
        assert "pip install -r requirements.txt" in line


# Nothing harms training.


@pytest.mark.slow
def test_training_is_the_same_to_the_byte_with_and_without_a_dashboard(runs, server):
    flags = ["--max_iter", 10, "--gather_step", 5, "--display_step", 10]
    done = runs.run("with", *flags, "--viz_on", True, "--viz_port", server.port)
    runs.run("without", *flags)
    assert done.stdout.count("dashboard: ") == 1 and set(server.windows("with")) == WINDOWS
    assert "10 of 10" in server.windows("with")["run"]["content"]
    assert_same_run(runs, "with", "without")


@pytest.mark.slow
def test_first_windows_are_there_within_five_seconds_and_new_rows_and_pictures_within_ten(server, tmp_path):
    with Dashboard(write_run(tmp_path), "live", server.url) as board:
        board.update(50)
        until(lambda: set(server.windows("live")) == WINDOWS, 5)
        write_run(tmp_path, rows=6, iteration=60)
        board.update(60)
        until(lambda: "60 of 100" in server.windows("live")["run"]["content"], 10)
        until(lambda: server.windows("live")["traverse"]["title"] == "Traversals, iteration 60", 1)


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_empty_shows_all_again(own_server, tmp_path, printed, quick):
    with Dashboard(write_run(tmp_path / "run"), "run", own_server.url) as board:
        board.update(50)
        until(lambda: board.up)
        own_server.kill()
        board.update(51)
        until(lambda: board.up is False)
        write_run(tmp_path / "run", rows=6, iteration=60)
        board.update(60)
        own_server.start()
        until(lambda: board.up)
        assert set(own_server.windows()) == WINDOWS
    assert [line[:12] for line in printed()] == ["dashboard: h", "no dashboard", "dashboard: h"]
    log = read_log(tmp_path / "run" / "log.csv")
    assert own_server.recon() == (log["iter"], log["recon_loss"])
    assert own_server.windows()["traverse"]["title"].endswith("iteration 60")


@pytest.mark.slow
def test_a_server_that_hangs_stops_neither_training_nor_its_end_and_shows_the_newest_when_it_goes_on(
    own_server, tmp_path, printed, quick, monkeypatch
):
    own_server.process.send_signal(signal.SIGSTOP)
    with Dashboard(write_run(tmp_path / "run"), "run", own_server.url) as board:
        board.update(50)
        until(lambda: board.up is False)
        write_run(tmp_path / "run", rows=6)
        board.update(60)
        own_server.process.send_signal(signal.SIGCONT)
        until(lambda: board.up)
        assert own_server.recon()[0] == [10, 20, 30, 40, 50, 60]
        own_server.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(dashboard, "TIMEOUT", (60, 60))
        posted, post = threading.Event(), board.server.post
        monkeypatch.setattr(board.server, "post", lambda *message: (posted.set(), post(*message))[1])
        board.update(61)
        assert posted.wait(60)  # it is in a call that takes a minute
        began = time.time()
    assert time.time() - began < dashboard.FLUSH + 1
    own_server.process.send_signal(signal.SIGCONT)
    board.thread.join()
    lines = printed()
    assert lines[0] == f"no dashboard at {board.server.url}: no answer in 1 s" and len(lines) == 2


def fault(tmp_path, port, printed):
    """The one line about a faulty server, in several tries."""
    with Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", port) as board:
        tries, post = [], board.server.post
        board.server.post = lambda *message: (tries.append(1), post(*message))[1]
        board.update(50)
        until(lambda: len(tries) > 2)
    (line,) = printed()
    return line


def test_a_server_of_something_else_is_named_once(tmp_path, printed, quick):
    with answering(200) as port:
        assert "else than visdom" in fault(tmp_path, port, printed)


def test_a_server_on_this_machine_is_asked_without_a_proxy(server, tmp_path, printed, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    with answering(403) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        folder = str(write_run(tmp_path))
        for host in ("localhost", "127.0.0.1"):
            assert dashboard.main([folder, "--viz_server", host, "--viz_port", str(server.port)]) == 0
        assert dashboard.main([folder, "--viz_server", "elsewhere.example"]) == 1
        assert "HTTP 403" in printed()[-1]


@pytest.mark.slow
def test_a_server_that_wants_a_login_gets_it_from_the_environment(tmp_path, printed, quick, monkeypatch):
    server = Server(tmp_path / "visdom", login=True)
    try:
        assert "VISDOM_USERNAME and VISDOM_PASSWORD" in fault(tmp_path, server.port, printed)
        monkeypatch.setenv("VISDOM_USERNAME", "me")
        monkeypatch.setenv("VISDOM_PASSWORD", "secret")
        assert dashboard.main([str(tmp_path / "run"), "--viz_port", str(server.port)]) == 0
    finally:
        server.kill()
