"""The dashboard, on a real visdom server: what a person sees in Chromium, and that nothing harms training."""

import http.server
import json
import os
import random
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
import torch
from PIL import Image

from browser import chromium, look, unavailable
from conftest import ROOT, same, wait_for
from training.checkpoint import read_checkpoint
from training.log import read_log
from viz import dashboard, figures
from viz.dashboard import Dashboard

BEGINNINGS = ("dashboard: ", "no dashboard", "dashboard.py: ")  # of each line that the dashboard prints
SHORT = ["--max_iter", 10, "--gather_step", 5, "--display_step", 10, "--viz_on", True]
RUN = ["run", "recon", "kld", "mu", "var"]


# Servers. All listen on this machine only.


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """A visdom server of its own: port, home and folder."""

    def __init__(self, folder, login=False, download=False):
        self.folder, self.port, self.login = folder, free_port(), login
        # what `python -m visdom.server` runs once it has the files that only a browser needs
        self.start_it = (
            ["-m", "visdom.server"]
            if download
            else ["-c", "from visdom.server.run_server import main; main()"]
        )
        (folder / ".visdom").mkdir(parents=True)
        self.start()

    def start(self):
        env = {**os.environ, "HOME": str(self.folder)}
        if self.login:
            env |= dict(
                VISDOM_USE_ENV_CREDENTIALS="1",
                VISDOM_USERNAME="me",
                VISDOM_PASSWORD="secret",
                VISDOM_COOKIE=f"of {self.port} since {time.time()}",
            )
        flags = [
            "-port",
            self.port,
            "-env_path",
            self.folder / "envs",
            "-bind_local",
            "-logging_level",
            "ERROR",
        ]
        self.log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(
            list(map(str, [sys.executable, *self.start_it, *flags, *["-enable_login"] * self.login])),
            env=env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        end = time.time() + 60
        while time.time() < end and self.process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{self.port}/", timeout=5)
                return
            except requests.RequestException:
                time.sleep(0.05)
        self.kill()
        unavailable(f"visdom's server does not start: {(self.folder / 'log').read_text()[-300:]}")

    def kill(self):
        self.process.kill()  # also ends it while it is stopped
        self.process.wait()
        self.log.close()

    def windows(self, name):
        """{window: what the server holds of it} of a run's environment."""
        reply = requests.post(
            f"http://127.0.0.1:{self.port}/win_data",
            timeout=10,
            json={"eid": dashboard.environment(name), "win": None},
        )
        return json.loads(reply.text) if reply.ok else {}


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


def write_run(folder, rows=5, iteration=50, z_dim=3, change=lambda log: None, name="run"):
    """A run's folder without its training; change may alter the columns of its log, {name: list of numbers}."""
    columns = ["recon_loss", "total_kld", "mean_kld", "C"]
    columns += [f"{kind}_{j}" for kind in ("kld", "mu", "var") for j in range(z_dim)]
    log = {"iter": [10 * (i + 1) for i in range(rows)]}
    log |= {column: [k + i / 7 for i in range(rows)] for k, column in enumerate(columns)}
    change(log)
    (folder / str(iteration)).mkdir(parents=True, exist_ok=True)
    lines = [",".join(log), *(",".join(f"{value:.6g}" for value in row) for row in zip(*log.values()))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "args.json").write_text(
        json.dumps(
            {
                "arguments": {"viz_name": name, "max_iter": 100, "html": "<b>&"},
                "device": "cpu",
                "threads": 1,
                "precision": "float32",
            }
        )
    )
    for picture in ("reconstruction", "traverse_heart"):
        Image.new("RGB", (300, 200), (iteration, 0, 0)).save(folder / str(iteration) / f"{picture}.png")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Lets a dashboard try again soon."""
    for name, value in dict(RETRY=0.2, REST=0, TIMEOUT=(1, 1)).items():
        monkeypatch.setattr(dashboard, name, value)


def until(true, limit=20):
    end = time.time() + limit
    while not true():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


def said(capsys):
    """What was printed, as lines, all of which must be the dashboard's."""
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    assert all(line.startswith(BEGINNINGS) for line in lines), lines
    return lines


def kinds(lines):
    return [line.split(" at ")[0].split(": ")[0] for line in lines]


def told(done):
    """The dashboard's lines among all that a run printed."""
    assert "Traceback" not in done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(BEGINNINGS)]


