"""Shows a run on a visdom server, live or again. Knows arrays, tensors and paths, nothing of solvers or flags.

    python -m visdom.server                  # the server: http://localhost:8097
    python -m viz.dashboard outputs/NAME     # shows a finished or running run, from what is in its folder

Only this file knows visdom, and imports it when there is something to show. A server that wants a login
gets VISDOM_USERNAME and VISDOM_PASSWORD from the environment.
"""

import argparse
import base64
import html
import json
import logging
import math
import os
import re
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training.log import read_log
from utils import Parser, UserError, count, run_cli

POINTS = 1000  # of a curve, at most
LINES = 32  # latents in a window, those with the highest KL
SIZE = (500, 390)  # pixels of a pane: three side by side on a screen of 1600
TIMEOUT = (2, 10)  # seconds: to connect, and between two parts of an answer
RETRY = 30  # seconds from a failure to the next try
# times as long as a sending took, the next one waits: under 1 % of the time, however fast the run
REST = 100
FLUSH = 3  # seconds that the end of a run waits for what is not sent yet

# Window: title, what its y axis shows (with the unit), columns of log.csv and their names in the legend; what
# ends in _ stands for each latent.
CURVES = {
    "recon": ("Reconstruction loss", "nats an image", {"recon_loss": "reconstruction"}),
    "kld": ("KL from the prior", "nats", {"total_kld": "total", "mean_kld": "mean", "C": "C", "kld_": "z_"}),
    "mu": ("Posterior mean", "mean of \u03bc (prior: \u03c3 = 1)", {"mu_": "z_"}),
    "var": ("Posterior variance", "mean of \u03c3\u00b2 (prior: 1)", {"var_": "z_"}),
}
STYLES = {
    "reconstruction": ("000000", "solid"),
    "total": ("000000", "solid"),
    "mean": ("000000", "dot"),
    "C": ("c0c0c0", "dash"),  # C lies upon the total where training follows it
}
PALETTE = ["1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf"]
DASHES = ["solid", "dash", "dot", "dashdot"]  # of latents 0 to 9, 10 to 19 ..


# What the windows show. Each is a dict of arguments for show().


def finite(values):
    """Numbers, an array or a tensor, of any type, device and shape, as flat float64; NaN where not finite."""
    flat = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().reshape(-1).numpy()
    return np.where(np.isfinite(flat), flat, np.nan)  # an infinite value stops visdom's page for good


def thinned(length):
    """Which of so many points to show: POINTS of them, evenly, with both ends."""
    return np.unique(np.linspace(0, length - 1, min(length, POINTS)).round().astype(int))


def curves(log):
    """The windows of log.csv, given as {column: values}."""
    if not len(log["iter"]):
        return
    places = thinned(len(log["iter"]))
    log = {name: finite(values)[places] for name, values in log.items()}
    kld = {name[4:]: np.nan_to_num(values[-1]) for name, values in log.items() if name.startswith("kld_")}
    latents = sorted(sorted(kld, key=kld.get, reverse=True)[:LINES], key=int)
    for win, (title, unit, columns) in CURVES.items():
        lines = {
            name + j: log[column + j]
            for column, name in columns.items()
            for j in (latents if column.endswith("_") else [""])
            if column + j in log
        }
        if np.isnan(lines.get("C", 0)).all():  # objective H has none
            lines.pop("C", None)
        yield dict(win=win, title=title, x=log["iter"], lines=lines, unit=unit)


