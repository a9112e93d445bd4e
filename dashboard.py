"""Shows a run on a visdom server, live or again. Knows arrays, tensors and paths, nothing of solvers or flags.

    python -m visdom.server                                      # once; then http://localhost:8097
    python dashboard.py outputs/NAME                             # shows that run, from what is in its folder

Only this file knows visdom, and imports it when there is something to show. VISDOM_USERNAME and
VISDOM_PASSWORD, if set, are given to a server that wants a login.
"""
import argparse
import base64
import functools
import html
import json
import logging
import math
import os
import re
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from utils import Parser, count, read_log

POINTS = 1000       # of a curve, at most
LINES = 32          # latents in a window, those of the highest KL
WIDTH = 520         # pixels of a pane: three side by side on a screen of 1600
TIMEOUT = (2, 10)   # seconds to connect, and between two bytes of an answer
RETRY = 30          # seconds from a failure to the next try
REST = 100          # times as long as sending took, nothing is sent: it costs 1 % of a core, however fast the run is
FLUSH = 5           # seconds that a run waits at its end for what is not sent yet

# Window: title, what its y axis shows and in which unit, columns of log.csv with their names in the legend.
# A name that ends in "_" stands for all latents.
CURVES = {
    "recon": ("Reconstruction loss", "nats an image", {"recon_loss": "reconstruction"}),
    "kld": ("KL of the posterior from the prior", "nats",
            {"total_kld": "total", "mean_kld": "mean", "C": "C", "kld_": "z_"}),
    "mu": ("Posterior mean", "mean of \u03bc (prior: \u03c3 = 1)", {"mu_": "z_"}),
    "var": ("Posterior variance", "mean of \u03c3\u00b2 (prior: 1)", {"var_": "z_"}),
}
PALETTE = ["1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf"]
DASHES = ["solid", "dash", "dot", "dashdot"]  # of latents 0-9, 10-19 ..
STYLES = {"reconstruction": ("000000", "solid"), "total": ("000000", "solid"), "mean": ("000000", "dot"),
          "C": ("000000", "dash")}


class ServerError(Exception):
    """Why the server did not take what was sent, in words."""


# What the windows show. Each is a dict for show(): win, title, size, and lines, html or png.

def finite(values):
    """Numbers, an array or a tensor of any type, device and shape, as a flat float64 array; NaN where not finite."""
    flat = torch.as_tensor(values).detach().to("cpu", torch.float64).reshape(-1).numpy()
    return np.where(np.isfinite(flat), flat, np.nan)


def thinned(length, most=POINTS):
    """Which of so many points to show, evenly, with both ends."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))


def curves(folder):
    """The windows of log.csv, of all its rows or as many as are needed to see them."""
    path = folder / "log.csv"
    log = read_log(path) if path.exists() else {"iter": []}
    if not log["iter"]:
        return
    places = thinned(len(log["iter"]))
    log = {name: finite(np.asarray(values)[places]) for name, values in log.items()}
    kld = {name[4:]: values[-1] for name, values in log.items() if name.startswith("kld_")}
    latents = sorted(sorted(kld, key=lambda j: -np.nan_to_num(kld[j]))[:LINES], key=int)
    for win, (title, unit, columns) in CURVES.items():
        lines = {}
        for column, name in columns.items():
            for j in latents if column.endswith("_") else [""]:
                lines[name + j] = log[column + j]
        if np.isnan(lines.get("C", 0)).all():  # objective H has no C
            lines.pop("C", None)
        yield dict(win=win, title=title, size=(WIDTH, 360), x=log["iter"], lines=lines, unit=unit)


def pictures(folder):
    """The windows of the pictures in the folder of an iteration."""
    for path in [folder / "reconstruction.png", *sorted(folder.glob("traverse_*.png"))]:
        seed = path.stem.partition("_")[2]
        what = f"Traversals from {seed}" if seed else "Reconstructions"
        caption = f"{what}, iteration {int(folder.name):,}"
        with Image.open(path) as image:
            width = WIDTH * 3 // 2 if seed else WIDTH
            size = width, round(width * image.height / image.width)
        yield dict(win=path.stem, title=caption, size=size, png=path.read_bytes())


def newest(folder, name, iteration=math.inf):
    """The folder of the latest iteration, up to that one, that holds a file of that name; None without."""
    found = [path for path in folder.iterdir() if path.name.isdecimal() and (path / name).exists()]
    return max((path for path in found if int(path.name) <= iteration), key=lambda p: int(p.name), default=None)


def summary(folder, name, iteration=None, rate=None):
    """The window of words: how far the run is, its latest numbers and scores, its device and its flags."""
    path = folder / "args.json"
    about = json.loads(path.read_text()) if path.exists() else {}
    flags = about.get("arguments", {})
    path = folder / "log.csv"
    row = {column: values[-1] for column, values in read_log(path).items() if values} if path.exists() else {}
    iteration = int(row.get("iter", 0) if iteration is None else iteration)
    end = flags.get("max_iter") or iteration
    lines = [("iteration", f"{iteration:,} of {end:,} ({100 * iteration / max(end, 1):.1f} %)")]
    if rate:
        left = (end - iteration) / rate
        lines += [("speed", f"{rate:.1f} it/s, {left // 3600:.0f} h {left % 3600 / 60:.0f} min left")]
    if row:
        lines += [("latest row", f"reconstruction {row['recon_loss']:.1f}, KL {row['total_kld']:.2f}"
                   + (f", C {row['C']:.2f}" if row["C"] == row["C"] else "") + " nats")]
    if scored := newest(folder, "metrics.json"):
        scores = json.loads((scored / "metrics.json").read_text())
        lines += [(f"scores at {int(scored.name):,}", ", ".join(
            f"{key} {value:.3g}" for key, value in scores.items() if isinstance(value, (int, float))))]
    lines += [("device", f"{about.get('device')}, {about.get('threads')} threads, {about.get('precision')}"),
              ("flags", ", ".join(f"{key} {value}" for key, value in flags.items())),
              ("sent", time.strftime("%Y-%m-%d %H:%M:%S"))]
    rows = "".join(f"<tr><td style='vertical-align: top; padding-right: 8px; white-space: nowrap'><b>{html.escape(key)}</b></td>"
                   f"<td>{html.escape(value)}</td></tr>" for key, value in lines)
    return dict(win="run", title="Run", size=(WIDTH, 360),
                html=f"<h4 style='margin: 4px 0'>{html.escape(name)}</h4><table style='font-size: 12px'>{rows}</table>")


# The server.

def environment(name):
    """The name of a run's environment on the server: the page and the files of visdom cannot take each character."""
    return re.sub(r"[^\w.=-]", "_", name).encode()[:200].decode(errors="ignore")