def shown(server, name="run"):
    """{window: {line: (x, y)}} of the curves."""
    return {
        win: {line["name"]: (line["x"], line["y"]) for line in window["content"]["data"]}
        for win, window in server.windows(name).items()
        if window["type"] == "plot"
    }


# What a person sees.

TITLES = ["Run", "Reconstruction loss", "KL from the prior", "Posterior mean", "Posterior variance"]


def test_a_run_is_on_the_page_as_its_files_say_and_is_kept_up_to_date_in_place(runs, tmp_path):
    with chromium() as page:
        server = Server(tmp_path / "visdom", download=True)
        try:
            compare_with_files(page, runs, server)
        finally:
            server.kill()


def compare_with_files(page, runs, server):
    flags = ["--viz_on", True, "--viz_port", server.port, "--gather_step", 4]
    url = re.search(r"dashboard: (\S+)", runs.run("live", *flags).stdout)[1]
    seeds = [
        f"Traversals from {seed}, iteration 40" for seed in ("ellipse", "heart", "image", "random", "square")
    ]
    panes = look(page, url, lambda panes: len(panes) == 11)
    assert sorted(panes) == sorted([*TITLES, "Reconstructions, iteration 40", *seeds])
    assert_curves(panes, read_log(runs.outputs("live") / "log.csv"))
    for pane in panes.values():
        if pane["image"]:
            assert pane["caption"] == pane["title"]  # with the iteration
            file = (
                "reconstruction" if "Recon" in pane["title"] else f"traverse_{pane['title'].split()[2][:-1]}"
            )
            assert pane["image"] == list(Image.open(runs.outputs("live") / "40" / f"{file}.png").size)
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

    # An infinite value stops visdom's page for good, where it gets there.
    folder = write_run(
        runs.folder / "odd",
        change=lambda log: log.update(kld_1=[1, np.inf, np.nan, 2, 3]),
        name="Größe a/b #1?",
    )
    assert dashboard.main([str(folder), "--viz_port", str(server.port)]) == 0
    panes = look(page, f"http://localhost:{server.port}/env/Größe_a_b__1_", lambda panes: len(panes) == 7)
    z_1 = next(line for line in panes["KL from the prior"]["lines"] if line["name"] == "z_1")
    assert z_1["y"] == [1, None, None, 2, 3]


def assert_curves(panes, log):
    """The panes hold the numbers of log.csv, all of them drawn, with legends and axes."""
    latents = [f"z_{j}" for j in range(10)]
    for title, names, columns, unit in [
        ("Reconstruction loss", ["reconstruction"], ["recon_loss"], "nats an image"),
        (
            "KL from the prior",
            ["total", "mean", "C", *latents],
            ["total_kld", "mean_kld", "C", *(f"kld_{j}" for j in range(10))],
            "nats",
        ),
        ("Posterior mean", latents, [f"mu_{j}" for j in range(10)], "mean of \u03bc (prior: \u03c3 = 1)"),
        ("Posterior variance", latents, [f"var_{j}" for j in range(10)], "mean of \u03c3\u00b2 (prior: 1)"),
    ]:
        pane = panes[title]
        assert pane["head"] == title and pane["axes"] == ["iterations", unit]
        assert pane["legend"] == (names if len(names) > 1 else pane["legend"])
        assert [line["name"] for line in pane["lines"]] == names
        for line, column in zip(pane["lines"], columns):
            assert line["x"] == log["iter"] and line["y"] == log[column] and line["drawn"] > 50


