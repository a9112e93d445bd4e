"""The dashboard, on a real visdom server: what a person sees in Chromium, and that nothing harms training."""

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
from conftest import ROOT, same, wait_for
from training.checkpoint import read_checkpoint
from training.log import read_log
from utils import UserError
from viz import dashboard, figures, pictures
from viz.dashboard import Dashboard

BEGINNINGS = ("dashboard: ", "no dashboard", "viz.dashboard: ")  # of each line that the dashboard prints
SHORT = ["--max_iter", 10, "--gather_step", 5, "--display_step", 10, "--viz_on", True]
WINDOWS = {"run", "recon", "kld", "mu", "var", "reconstruction", "traverse"}


# Servers. All listen on this machine only.


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """A visdom server of its own: port, home and folder."""

    def __init__(self, folder, login=False):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = ["-port", self.port, "-env_path", folder / "envs", "-bind_local", "-logging_level", "ERROR"]
        # what `python -m visdom.server` runs once it has the files that only a browser needs
        code = "from visdom.server.run_server import main; main()"
        self.command = [sys.executable, "-c", code, *map(str, flags), *["-enable_login"] * login]
        secrets = dict(VISDOM_USERNAME="me", VISDOM_PASSWORD="secret", VISDOM_COOKIE=f"of {self.port}")
        self.env = {**os.environ, "HOME": str(folder), "VISDOM_USE_ENV_CREDENTIALS": "1", **secrets}
        (folder / ".visdom").mkdir(parents=True)
        self.start()

    def start(self):
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(lambda: self.process.poll() is not None or answers(self.url), 60)
        if self.process.poll() is not None:
            unavailable(f"visdom's server does not start: {(self.folder / 'log').read_text()[-300:]}")

    def kill(self):
        self.process.kill()  # also ends it while it is stopped
        self.process.wait()

    def windows(self, env="run"):
        """{window: what the server holds of it} of an environment."""
        reply = requests.post(f"{self.url}/win_data", timeout=10, json={"eid": env, "win": None})
        return json.loads(reply.text) if reply.ok else {}

    def lines(self, win):
        """{line: (x, y)} of a window of curves."""
        return {line["name"]: (line["x"], line["y"]) for line in self.windows()[win]["content"]["data"]}


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
def answering(status, body=b"hello"):
    """A server of HTTP that gives the same answer to all; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web.server_port
        web.shutdown()


# Runs.


def write_run(folder, rows=5, iteration=50, name="run", **changed):
    """A run's folder without its training; changed: columns of its log, lists of numbers."""
    columns = [
        "recon_loss",
        "total_kld",
        "mean_kld",
        "C",
        *(f"{k}_{j}" for k in ("kld", "mu", "var") for j in range(3)),
    ]
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
    """Lets a dashboard send and try again soon."""
    monkeypatch.setattr(dashboard, "INTERVAL", 0.2)
    monkeypatch.setattr(dashboard, "TIMEOUT", (1, 1))


def until(true, limit=20):
    end = time.time() + limit
    while not true():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


def printed(capsys):
    """What was printed, as lines, all of which must be the dashboard's."""
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    assert all(line.startswith(BEGINNINGS) for line in lines), lines
    return lines


def lines_of(done):
    """The dashboard's lines among all that a run printed."""
    assert "Traceback" not in done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(BEGINNINGS)]


# What a person sees.


@pytest.mark.browser
def test_a_run_is_on_the_page_as_its_files_say_and_is_kept_up_to_date_in_place(runs, server):
    flags = ["--viz_on", True, "--viz_port", server.port, "--gather_step", 4]
    with chromium() as page:
        url = re.search(r"dashboard: (\S+)", runs.run("live", *flags).stdout)[1]
        panes = look(page, url, lambda panes: len(panes) == 7)
        assert_curves(panes, read_log(runs.outputs("live") / "log.csv"))
        for title, name in (("Reconstructions", "reconstruction"), ("Traversals", "traverse")):
            file = Image.open(runs.outputs("live") / "40" / f"{name}.png")
            assert panes[f"{title}, iteration 40"]["image"] == list(file.size)
        words = panes["Run"]["text"]
        assert "live" in words and "iteration40 of 40" in words and "it/s, 0 h 0 min left" in words
        assert "cpu, 1 threads, float32" in words and "objective B" in words

        runs.run("live", *flags, "--max_iter", 60)  # on the same page, which is not loaded again
        later = look(
            page,
            url,
            lambda panes: "Reconstructions, iteration 60" in panes and "60 of 60" in panes["Run"]["text"],
        )
        assert [pane["box"] for pane in later.values()] == [pane["box"] for pane in panes.values()]
        assert_curves(later, read_log(runs.outputs("live") / "log.csv"))