def connect(server, port, env):
    """A visdom client whose every call either works, in a bounded time, or raises."""
    import requests
    import visdom
    logging.getLogger("visdom").setLevel(logging.ERROR)  # it tells of each new session

    class Client(visdom.Visdom):
        def _handle_post(self, url, data=None):  # visdom waits for ever, and looks at no status
            try:
                reply = self.session.post(url, data=data or {}, timeout=TIMEOUT)
            except requests.Timeout:
                raise ServerError(f"no answer in {TIMEOUT[1]} s") from None
            except requests.RequestException:
                raise ServerError("no connection") from None
            if not reply.ok:
                login = ": does it want VISDOM_USERNAME and VISDOM_PASSWORD?" if 400 <= reply.status_code < 404 else ""
                raise ServerError(f"HTTP status {reply.status_code}{login}")
            return reply.text

    user, password = (os.environ.get(f"VISDOM_{what}") for what in ("USERNAME", "PASSWORD"))
    if user:  # visdom's own request for the login has no limit of time: ask first whether the server answers
        try:
            requests.get(f"{address(server, port)}/", timeout=TIMEOUT)
        except requests.RequestException:
            raise ServerError("no connection") from None
    return Client(server=server, port=port, env=env, use_incoming_socket=False, raise_exceptions=True,
                  username=user, password=password)


def address(server, port):
    return f"{server if '//' in server else f'http://{server}'}:{port}"


def show(client, win, title, size, **content):
    """Sends a window whole: what was there under its name is replaced, in its place."""
    opts = dict(title=title, width=size[0], height=size[1])
    if "html" in content:
        answer = client.text(content["html"], win=win, opts=opts)
    elif "png" in content:  # as it is: visdom's own call takes pixels, and codes them anew
        source = "data:image/png;base64," + base64.b64encode(content["png"]).decode()
        picture = {"type": "image", "content": {"src": source, "caption": title}}
        opts["height"] += 45  # the bar, and what the page would cut off
        answer = client._send({"data": [picture], "win": win, "eid": client.env, "opts": opts})
    else:
        answer = client.line(np.stack([finite(y) for y in content["lines"].values()], axis=1),
                             finite(content["x"]), win=win, opts={**opts, **line_options(**content)})
    if answer != win:  # visdom's answer is the window's name
        raise ServerError("something else than visdom answers")