def pictures(folder):
    """The windows of the pictures of an iteration: folder is outputs/NAME/<iter>, or None."""
    for path in [folder / "reconstruction.png", *sorted(folder.glob("traverse_*.png"))] if folder else []:
        seed = path.stem.partition("_")[2]
        what, width = (f"Traversals from {seed}", SIZE[0] * 3 // 2) if seed else ("Reconstructions", SIZE[0])
        yield picture(path, f"{what}, iteration {int(folder.name):,}", width)


def picture(path, title, width):
    with Image.open(path) as image:
        height = round(width * image.height / image.width)
    # The page would cut off the last 45 pixels.
    return dict(win=path.stem, title=title, png=path.read_bytes(), size=(width, height + 45))


def study(folder, name):
    """The windows of a sweep: the picture and the table of all its runs."""
    yield picture(folder / "summary.png", name, 3 * SIZE[0])
    text = html.escape((folder / "summary.md").read_text(encoding="utf-8"))
    yield dict(
        win="table",
        title="Table",
        size=(3 * SIZE[0], SIZE[1]),
        html=f"<pre style='color: black; padding: 4px; font-size: 12px'>{text}</pre>",
    )


def newest(folder, name, iteration=math.inf):
    """The folder of the last iteration, up to that one, in which there is a file of that name; None without."""
    found = [path for path in folder.iterdir() if path.name.isdecimal() and (path / name).exists()]
    return max((p for p in found if int(p.name) <= iteration), key=lambda p: int(p.name), default=None)


def summary(folder, name, iteration=None, rate=None):
    """The window of words: how far the run is, its latest numbers and scores, its device and its flags."""
    about = json.loads((folder / "args.json").read_text())
    row = {column: values[-1] for column, values in log_of(folder).items() if len(values)}
    iteration = int(row.get("iter", 0)) if iteration is None else iteration
    end = about["arguments"]["max_iter"]
    words = {"iteration": f"{iteration:,} of {end:,} ({100 * iteration / end:.1f} %)"}
    if rate:
        minutes = max(end - iteration, 0) / rate / 60
        words["speed"] = f"{rate:.1f} it/s, {minutes // 60:.0f} h {minutes % 60:.0f} min left"
    if row:
        C = f", C {row['C']:.2f}" if row.get("C", math.nan) == row.get("C") else ""
        words["latest"] = f"reconstruction {row['recon_loss']:.1f}, KL {row['total_kld']:.2f}{C} nats"
    if scored := newest(folder, "metrics.json", iteration):
        scores = json.loads((scored / "metrics.json").read_text())
        words[f"scores at {int(scored.name):,}"] = ", ".join(
            f"{key} {value:.3g}" for key, value in scores.items() if isinstance(value, (int, float))
        )
    words["device"] = f"{about['device']}, {about['threads']} threads, {about['precision']}"
    words["flags"] = ", ".join(f"{key} {value}" for key, value in about["arguments"].items())
    words["sent"] = time.strftime("%Y-%m-%d %H:%M:%S")
    rows = "".join(
        f"<tr><td style='vertical-align: top; white-space: nowrap; padding-right: 8px'><b>{key}</b></td>"
        f"<td>{html.escape(value)}</td></tr>"
        for key, value in words.items()
    )
    return dict(
        win="run",
        title="Run",
        html="<div style='color: black; padding: 4px; font-size: 12px'>"
        f"<h4>{html.escape(name)}</h4><table>{rows}</table></div>",
    )


def log_of(folder):
    return read_log(folder / "log.csv") if (folder / "log.csv").exists() else {"iter": []}


# The server.


class ServerError(Exception):
    """Why the server did not take what was sent, in words."""


def connect(server, port, env):
    """A client of visdom each of whose calls either works, in bounded time, or raises."""
    import requests
    import visdom

    logging.getLogger("visdom").setLevel(logging.ERROR)  # it tells of each new session

    def ask(method, url, **data):
        try:
            reply = method(url, timeout=TIMEOUT, **data)
        except requests.Timeout:
            raise ServerError(f"no answer in {max(TIMEOUT)} s") from None
        except requests.RequestException:
            raise ServerError("no visdom server there, `python -m visdom.server` starts one") from None
        if reply.status_code in (400, 401, 403):
            raise ServerError(
                f"HTTP {reply.status_code}, are VISDOM_USERNAME and VISDOM_PASSWORD set for its login?"
            )
        if not reply.ok:
            raise ServerError(f"HTTP {reply.status_code}")
        return reply.text

    class Client(visdom.Visdom):
        def _handle_post(self, url, data=None):  # visdom's own has no limit of time, and looks at no status
            if self.username and not self._session:
                ask(requests.get, url.rpartition("/")[0])  # nor has its login, which follows: so is it alive?
            return ask(self.session.post, url, data=data)

    user, password = os.environ.get("VISDOM_USERNAME"), os.environ.get("VISDOM_PASSWORD")
    return Client(
        server=server,
        port=port,
        env=env,
        username=user,
        password=password or "-",
        raise_exceptions=True,
        use_incoming_socket=False,
    )


def environment(name):
    """The name of a run's environment: letters, digits and _.=- only, and short, as page and files of visdom need."""
    return re.sub(r"[^\w.=-]", "_", name).encode()[:200].decode(errors="ignore")


def show(client, win, title=None, size=SIZE, **content):
    """Sends a window whole: it takes the place of what was there under its name. Without a name: closes all."""
    opts = dict(title=title, width=size[0], height=size[1])
    if win is None:
        client.close()
    elif "html" in content:
        answer = client.text(content["html"], win=win, opts=opts)
    elif "png" in content:  # as it is: visdom's own call takes pixels, and codes them anew
        source = "data:image/png;base64," + base64.b64encode(content["png"]).decode()
        answer = client._send(
            {
                "win": win,
                "eid": client.env,
                "opts": opts,
                "data": [{"type": "image", "content": {"src": source, "caption": title}}],
            }
        )
    else:
        y = np.stack([finite(values) for values in content["lines"].values()], axis=1)  # points, lines
        answer = client.line(
            y, finite(content["x"]), win=win, opts={**opts, **line_options(title, **content)}
        )
    if win and answer != win:
        raise ServerError("something else than visdom answers")


def line_options(title, x, lines, unit):
    styles = [
        STYLES.get(name) or (PALETTE[int(name[2:]) % 10], DASHES[int(name[2:]) // 10 % 4]) for name in lines
    ]
    return dict(
        legend=list(lines),
        xlabel="iterations",
        ylabel=unit,
        markers=len(x) < 50,
        markersize=4,
        linecolor=np.array([list(bytes.fromhex(color)) for color, _ in styles]),
        dash=np.array([dash for _, dash in styles]),
        marginleft=60,
        marginright=10,
        margintop=35,
        marginbottom=45,
        # beside buttons
        layoutopts={"plotly": {"title": {"text": title, "x": 0.02, "font": {"size": 15}}}},
    )


class Dashboard:
    """Keeps the windows of a run on a visdom server up to date, from a thread of its own.

    Within `with`, update() notes what is new and returns at once; elsewhere it does nothing. What cannot be
    sent waits until the server is back, or gives way to what is newer.
    """

    def __init__(self, folder, name, server="localhost", port=8097):
        self.folder, self.name, self.server, self.port = Path(folder), name, server, port
        self.url = f"{server if '//' in server else f'http://{server}'}:{port}"
        self.client = self.thread = self.last = self.rate = self.up = None
        self.changed, self.closing = threading.Condition(), False
        self.pending = {}  # of each kind of window the newest: a function that makes them

    def __enter__(self):
        self.thread = threading.Thread(target=self.work, name="dashboard", daemon=True)
        self.thread.start()

    def __exit__(self, *error):
        """Waits for what is not sent yet, but not for long, and hardly for a server that is not there."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(1 if self.up is False else FLUSH)

    def update(self, iteration, folder=None):
        """Notes that the run is at iteration and has written to its log or, in folder, pictures."""
        if not self.thread:
            return
        now, jobs = time.monotonic(), {}
        if not self.last:
            # windows of an older run of this name go; the first call makes what they are in
            if iteration == 0:
                jobs["fresh"] = lambda: [summary(self.folder, self.name, 0), dict(win=None)]
            jobs["pictures"] = lambda: pictures(newest(self.folder, "reconstruction.png", iteration))
        elif iteration > self.last[0]:
            self.rate = (iteration - self.last[0]) / (now - self.last[1])
        if not self.last or iteration > self.last[0]:
            self.last = iteration, now
        with self.changed:
            self.pending.update(jobs, **self.jobs(folder, iteration))
            self.changed.notify()

    def jobs(self, folder, iteration=None):
        """Functions that make windows from the run's files, once there is time to send them."""
        return {
            "summary": lambda: [summary(self.folder, self.name, iteration, self.rate)],
            "curves": lambda: curves(log_of(self.folder)),
            **({"pictures": partial(pictures, folder)} if folder else {}),
        }

    def work(self):
        """The thread: sends what is pending, and rests."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.pending or self.closing)
                jobs, self.pending = self.pending, {}
            began = time.monotonic()
            if not self.send(jobs):
                return
            with self.changed:
                if self.closing and not self.pending:
                    return
                self.pending = {**jobs, **self.pending}
                rest = REST * (time.monotonic() - began) if self.up else RETRY
                self.changed.wait_for(lambda: self.closing, rest)

    def send(self, jobs):
        """Sends windows and takes from jobs what is sent; False if it never will be. Tells of a change in one line."""
        up, why = True, ""
        try:
            self.client = self.client or connect(self.server, self.port, environment(self.name))
            for kind in list(jobs):
                for window in jobs[kind]():
                    show(self.client, **window)
                del jobs[kind]
        except ImportError as error:
            tqdm.write(f"no dashboard: {error}; `pip install -r requirements.txt` brings what it needs")
            return False
        except Exception as error:  # whatever it is, training goes on
            up, why = False, str(error) or type(error).__name__
            # it is kept, as each has a thread that never ends (visdom 0.3.0), but not its login
            if self.client:
                self.client._session = None
        before, self.up = self.up, up
        if up and not before:
            tqdm.write(f"dashboard: {self.url}/env/{environment(self.name)}")
        elif not up and before is not False:
            tqdm.write(f"no dashboard at {self.url}: {why}{'; training goes on' if self.thread else ''}")
        return True


def main(argv=None):
    """Shows a run again; returns the exit status."""
    parser = Parser(
        prog="dashboard.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the run: outputs/NAME")
    parser.add_argument("--viz_server", default="localhost", help="host of the visdom server")
    parser.add_argument("--viz_port", type=count, default=8097, help="port of the visdom server")
    args = parser.parse_args(argv)
    if not (args.folder / "args.json").exists():
        parser.error(f"{args.folder} is no run's folder: it holds no args.json")

    def run():
        try:
            name = json.loads((args.folder / "args.json").read_text())["arguments"]["viz_name"]
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{args.folder / 'args.json'} is damaged, or not of a run") from None
        board = Dashboard(args.folder, name, args.viz_server, args.viz_port)
        board.send(jobs := board.jobs(newest(args.folder, "reconstruction.png")))
        return 1 if jobs else 0

    return run_cli("dashboard.py", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