# What the windows hold.


def test_long_curves_are_thinned_and_keep_both_ends(tmp_path):
    log = read_log(write_run(tmp_path, rows=2345) / "log.csv")
    for window in dashboard.curves(log):
        assert len(window["x"]) == 1000 and (window["x"][0], window["x"][-1]) == (10, 23450)
        assert np.diff(window["x"]).max() <= 30  # evenly
        assert all(len(y) == 1000 for y in window["lines"].values())
    log = read_log(write_run(tmp_path, rows=1000) / "log.csv")
    assert next(dashboard.curves(log))["x"].tolist() == log["iter"]


def test_of_many_latents_those_with_the_highest_KL_are_shown(tmp_path):
    windows = dashboard.curves(read_log(write_run(tmp_path, z_dim=40) / "log.csv"))
    for window in list(windows)[1:]:
        assert [name for name in window["lines"] if name.startswith("z_")] == [f"z_{j}" for j in range(8, 40)]


def test_an_objective_without_C_has_no_line_for_it_and_a_log_without_rows_no_windows(tmp_path):
    log = read_log(write_run(tmp_path, change=lambda log: log.update(C=[np.nan] * 5)) / "log.csv")
    assert list(list(dashboard.curves(log))[1]["lines"]) == ["total", "mean", "z_0", "z_1", "z_2"]
    assert list(dashboard.curves(read_log(write_run(tmp_path, rows=0) / "log.csv"))) == []


@pytest.mark.parametrize(
    "values, as_numbers",
    [
        (torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16), [1.5, None, None]),
        (torch.tensor(2.5, requires_grad=True), [2.5]),
        ([torch.tensor(1, dtype=torch.int64), torch.tensor(2.5)], [1, 2.5]),
        (np.float32(-np.inf), [None]),
        (3, [3]),
        (np.arange(3).reshape(3, 1), [0, 1, 2]),
    ],
)
def test_numbers_of_any_kind_are_shown_and_what_is_not_finite_is_a_gap(server, values, as_numbers):
    client = dashboard.connect("127.0.0.1", server.port, "numbers")
    dashboard.show(client, "w", "title", x=torch.arange(len(as_numbers)), lines={"z_0": values}, unit="nats")
    x, y = shown(server, "numbers")["w"]["z_0"]
    assert x == list(range(len(as_numbers))) and y == as_numbers


def test_scores_and_odd_texts_are_in_the_words_of_a_run(tmp_path):
    write_run(tmp_path)
    (tmp_path / "50" / "metrics.json").write_text(
        json.dumps({"mig": 0.1234, "dci": None, "settings": {"a": 1}})
    )
    words = dashboard.summary(tmp_path, "a<b", iteration=torch.tensor(60), rate=torch.tensor(0.01))["html"]
    assert "<h4>a&lt;b</h4>" in words and "html &lt;b&gt;&amp;" in words
    assert "scores at 50</b></td><td>mig 0.123</td>" in words
    assert "60 of 100 (60.0 %)" in words and "0.0 it/s, 1 h 7 min left" in words


@pytest.mark.parametrize(
    "name, env",
    [
        ("a/b", "a_b"),
        ("two words", "two_words"),
        ("größe-1.5=x", "größe-1.5=x"),
        ("a#b?c+d%e&", "a_b_c_d_e_"),
        ("中" * 100, "中" * 66),
    ],
)
def test_odd_names_of_runs_are_shown(server, tmp_path, capsys, name, env):
    assert dashboard.main([str(write_run(tmp_path, name=name)), "--viz_port", str(server.port)]) == 0
    assert said(capsys) == [f"dashboard: http://localhost:{server.port}/env/{env}"]
    assert sorted(server.windows(name)) == sorted([*RUN, "reconstruction", "traverse_heart"])
    assert requests.get(f"http://127.0.0.1:{server.port}/env/{env}", timeout=10).ok