@pytest.mark.browser
def test_the_page_that_visdom_opens_first_links_to_each_run_whatever_its_name(server, tmp_path, capsys):
    names = ["a/b", "a_b", "Größe, two #1?"]
    for i, name in enumerate(names):  # an infinite value would stop visdom's page for good
        folder = write_run(tmp_path / str(i), name=name, kld_1=[1, np.inf, np.nan, 2, 3])
        assert dashboard.main([str(folder), "--viz_port", str(server.port)]) == 0
    urls = [line.removeprefix("dashboard: ") for line in printed(capsys)]
    with chromium() as page:
        look(page, f"{server.url}/env/main", lambda panes: "Runs" in panes)
        links = [
            link.get_attribute("href")
            for link in page.find_elements("css selector", ".window a[href*='/env/']")
        ]
        assert len(links) == len(set(links)) >= 3
        for name, url in zip(names, urls):
            env = dashboard.environment(name)
            assert url == f"http://localhost:{server.port}/env/{env}"
            page.get(next(link for link in links if requests.utils.unquote(link).endswith(f"/{env}")))
            panes = look(page, requests.utils.unquote(page.current_url), lambda panes: len(panes) == 7)
            assert name in panes["Run"]["text"]
            z_1 = next(line for line in panes["KL from the prior"]["lines"] if line["name"] == "z_1")
            assert z_1["y"] == [1, None, None, 2, 3]


def assert_curves(panes, log):
    """The panes hold the numbers of log.csv, all of them drawn, with legends and axes."""
    kld = [log[f"kld_{j}"][-1] for j in range(10)]
    active = sorted(pictures.active(kld))
    latents = [f"z_{j}" for j in active]
    for title, names, columns, unit in [
        ("Reconstruction loss", ["reconstruction"], ["recon_loss"], "nats per image"),
        (
            "KL from the prior",
            ["total", "mean", "C", *latents],
            ["total_kld", "mean_kld", "C", *(f"kld_{j}" for j in active)],
            "nats per image",
        ),
        ("Posterior mean", latents, [f"mu_{j}" for j in active], "mean of \u03bc (prior: \u03c3 = 1)"),
        ("Posterior variance", latents, [f"var_{j}" for j in active], "mean of \u03c3\u00b2 (prior: 1)"),
    ]:
        pane = panes[title]
        assert pane["head"] == title and pane["axes"][1] == unit
        words = "" if title == "Reconstruction loss" else pictures.not_shown(kld)
        assert pane["axes"][0] == f"iterations      {words}".strip() and pane["legend"] == names
        assert [line["name"] for line in pane["lines"]] == names
        for line, column in zip(pane["lines"], columns):
            assert line["x"] == log["iter"] and line["y"] == log[column] and line["drawn"] > 50


# What the windows hold.


def test_active_latents_alone_are_drawn_and_no_line_for_what_an_objective_does_not_have(tmp_path):
    log = read_log(write_run(tmp_path, C=[np.nan] * 5, kld_1=[1, 1, 1, 1, 0.001]) / "log.csv")
    windows = {window["win"]: window for window in dashboard.curves(log)}
    assert [line["name"] for line in windows["kld"]["data"]] == ["total", "mean", "z_0", "z_2"]
    assert [line["name"] for line in windows["var"]["data"]] == ["z_0", "z_2"]
    assert windows["mu"]["layout"]["xaxis"]["title"].endswith("1 inactive latent not shown")
    assert list(dashboard.curves(read_log(write_run(tmp_path, rows=0) / "log.csv"))) == []


def test_scores_and_odd_texts_are_in_the_words_of_a_run(tmp_path):
    scores = {"mig": 0.1234, "dci": None, "settings": {"a": 1}}
    (write_run(tmp_path) / "50" / "metrics.json").write_text(json.dumps(scores))
    words = dashboard.summary(tmp_path, "a<b", {"iter": []}, iteration=60, rate=0.01)["data"][0]["content"]
    assert "<h4>a&lt;b</h4>" in words and "html &lt;b&gt;&amp;" in words
    assert "scores at 50</b></td><td>mig 0.123</td>" in words
    assert "60 of 100 (60.0 %)" in words and "0.0 it/s, 1 h 7 min left" in words