def line_options(x, lines, unit):
    styles = [STYLES.get(name) or (PALETTE[int(name[2:]) % 10], DASHES[int(name[2:]) // 10 % 4]) for name in lines]
    return dict(legend=list(lines), xlabel="iterations", ylabel=unit, markers=len(x) < 50, markersize=4,
                linecolor=np.array([[int(color[i:i + 2], 16) for i in (0, 2, 4)] for color, _ in styles]),
                dash=np.array([dash for _, dash in styles]),
                marginleft=60, marginright=10, margintop=35, marginbottom=45)


class Dashboard:
    """Keeps the windows of a run on a visdom server as new as they can be, from a thread of its own.

    Within `with`, update() notes what is new and returns at once; outside of it, it does nothing. What
    could not be sent gives way to what is newer, or is sent when the server is back.
    """

    def __init__(self, folder, name, server="localhost", port=8097):
        self.folder, self.name, self.server, self.port = Path(folder), name, server, port
        self.env = environment(name)
        self.client = self.thread = self.last = self.rate = self.up = None
        self.changed, self.closing = threading.Condition(), False
        self.pending = {}  # the newest of each kind: function that makes its windows

    def __enter__(self):
        self.thread = threading.Thread(target=self.work, daemon=True, name="dashboard")
        self.thread.start()
        return self

    def __exit__(self, error, *_):
        """Waits for what is not sent yet, but not for long, and not at all for a server that is not there."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(0 if error is KeyboardInterrupt else FLUSH if self.up else 1)

    def update(self, iteration, folder=None):
        """Notes that the run is at iteration and has written its log, or, in folder, pictures."""
        if not self.thread:
            return
        now = time.monotonic()
        if not self.last:  # a run that goes on has pictures
            folder = folder or newest(self.folder, "reconstruction.png", iteration)
        if self.last and iteration > self.last[0]:
            self.rate = (iteration - self.last[0]) / (now - self.last[1])
        if not self.last or iteration > self.last[0]:
            self.last = iteration, now
        with self.changed:
            self.pending |= self.kinds(iteration, folder)
            self.changed.notify()

    def kinds(self, iteration=None, folder=None):
        """Functions that read the run's files, when there is time to send them, and make windows."""
        jobs = {"summary": lambda: [summary(self.folder, self.name, iteration, self.rate)],
                "curves": functools.partial(curves, self.folder)}
        return {**jobs, "pictures": functools.partial(pictures, folder)} if folder else jobs

    def work(self):
        """What the thread does: sends what is pending, then rests."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.pending or self.closing)
                jobs, self.pending = self.pending, {}
            began = time.monotonic()
            try:
                self.send(jobs)
            except ImportError as error:
                self.say(f"no dashboard, {error}: `pip install -r requirements.txt` brings it; training goes on")
                return
            with self.changed:
                if self.closing and not self.pending:
                    return
                self.pending = {**jobs, **self.pending}
                rest = REST * (time.monotonic() - began) if self.up else RETRY
                self.changed.wait_for(lambda: self.closing, timeout=rest)

    def send(self, jobs):
        """Sends windows, and takes each kind that is sent from jobs; tells when the server goes or is back."""
        try:
            self.client = self.client or connect(self.server, self.port, self.env)
            for kind in list(jobs):
                for window in jobs[kind]():
                    show(self.client, **window)
                del jobs[kind]
        except ImportError:
            raise
        except Exception as error:  # whatever it is, it must not end the thread, nor training
            self.client = None
            self.tell(False, str(error) or type(error).__name__)
        else:
            self.tell(True)

    def tell(self, up, why=""):
        """Says so in one line if the server was not so before."""
        before, self.up = self.up, up
        where = address(self.server, self.port)
        if up and not before:
            self.say(f"dashboard: {where}/env/{self.env}")
        elif not up and before is None:
            self.say(f"no dashboard at {where} ({why}): `python -m visdom.server` starts one; training goes on")
        elif not up and before:
            self.say(f"the dashboard at {where} is gone ({why}); training goes on, and the dashboard when it is back")

    def say(self, line):
        tqdm.write(line)  # keeps the progress bar whole


def main(argv=None):
    """Shows a run again; returns the exit status."""
    parser = Parser(prog="dashboard.py", description=__doc__.split("\n")[0], allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the run: outputs/NAME")
    parser.add_argument("--viz_server", default="localhost", help="host of the visdom server")
    parser.add_argument("--viz_port", type=count, default=8097, help="port of the visdom server")
    args = parser.parse_args(argv)
    if not (args.folder / "args.json").exists():
        parser.error(f"{args.folder} is no folder of a run: it has no args.json")
    name = json.loads((args.folder / "args.json").read_text())["arguments"]["viz_name"]
    board = Dashboard(args.folder, name, args.viz_server, args.viz_port)
    board.send(jobs := board.kinds(folder=newest(args.folder, "reconstruction.png")))
    return 1 if jobs else 0


if __name__ == "__main__":
    sys.exit(main())