def test_a_run_that_starts_afresh_takes_away_the_windows_of_the_one_before(server, tmp_path):
    assert dashboard.main([str(write_run(tmp_path / "a", name="fresh")), "--viz_port", str(server.port)]) == 0
    assert "traverse_heart" in server.windows("fresh")
    with (board := Dashboard(write_run(tmp_path / "b", rows=0), "fresh", "127.0.0.1", server.port)):
        board.update(0)
    assert list(server.windows("fresh")) == ["run"]


def test_a_run_that_goes_on_shows_its_newest_pictures_at_once(server, tmp_path):
    write_run(tmp_path, iteration=9)
    write_run(tmp_path, iteration=60)  # later than the checkpoint
    with (board := Dashboard(write_run(tmp_path), "on", "127.0.0.1", server.port)):
        board.update(50)
    assert server.windows("on")["traverse_heart"]["title"] == "Traversals from heart, iteration 50"


def test_dashboard_py_shows_a_run_again_or_says_in_one_line_why_not(server, tmp_path, capsys):
    write_run(tmp_path / "run")
    to = ["--viz_server", "http://127.0.0.1", "--viz_port", str(server.port)]
    assert dashboard.main([str(tmp_path / "run"), *to]) == 0
    assert len(said(capsys)) == 1
    assert dashboard.main([str(tmp_path / "run"), "--viz_port", str(free_port())]) == 1
    assert "python -m visdom.server" in "".join(lines := said(capsys)) and len(lines) == 1
    with pytest.raises(SystemExit):
        dashboard.main([str(tmp_path)])
    assert len(said(capsys)) == 1
    for text in ("{}", "[1]", "{", '{"arguments": 3}'):
        (tmp_path / "args.json").write_text(text)
        assert dashboard.main([str(tmp_path)]) == 1
        assert "is damaged" in "".join(lines := said(capsys)) and len(lines) == 1


# Nothing harms training.


def test_training_is_the_same_to_the_byte_with_and_without_a_dashboard(runs, server):
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    with_it = runs.run("with", *SHORT, "--viz_port", server.port)
    assert same([random.getstate(), *map(str, np.random.get_state())], [states[0], *map(str, states[1])])
    assert torch.equal(torch.get_rng_state(), states[2])
    runs.run("without", *SHORT, "--viz_on", False)
    assert len(told(with_it)) == 1 and len(server.windows("with")) == 11
    on, off = (read_checkpoint(runs.checkpoint(name)) for name in ("with", "without"))
    for key in on.keys() - {"arguments"}:
        assert same(on[key], off[key]), key
    for path in runs.outputs("without").rglob("*.*"):
        if path.name != "args.json":
            assert (
                path.read_bytes()
                == (runs.outputs("with") / path.relative_to(runs.outputs("without"))).read_bytes()
            )


def test_without_a_server_a_run_says_once_how_to_start_one_and_goes_on(runs):
    began = time.time()
    done = runs.run("run", *SHORT, "--save_output", "no", "--viz_port", free_port())
    lines = told(done)
    assert len(lines) == 1 and "`python -m visdom.server`" in lines[0] and "training goes on" in lines[0]
    assert "finished at iteration 10" in done.stdout
    assert time.time() - began < 30


def test_without_visdom_a_run_says_so_once_and_goes_on(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)  # import then raises what it does where there is none
    done = runs.run("run", *SHORT, "--save_output", "no")
    lines = told(done)
    assert len(lines) == 1 and "pip install -r requirements.txt" in lines[0]
    assert "finished at iteration 10" in done.stdout


def test_visdom_is_imported_only_where_there_is_something_to_show():
    code = "import sys, main; from viz import dashboard; dashboard.Dashboard('x', 'x').update(1); print('visdom' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
        == "False\n"
    )
    assert [
        path.name
        for folder in (".", "evaluation", "prepare", "training", "viz")
        for path in (ROOT / folder).glob("*.py")
        if re.search(r"^\s*(import|from) visdom", path.read_text(), re.M)
    ] == ["dashboard.py"]


