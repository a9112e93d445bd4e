"""The dashboard on a real visdom server: what Chromium shows, and that nothing harms training."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from PIL import Image

from browser import chromium, unavailable, wait
from helpers import assert_same_run
from run.log import read_log
from viz import dashboard
from viz.dashboard import Dashboard

WINDOWS = {"recon", "kld", "mu", "var", "reconstruction", "traverse"}


class Server:
    """A visdom server on this machine with a port, a home and a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / ".visdom").mkdir(parents=True)
        (folder / "torch.py").write_text("raise ImportError")  # visdom does without, and starts much faster

    def start(self):
        # What `python -m visdom.server` runs once it has the files that only a browser needs.
        command = [sys.executable, "-c", "from visdom.server.run_server import main; main()"]
        command += ["-port", str(self.port), "-bind_local", "-env_path", str(self.folder / "envs")]
        env = {**os.environ, "HOME": str(self.folder), "PYTHONPATH": str(self.folder)}
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: self.process.poll() is not None or self.answers())
        if self.process.poll() is not None:
            unavailable("visdom's server does not start")

    def answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()  # also ends it while it is stopped
        self.process.wait()

    def windows(self, env="run"):
        """{window: what the server holds of it} of an environment."""
        url = f"http://127.0.0.1:{self.port}/win_data"
        return json.loads(requests.post(url, timeout=60, json={"eid": env, "win": None}).text)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "visdom")
    server.start()
    yield server
    server.kill()