@pytest.mark.parametrize(
    "server, url",
    [
        ("localhost", "http://localhost:8097"),
        ("127.0.0.1", "http://127.0.0.1:8097"),
        ("http://gpu7/", "http://gpu7:8097"),
        ("gpu7:9000", "http://gpu7:9000"),
        ("https://example.org:443/vis/", "https://example.org:443/vis"),
        ("::1", "http://[::1]:8097"),
        ("[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_server_may_be_given_as_host_or_address(server, url):
    assert dashboard.address(server, 8097) == url


@pytest.mark.parametrize("server", ["http://", "gpu7:many", "[::1"])
def test_what_is_no_address_is_told_in_words(server):
    with pytest.raises(UserError, match="is no address of a visdom server"):
        dashboard.address(server, 8097)


def test_runs_do_not_share_an_environment_and_its_name_is_one_that_pages_and_files_can_have():
    names = ["a/b", "a_b", "a b", "größe-1.5=x", "a#b", "中" * 100, "中" * 101]
    environments = [dashboard.environment(name) for name in names]
    assert len(set(environments)) == len(names)
    assert (
        environments[1] == "a_b" and environments[3] == "größe-1.5=x"
    )  # as they are, where that is possible
    assert all(re.fullmatch(r"[\w.=-]+", env) and len(env.encode()) < 200 for env in environments)


def test_a_run_that_starts_afresh_takes_away_the_windows_of_the_one_before(own_server, tmp_path):
    assert dashboard.main([str(write_run(tmp_path / "a")), "--viz_port", str(own_server.port)]) == 0
    assert set(own_server.windows()) == WINDOWS
    with Dashboard(write_run(tmp_path / "b", rows=0), "run", own_server.url, own_server.port) as board:
        board.update(0)
    assert set(own_server.windows()) == {"run"}


def test_a_run_that_goes_on_shows_its_newest_pictures_at_once_and_then_its_new_ones(
    own_server, tmp_path, quick
):
    write_run(tmp_path, iteration=60)  # later than the checkpoint
    write_run(tmp_path, iteration=9)

    def title():
        return own_server.windows().get("traverse", {}).get("title")

    with Dashboard(write_run(tmp_path), "run", own_server.url) as board:
        board.update(50)
        until(lambda: title() == "Traversals, iteration 50")
        board.update(60)
        until(lambda: title() == "Traversals, iteration 60")


def test_a_folder_is_shown_again_or_one_line_says_why_not(server, tmp_path, capsys):
    write_run(tmp_path / "run")
    assert dashboard.main([str(tmp_path / "run"), "--viz_server", server.url]) == 0
    assert len(printed(capsys)) == 1
    assert dashboard.main([str(tmp_path / "run"), "--viz_port", str(free_port())]) == 1
    assert "python -m viz.dashboard --server" in "".join(lines := printed(capsys)) and len(lines) == 1
    for arguments in ([str(tmp_path)], [], [str(tmp_path / "run"), "--server"]):
        with pytest.raises(SystemExit):
            dashboard.main(arguments)
        assert len(printed(capsys)) == 1
    for text in ("{}", "[1]", "{", '{"arguments": 3}'):
        (tmp_path / "args.json").write_text(text)
        assert dashboard.main([str(tmp_path)]) == 1
        assert "is damaged" in "".join(lines := printed(capsys)) and len(lines) == 1


def test_a_study_shows_its_picture_and_its_table(server, tmp_path):
    figures.study({"mig": {"beta=1": [0.1, 0.2], "beta=4": [0.3]}}, tmp_path / "summary.png")
    (tmp_path / "summary.md").write_text("| beta=1 | <2> |")
    board = Dashboard(tmp_path, "study", server.url)
    assert board.send(dashboard.study(tmp_path, "a study"))
    windows = server.windows("study")
    assert set(windows) == {"summary", "table"} and "| beta=1 | &lt;2&gt; |" in windows["table"]["content"]
    assert windows["summary"]["type"] == "image" and windows["summary"]["title"] == "a study"


# The server that a command starts.


@pytest.mark.slow
def test_the_command_starts_a_server_without_a_network_once_its_files_are_there(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "viz.dashboard", "--server", "--viz_port", str(port)]
    no_network = dict(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", HOME=str(tmp_path))
    (tmp_path / ".visdom").mkdir()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **no_network},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if "visdom" in line)
        if "fetches its browser files" in line:
            unavailable(line)
        assert line == f"visdom: http://localhost:{port}, Ctrl-C ends it\n"
        until(lambda: answers(f"http://127.0.0.1:{port}"), 60)
    finally:
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=30)[0]


def test_a_server_that_cannot_fetch_its_files_is_one_line_that_says_what_to_do(monkeypatch, capsys):
    from visdom.server import build

    def download():
        print("Downloading scripts")
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(build, "download_scripts", download)
    assert dashboard.main(["--server"]) == 1
    assert "start it once where there is internet" in "".join(lines := printed(capsys)) and len(lines) == 1


# Nothing harms training.


def test_training_is_the_same_to_the_byte_with_and_without_a_dashboard(runs, server):
    with_it = runs.run("with", *SHORT, "--viz_port", server.port)
    runs.run("without", *SHORT, "--viz_on", False)
    assert len(lines_of(with_it)) == 1 and set(server.windows("with")) == WINDOWS
    on, off = (read_checkpoint(runs.checkpoint(name)) for name in ("with", "without"))
    for key in on.keys() - {"arguments"}:
        assert same(on[key], off[key]), key
    for path in runs.outputs("without").rglob("*.*"):
        if path.name not in ("args.json", "explore.html"):  # which name the run
            other = runs.outputs("with") / path.relative_to(runs.outputs("without"))
            assert path.read_bytes() == other.read_bytes(), path


def test_without_a_server_a_run_says_once_how_to_start_one_and_goes_on(runs):
    done = runs.run("run", *SHORT, "--save_output", "no", "--viz_port", free_port())
    (line,) = lines_of(done)
    assert "`python -m viz.dashboard --server`" in line and line.endswith("training goes on")
    assert "finished at iteration 10" in done.stdout


def test_a_run_does_not_import_visdom():
    code = "import sys, main; from viz import dashboard; print({'visdom', 'requests', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_a_server_that_is_killed_and_comes_back_empty_shows_all_again(own_server, tmp_path, capsys, quick):
    with Dashboard(write_run(tmp_path / "run"), "run", own_server.url) as board:
        board.update(50)
        until(lambda: board.up and set(own_server.windows()) == WINDOWS)
        own_server.kill()
        board.update(51)
        until(lambda: board.up is False)
        write_run(tmp_path / "run", rows=6, iteration=60)
        board.update(60)
        own_server.start()
        until(lambda: board.up)
        assert set(own_server.windows()) == WINDOWS
    assert [line.split(" at ")[0].split(":")[0] for line in printed(capsys)] == [
        "dashboard",
        "no dashboard",
        "dashboard",
    ]
    log = read_log(tmp_path / "run" / "log.csv")
    assert own_server.lines("recon")["reconstruction"] == (log["iter"], log["recon_loss"])
    assert own_server.windows()["traverse"]["title"].endswith("iteration 60")


def test_a_server_that_hangs_stops_neither_training_nor_its_end(
    own_server, tmp_path, capsys, quick, monkeypatch
):
    own_server.process.send_signal(signal.SIGSTOP)
    with Dashboard(write_run(tmp_path / "run"), "run", own_server.url) as board:
        board.update(50)
        until(lambda: board.up is False)
        monkeypatch.setattr(dashboard, "TIMEOUT", (60, 60))
        asked, ask = threading.Event(), board.server.ask
        monkeypatch.setattr(board.server, "ask", lambda *message: (asked.set(), ask(*message))[1])
        assert asked.wait(20)  # it is in a try that takes long
        began = time.time()
        for i in range(1000):
            board.update(50 + i)
        assert time.time() - began < 1
        began = time.time()
    assert time.time() - began < dashboard.FLUSH + 1
    assert printed(capsys) == [f"no dashboard at {board.server.url}: no answer in 1 s; training goes on"]


def test_a_server_that_hung_shows_the_newest_when_it_goes_on(own_server, tmp_path, capsys, quick):
    own_server.process.send_signal(signal.SIGSTOP)
    with Dashboard(write_run(tmp_path / "run"), "run", own_server.url) as board:
        board.update(50)
        until(lambda: board.up is False)
        write_run(tmp_path / "run", rows=6)
        board.update(60)
        own_server.process.send_signal(signal.SIGCONT)
        until(lambda: board.up)
    assert len(printed(capsys)) == 2
    assert "60 of 100" in own_server.windows()["run"]["content"]
    assert own_server.lines("recon")["reconstruction"][0] == [10, 20, 30, 40, 50, 60]


@pytest.mark.slow
def test_ctrl_c_ends_a_run_soon_though_the_server_hangs(own_server, runs):
    own_server.process.send_signal(signal.SIGSTOP)
    long = ["--max_iter", 10**6, "--save_step", 10**6, "--display_step", 10**6, "--gather_step", 1]
    process = runs.start("run", "--viz_on", True, "--viz_port", own_server.port, *long)
    wait_for(runs.outputs("run") / "args.json", process)
    until(lambda: len((runs.outputs("run") / "log.csv").read_text().splitlines()) > 2, 60)
    process.send_signal(signal.SIGINT)
    began = time.time()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped at iteration" in output and "Traceback" not in output
    assert time.time() - began < 20


@pytest.mark.slow
def test_first_windows_are_there_within_five_seconds_and_new_rows_within_ten(own_server, tmp_path):
    began = time.time()
    with Dashboard(write_run(tmp_path), "run", own_server.url) as board:
        board.update(50)
        until(lambda: set(own_server.windows()) == WINDOWS, 5)
        for rows in (6, 7):
            write_run(tmp_path, rows=rows)
            board.update(10 * rows)
            until(lambda: len(own_server.lines("recon")["reconstruction"][0]) == rows, 10)
    assert time.time() - began < 25


def fault(tmp_path, port, capsys):
    """The one line said of a server that is wrong in some way, in several tries."""
    with Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", port) as board:
        tries, ask = [], board.server.ask
        board.server.ask = lambda *message: (tries.append(1), ask(*message))[1]
        board.update(50)
        until(lambda: len(tries) > 2)
    (line,) = printed(capsys)
    assert line.startswith("no dashboard at") and line.endswith("; training goes on")
    return line


@pytest.mark.parametrize(
    "status, why",
    [(500, "HTTP 500"), (404, "HTTP 404"), (403, "or a proxy's"), (200, "something else than visdom")],
)
def test_a_server_with_errors_or_of_something_else_is_told_once(tmp_path, capsys, quick, status, why):
    with answering(status) as port:
        line = fault(tmp_path, port, capsys)
        assert why in line and "VISDOM_USERNAME" not in line


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_on_this_machine_is_asked_past_a_proxy(server, tmp_path, capsys, monkeypatch, host):
    monkeypatch.setenv("no_proxy", "")
    with answering(403) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        folder = str(write_run(tmp_path))
        assert dashboard.main([folder, "--viz_server", host, "--viz_port", str(server.port)]) == 0
        printed(capsys)
        assert dashboard.main([folder, "--viz_server", "elsewhere.example"]) == 1  # any other, through it
        assert "or a proxy's" in printed(capsys)[0]


def test_a_server_that_wants_a_login_gets_it_from_the_environment(tmp_path, capsys, quick, monkeypatch):
    server = Server(tmp_path / "visdom", login=True)
    try:
        assert "VISDOM_USERNAME and VISDOM_PASSWORD" in fault(tmp_path, server.port, capsys)
        monkeypatch.setenv("VISDOM_USERNAME", "me")
        monkeypatch.setenv("VISDOM_PASSWORD", "wrong")
        assert "VISDOM_USERNAME and VISDOM_PASSWORD" in fault(tmp_path, server.port, capsys)
        monkeypatch.setenv("VISDOM_PASSWORD", "secret")
        assert dashboard.main([str(tmp_path / "run"), "--viz_port", str(server.port)]) == 0
    finally:
        server.kill()


def test_a_fault_of_the_program_itself_is_shown_whole(server, tmp_path):
    def faulty():
        raise KeyError("iter")
        yield

    with pytest.raises(KeyError):
        Dashboard(write_run(tmp_path), "run", server.url).send(faulty())