def test_a_server_that_is_killed_and_comes_back_empty_shows_all_again(own_server, tmp_path, capsys, quick):
    with (board := Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", own_server.port)):
        board.update(50)
        until(lambda: len(own_server.windows("run")) == 7)
        own_server.kill()
        for i in range(5):
            board.update(50 + i)
            time.sleep(0.3)  # several tries
        assert not board.up
        write_run(tmp_path / "run", rows=6, iteration=60)
        board.update(60, tmp_path / "run" / "60")
        own_server.start()
        until(lambda: len(own_server.windows("run")) == 7)
        until(lambda: board.up)
    assert kinds(said(capsys)) == ["dashboard", "no dashboard", "dashboard"]
    log = read_log(tmp_path / "run" / "log.csv")
    assert shown(own_server)["recon"]["reconstruction"] == (log["iter"], log["recon_loss"])
    assert own_server.windows("run")["traverse_heart"]["title"].endswith("iteration 60")


def test_a_server_that_is_emptied_unnoticed_gets_whole_windows_at_the_next_send(own_server, tmp_path, quick):
    with (board := Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", own_server.port)):
        board.update(50)
        until(lambda: len(own_server.windows("run")) == 7)
        own_server.kill()
        own_server.start()
        write_run(tmp_path / "run", rows=6)
        board.update(60)
        until(lambda: len(own_server.windows("run")) >= 5)
    assert shown(own_server)["kld"]["z_2"][0] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("login", [False, True])
def test_a_server_that_hangs_stops_neither_training_nor_its_end(
    own_server, tmp_path, capsys, quick, monkeypatch, login
):
    if login:  # visdom's request for the login has no limit of time
        monkeypatch.setenv("VISDOM_USERNAME", "me")
        monkeypatch.setenv("VISDOM_PASSWORD", "secret")
    own_server.process.send_signal(signal.SIGSTOP)
    write_run(tmp_path / "run")
    slowest = 0
    with (board := Dashboard(tmp_path / "run", "run", "127.0.0.1", own_server.port)):
        for i in range(100):
            began = time.time()
            board.update(50 + i, tmp_path / "run" / "50")
            slowest = max(slowest, time.time() - began)
            assert len(board.pending) <= 4
        until(lambda: board.up is False)
        time.sleep(1.5)  # more tries, which are not told
        assert said(capsys) == [f"no dashboard at {board.url}: no answer in 1 s; training goes on"]
        monkeypatch.setattr(dashboard, "TIMEOUT", (60, 60))
        time.sleep(1.5)  # now it is in a try that takes long
        began = time.time()
    assert time.time() - began < 4
    assert slowest < 0.5
    own_server.process.send_signal(signal.SIGCONT)


def test_a_server_that_hung_shows_the_newest_when_it_goes_on(own_server, tmp_path, capsys, quick):
    own_server.process.send_signal(signal.SIGSTOP)
    with (board := Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", own_server.port)):
        board.update(50)
        until(lambda: board.up is False)
        time.sleep(0.6)  # the next try has begun: what is new comes while it lasts
        write_run(tmp_path / "run", rows=6)
        board.update(60)
        until(lambda: "curves" in board.pending)
        time.sleep(1)
        own_server.process.send_signal(signal.SIGCONT)
        until(lambda: board.up)
    assert len(said(capsys)) == 2
    assert "60 of 100" in own_server.windows("run")["run"]["content"]
    assert shown(own_server)["recon"]["reconstruction"][0] == [10, 20, 30, 40, 50, 60]


def test_ctrl_c_ends_a_run_soon_though_the_server_hangs(own_server, runs):
    own_server.process.send_signal(signal.SIGSTOP)
    process = runs.start(
        "run",
        "--viz_on",
        True,
        "--viz_port",
        own_server.port,
        "--max_iter",
        10**6,
        "--save_step",
        10**6,
        "--display_step",
        10**6,
    )
    wait_for(runs.outputs("run") / "args.json", process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    began = time.time()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped at iteration" in output and "Traceback" not in output
    assert time.time() - began < 10


def fault(tmp_path, port, capsys):
    """The one line said of a server that is wrong in some way, in several tries."""
    with (board := Dashboard(write_run(tmp_path / "run"), "run", "127.0.0.1", port)):
        for i in range(3):
            board.update(50 + i)
            until(lambda: board.up is False)
            time.sleep(0.25)
    lines = said(capsys)
    assert (
        len(lines) == 1 and lines[0].startswith("no dashboard at") and lines[0].endswith("; training goes on")
    )
    return lines[0]


@pytest.mark.parametrize(
    "status, why", [(500, "HTTP 500"), (404, "HTTP 404"), (200, "something else than visdom")]
)
def test_a_server_with_errors_or_of_something_else_is_told_once(tmp_path, capsys, quick, status, why):
    with answering(status) as port:
        assert why in fault(tmp_path, port, capsys)


def test_a_port_where_no_HTTP_is_spoken_is_told_once(tmp_path, capsys, quick):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            for _ in range(20):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(10_000)
                connection.close()

        threading.Thread(target=greet, daemon=True).start()
        assert "no visdom server there" in fault(tmp_path, listener.getsockname()[1], capsys)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_wants_a_login_gets_it_from_the_environment(tmp_path, capsys, quick, monkeypatch):
    server = Server(tmp_path / "visdom", login=True)
    try:
        assert "VISDOM_USERNAME and VISDOM_PASSWORD" in fault(tmp_path, server.port, capsys)
        monkeypatch.setenv("VISDOM_USERNAME", "me")
        monkeypatch.setenv("VISDOM_PASSWORD", "wrong")
        assert "Authentication failed" in fault(tmp_path, server.port, capsys)
        monkeypatch.setenv("VISDOM_PASSWORD", "secret")
        with (board := Dashboard(tmp_path / "run", "run", "127.0.0.1", server.port)):
            board.update(50)
            until(lambda: board.up)
            server.kill()
            board.update(51)
            until(lambda: board.up is False)
            (server.folder / ".visdom" / "COOKIE_SECRET").unlink()  # when it is back, it wants a new login
            server.start()
            until(lambda: board.up)
        assert kinds(said(capsys)) == ["dashboard", "no dashboard", "dashboard"]
    finally:
        server.kill()


def test_sending_takes_under_one_percent_of_the_time_and_the_end_is_sent_at_once(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(dashboard, "connect", lambda *_: None)
    monkeypatch.setattr(dashboard, "show", lambda _, win, **window: (sent.append(win), time.sleep(0.01)))
    with (board := Dashboard(write_run(tmp_path, rows=9), "run")):
        for i in range(20):
            board.update(50 + i)
            time.sleep(0.05)
        assert sent.count("recon") == 1
        write_run(tmp_path, rows=10)
        board.update(100)
    assert sent.count("recon") == 2


def test_a_study_shows_its_picture_and_its_table(server, tmp_path):
    figures.study({"mig": {"beta=1": [0.1, 0.2], "beta=4": [0.3]}}, tmp_path / "summary.png")
    (tmp_path / "summary.md").write_text("| beta=1 | <2> |")
    board = Dashboard(tmp_path, "a study", port=server.port)
    assert board.send(jobs := {"study": lambda: dashboard.study(tmp_path, "a study")}) and not jobs
    windows = server.windows("a study")
    assert set(windows) == {"summary", "table"} and "| beta=1 | &lt;2&gt; |" in windows["table"]["content"]
    assert windows["summary"]["type"] == "image" and windows["summary"]["title"] == "a study"