def write_run(folder, rows=5, iteration=50, **changed):
    """A run's folder without its training; changed: columns of its log, lists of numbers."""
    columns = "recon_loss total_kld C kld_0 kld_1 kld_2 mu_0 mu_1 mu_2 var_0 var_1 var_2".split()
    log = {"iter": [10 * (i + 1) for i in range(rows)]}
    log |= {column: [k + i / 7 for i in range(rows)] for k, column in enumerate(columns)} | changed
    (folder / str(iteration)).mkdir(parents=True, exist_ok=True)
    lines = [log, *zip(*log.values())]
    (folder / "log.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    for picture in ("traverse", "reconstruction"):
        Image.new("RGB", (300, 200), (iteration, 0, 0)).save(folder / str(iteration) / f"{picture}.png")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A dashboard that sends again soon."""
    monkeypatch.setattr(dashboard, "INTERVAL", 0.2)
    monkeypatch.setattr(dashboard, "TIMEOUT", (1, 1))


@pytest.fixture
def printed(capsys):
    """Call it for the lines printed since the last call."""
    return lambda: "".join(capsys.readouterr()).splitlines()


def until(true):
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# Iterations of each plot whose lines are drawn and width of each picture, by title, once all of them are there.
SHOWN = """
const panes = [...document.querySelectorAll('.window')].map(w => {
  const plot = w.querySelector('.js-plotly-plot'), img = w.querySelector('img.content-image');
  const shown = plot ? plot.querySelector('path.js-line') && plot.data[0].x : img && img.naturalWidth;
  return [w.querySelector('.bar > div.pull-right').textContent, shown];
});
return panes.length === 6 && panes.every(([title, shown]) => shown) && Object.fromEntries(panes);"""


@pytest.mark.browser
def test_the_page_is_whole_once_the_server_comes_and_again_after_one_was_killed_and_came_back_empty(
    server, tmp_path, printed, quick
):
    server.kill()
    folder = write_run(tmp_path / "run", rows=5, iteration=50)
    with chromium() as page, Dashboard(folder, "run/a b", port=server.port) as board:
        for rows in (6, 7):
            board.update()
            until(lambda: board.up is False)
            server.start()
            until(lambda: board.up)
            page.get("about:blank")
            page.get(board.url)
            shown = wait(page, SHOWN)
            assert shown["Reconstruction loss"] == list(range(10, 10 * rows, 10))
            assert shown[f"Traversals, iteration {10 * rows - 10}"] == 300

            # What is new comes in place, without loading the page again.
            write_run(folder, rows, 10 * rows)
            board.update()
            until(lambda: f"Traversals, iteration {10 * rows}" in wait(page, SHOWN))
            assert wait(page, SHOWN)["Reconstruction loss"][-1] == 10 * rows
            server.kill()
    starts = [line[:9] for line in printed()]
    assert starts == 2 * ["no dashbo", "dashboard"] + ["no dashbo"]  # the last: the end of the run


def test_active_latents_have_a_line_each_by_kl_in_one_colour_and_what_an_objective_lacks_has_none(tmp_path):
    for kld_1, order in ((0.5, ["z_2", "z_0", "z_1"]), (9, ["z_1", "z_2", "z_0"]), (0.001, ["z_2", "z_0"])):
        folder = write_run(tmp_path, C=[np.nan] * 5, kld_1=[1, 1, 1, 1, kld_1])
        log = read_log(folder / "log.csv")
        windows = {window["win"]: window for window in dashboard.curves(log)}
        assert windows["kld"]["opts"]["legend"] == ["total", *order]
        assert windows["var"]["Y"].T.tolist() == [log[name.replace("z", "var")] for name in order]
        for win in ("kld", "mu", "var"):
            lines = windows[win]["opts"]["traceopts"]["plotly"]
            assert lines["z_0"]["line"] == {"color": "#1f77b4", "dash": "solid"}
    assert windows["mu"]["opts"]["xlabel"].endswith("1 latent under 0.1 nats not shown")


def test_a_folder_is_shown_and_what_is_not_finite_is_a_gap(server, tmp_path, printed):
    folder = write_run(tmp_path / "a b", kld_1=[1, np.inf, np.nan, -np.inf, 3])
    command = [str(folder), "--viz_port", str(server.port)]
    assert dashboard.main(command) == 0
    assert printed() == [f"dashboard: http://localhost:{server.port}/env/a_b"]
    windows = server.windows("a_b")
    assert set(windows) == WINDOWS
    lines = {line["name"]: line["y"] for line in windows["kld"]["content"]["data"]}
    assert lines["z_1"] == [1, None, None, None, 3]

    server.kill()
    assert dashboard.main(command) == dashboard.main([str(tmp_path)]) == 1
    no_server, no_run = printed()
    assert no_server.startswith("no dashboard at http://localhost") and "python -m visdom.server" in no_server
    assert f"{tmp_path} has no log.csv" in no_run


def test_without_visdom_or_with_something_else_for_a_server_one_line_says_so(tmp_path, monkeypatch, printed):
    board = Dashboard(write_run(tmp_path), "run")
    monkeypatch.setitem(sys.modules, "visdom", None)
    assert not board.show()
    board.up, board.client = None, SimpleNamespace(line=lambda **window: "<html> 403")
    assert not board.show()
    no_visdom, no_server = printed()
    assert "visdom" in no_visdom.split("):")[1] and "something else answers" in no_server


@pytest.mark.slow
def test_training_is_the_same_to_the_byte_with_and_without_a_dashboard(runs, server):
    flags = ["--max_iter", 10, "--gather_step", 5, "--display_step", 10]
    done = runs.run("with", *flags, "--viz_on", True, "--viz_port", server.port)
    runs.run("without", *flags)
    assert done.stdout.count("dashboard: ") == 1 and set(server.windows("with")) == WINDOWS
    assert_same_run(runs, "with", "without")


def test_a_server_that_hangs_stops_neither_training_nor_its_end_and_shows_the_newest_when_it_goes_on(
    server, tmp_path, printed, quick, monkeypatch
):
    server.process.send_signal(signal.SIGSTOP)
    folder = write_run(tmp_path / "run")
    with Dashboard(folder, "run", port=server.port) as board:
        board.update()
        until(lambda: board.up is False)
        write_run(folder, rows=6)
        board.update()
        server.process.send_signal(signal.SIGCONT)
        until(lambda: board.up)
        assert server.windows()["recon"]["content"]["data"][0]["x"] == [10, 20, 30, 40, 50, 60]
        server.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(dashboard, "TIMEOUT", (300, 300))
        monkeypatch.setattr(dashboard, "FLUSH", 0.1)
    assert board.thread.is_alive()  # the run has ended, the thread still waits
    server.process.send_signal(signal.SIGCONT)
    board.thread.join()
    assert [line.split(":")[0] for line in printed()] == ["no dashboard at http", "dashboard"]
