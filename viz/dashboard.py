"""Shows a run on a visdom server, live or again. Knows arrays, tensors and paths, nothing of solvers or flags.

    python -m viz.dashboard --server         # a visdom server for this machine: http://localhost:8097
    python -m viz.dashboard outputs/NAME     # shows a finished or running run, from what is in its folder

Each window is sent whole, as JSON in the form that visdom's own client uses. A server that wants a login gets
VISDOM_USERNAME and VISDOM_PASSWORD from the environment.
"""

import argparse
import base64
import contextlib
import hashlib
import html
import io
import json
import logging
import math
import os
import re
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.log import read_log
from utils import Parser, UserError, count, run_cli
from viz.pictures import active, not_shown

INTERVAL = 5  # seconds between two sendings, or two tries
TIMEOUT = (2, 10)  # seconds: to connect, and between two parts of an answer
FLUSH = 3  # seconds that the end of a run waits for what is not sent yet
SIZE = (500, 390)  # pixels of a pane: three side by side on a screen of 1600
TEXT = "color: black; padding: 4px; font-size: 12px"

# Window: title, what its y axis shows (with the unit), columns of log.csv and their names in the legend; what
# ends in _ stands for each active latent.
NATS = "nats per image"
TOTALS = {"total_kld": "total", "mean_kld": "mean", "C": "C", "kld_": "z_"}
CURVES = {
    "recon": ("Reconstruction loss", NATS, {"recon_loss": "reconstruction"}),
    "kld": ("KL from the prior", NATS, TOTALS),
    "mu": ("Posterior mean", "mean of \u03bc (prior: \u03c3 = 1)", {"mu_": "z_"}),
    "var": ("Posterior variance", "mean of \u03c3\u00b2 (prior: 1)", {"var_": "z_"}),
}
PALETTE = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
DASHES = ["solid", "dash", "dot", "dashdot"]  # of latents 0 to 9, 10 to 19 ..
STYLES = {"mean": ("#000000", "dot"), "C": ("#c0c0c0", "dash")}  # C lies upon the total that follows it


# What the windows show. Each is a dict that visdom's /events takes, without the environment.


def window(win, title, kind, content, size=SIZE):
    options = dict(title=title, width=size[0], height=size[1])
    return dict(win=win, opts=options, data=[{"type": kind, "content": content}])


def curves(log):
    """The windows of log.csv, given as {column: values}."""
    if not log["iter"]:
        return
    kld = {name[4:]: values[-1] for name, values in log.items() if name.startswith("kld_")}
    latents = [list(kld)[place] for place in sorted(active(list(kld.values())))] if kld else []
    for win, (title, unit, columns) in CURVES.items():
        lines = {
            name + j: log[column + j]
            for column, name in columns.items()
            for j in (latents if column.endswith("_") else [""])
            if not np.isnan(log.get(column + j, math.nan)).all()  # objective H has no C
        }
        words = "" if win == "recon" else not_shown(list(kld.values()))
        yield plot(win, title, f"iterations      {words}".strip(), unit, log["iter"], lines)


def plot(win, title, xlabel, ylabel, x, lines):
    """A window of lines {name: values} over x; what is not finite is a gap."""
    data = []
    for name, y in lines.items():
        color, dash = STYLES.get(name, ("#000000", "solid"))
        if name.startswith("z_"):
            color, dash = PALETTE[int(name[2:]) % 10], DASHES[int(name[2:]) // 10 % 4]
        mode = "lines+markers" if len(x) < 50 else "lines"
        y = [value if math.isfinite(value) else None for value in y]  # JSON has no infinity
        style = dict(line=dict(color=color, dash=dash), marker=dict(size=4), mode=mode)
        data.append(dict(type="scatter", name=name, x=x, y=y, **style))
    layout = dict(xaxis=dict(title=xlabel), yaxis=dict(title=ylabel), margin=dict(l=60, r=10, t=35, b=45))
    layout |= dict(title=dict(text=title, x=0.02, font=dict(size=15)), showlegend=True)  # beside buttons
    return dict(win=win, data=data, layout=layout, opts=dict(title=title, width=SIZE[0], height=SIZE[1]))


def pictures(folder):
    """The windows of the pictures of an iteration: folder is outputs/NAME/<iter>, or None."""
    for name, title, panes in (("traverse", "Traversals", 2), ("reconstruction", "Reconstructions", 1)):
        if folder and (path := folder / f"{name}.png").exists():
            yield picture(path, f"{title}, iteration {int(folder.name):,}", panes * SIZE[0])


def picture(path, title, width):
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        height = round(width * image.height / image.width)
    content = dict(src=f"data:image/png;base64,{base64.b64encode(png).decode()}", caption=title)
    size = width, height + 45  # the page would cut off the last 45 pixels
    return window(path.stem, title, "image", content, size)


def study(folder, name):
    """The windows of a sweep: the picture and the table of all its runs."""
    yield picture(folder / "summary.png", name, 3 * SIZE[0])
    text = html.escape((folder / "summary.md").read_text(encoding="utf-8"))
    yield window("table", "Table", "text", f"<pre style='{TEXT}'>{text}</pre>", (3 * SIZE[0], SIZE[1]))


def newest(folder, name, iteration=None):
    """The folder of the last iteration, up to that one, in which there is a file of that name; None without."""
    last = math.inf if iteration is None else iteration
    found = [int(path.parent.name) for path in folder.glob(f"*/{name}") if path.parent.name.isdecimal()]
    newest = max((each for each in found if each <= last), default=None)
    return None if newest is None else folder / str(newest)


def summary(folder, name, log, iteration=None, rate=None):
    """The window of words: how far the run is, its latest numbers and scores, its device and its flags."""
    about = json.loads((folder / "args.json").read_text())
    row = {column: values[-1] for column, values in log.items() if len(values)}
    iteration = int(row.get("iter", 0)) if iteration is None else iteration
    end = about["arguments"]["max_iter"]
    words = {"iteration": f"{iteration:,} of {end:,} ({100 * iteration / end:.1f} %)"}
    if rate:
        minutes = max(end - iteration, 0) / rate / 60
        words["speed"] = f"{rate:.1f} it/s, {minutes // 60:.0f} h {minutes % 60:.0f} min left"
    if row:
        C = f", C {row['C']:.2f}" if math.isfinite(row.get("C", math.nan)) else ""
        latest = f"reconstruction {row['recon_loss']:.1f}, KL {row['total_kld']:.2f}{C}"
        words["latest"] = f"{latest} nats per image"
    if scored := newest(folder, "metrics.json", iteration):
        scores = json.loads((scored / "metrics.json").read_text())
        numbers = {key: value for key, value in scores.items() if isinstance(value, (int, float))}
        words[f"scores at {int(scored.name):,}"] = ", ".join(f"{key} {n:.3g}" for key, n in numbers.items())
    words["device"] = f"{about['device']}, {about['threads']} threads, {about['precision']}"
    words["flags"] = ", ".join(f"{key} {value}" for key, value in about["arguments"].items())
    words["sent"] = time.strftime("%Y-%m-%d %H:%M:%S")
    style = "vertical-align: top; white-space: nowrap; padding-right: 8px"
    row = "<tr><td style='{}'><b>{}</b></td><td>{}</td></tr>"
    rows = "".join(row.format(style, key, html.escape(value)) for key, value in words.items())
    text = f"<div style='{TEXT}'><h4>{html.escape(name)}</h4><table>{rows}</table></div>"
    return window("run", "Run", "text", text)


# The server.


def address(server, port):
    """The URL of a server that was given as host, host:port or URL; a port in it counts more than port."""
    if server.count(":") > 1 and "//" not in server and "[" not in server:
        server = f"[{server}]"  # IPv6
    try:
        parts = urlsplit(server if "//" in server else f"http://{server}")
        host, port = parts.hostname, parts.port or port
    except ValueError:
        host = None
    if not host:
        raise UserError(f"{server!r} is no address of a visdom server: give a host or http://HOST:PORT")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def environment(name):
    """The name of a run's environment: letters, digits and _.=- only, and short, as page and files of visdom need.

    A name that has to be changed for that gets a check sum, so that no two runs share an environment.
    """
    fit = re.sub(r"[^\w.=-]", "_", name).encode()[:180].decode(errors="ignore")
    return fit if fit == name else f"{fit}-{zlib.crc32(name.encode()):08x}"


class Server:
    """One environment of a visdom server; each call works, in bounded time, or raises UserError."""

    def __init__(self, url, env):
        self.url, self.env, self.session = url, env, None

    def open_session(self):
        import requests  # comes with visdom

        self.session = requests.Session()
        host = urlsplit(self.url).hostname  # no proxy stands between a machine and itself
        self.session.trust_env = not (host in ("localhost", "::1") or host.startswith("127."))
        if user := os.environ.get("VISDOM_USERNAME"):
            password = hashlib.sha256(os.environ.get("VISDOM_PASSWORD", "").encode()).hexdigest()
            self.ask("", dict(username=user, password=password))

    def ask(self, endpoint, message):
        """Sends a message; returns the text of the answer."""
        import requests

        if not self.session:
            self.open_session()
        try:
            reply = self.session.post(f"{self.url}/{endpoint}", json=message, timeout=TIMEOUT)
        except requests.Timeout:
            raise UserError(f"no answer in {max(TIMEOUT)} s") from None
        except requests.RequestException:
            raise UserError("no visdom server there: start `python -m viz.dashboard --server`") from None
        if reply.ok:
            return reply.text
        why = "is it visdom's, or a proxy's?"
        if reply.status_code in (400, 401, 403) and "Tornado" in reply.headers.get("Server", ""):
            why = "are VISDOM_USERNAME and VISDOM_PASSWORD right for its login?"
        raise UserError(f"HTTP {reply.status_code}, {why}")

    def show(self, window):
        """Puts a window in place of what was there under its name."""
        if self.ask("events", {"eid": self.env, **window}) != window["win"]:
            raise UserError("something else than visdom answers")

    def list_runs(self):
        """Lists all environments in "main", which visdom shows first."""
        path = urlsplit(self.url).path
        links = "".join(
            f"<li><a href='{path}/env/{quote(name)}'>{html.escape(name)}</a></li>"
            for name in sorted(json.loads(self.ask("env_state", {})))
            if name != "main" and "/" not in name
        )
        text = f"<div style='{TEXT}'><h4>Runs</h4><ul>{links}</ul></div>"
        self.show(window("runs", "Runs", "text", text) | {"eid": "main"})


class Dashboard:
    """Keeps the windows of a run on a visdom server up to date, from a thread of its own.

    Within `with`, update() notes what is new and returns at once; elsewhere it does nothing. What cannot be sent is
    tried again, as it is then.
    """

    def __init__(self, folder, name, server="localhost", port=8097):
        self.folder, self.name = Path(folder), name
        self.server = Server(address(server, port), environment(name))
        self.thread = self.up = self.shown = None  # shown: the folder of the pictures there
        self.changed, self.news, self.closing = threading.Condition(), False, False
        self.iteration = self.began = self.rate = None
        self.fresh = False

    def __enter__(self):
        self.thread = threading.Thread(target=self.work, name="dashboard", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        """Waits for what is not sent yet, but not for long."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(FLUSH)

    def update(self, iteration):
        """Notes that the run is at iteration and has written to its log or drawn pictures."""
        if not self.thread:
            return
        with self.changed:
            now = time.monotonic()
            if self.began is None:
                self.began, self.fresh = (iteration, now), iteration == 0
            elif iteration > self.began[0]:
                self.rate = (iteration - self.began[0]) / (now - self.began[1])
            self.iteration, self.news = iteration, True
            self.changed.notify()

    def work(self):
        """The thread: sends what is new, and rests."""
        closing = False
        while not closing:
            with self.changed:
                self.changed.wait_for(lambda: self.news or self.closing)
                news, self.news, closing = self.news, False, self.closing
            sent = not news or self.send(self.windows())
            with self.changed:
                self.news |= not sent
                self.changed.wait_for(lambda: self.closing, INTERVAL)

    def windows(self):
        """What a run's folder holds: words, curves, and pictures that are not shown yet."""
        path = self.folder / "log.csv"
        log = read_log(path) if path.exists() else {"iter": []}
        if self.fresh:  # windows of an older run of this name go
            self.server.ask(f"env/{self.server.env}", {"eid": self.server.env})
            self.server.ask("close", {"eid": self.server.env, "win": None})
            self.fresh = False
        yield summary(self.folder, self.name, log, self.iteration, self.rate)
        yield from curves(log)
        folder = newest(self.folder, "reconstruction.png", self.iteration)
        if folder != self.shown:
            yield from pictures(folder)
            self.shown = folder

    def send(self, windows):
        """Sends windows; returns whether all are there. Tells of a change in one line."""
        why = None
        try:
            for each in windows:
                self.server.show(each)
            self.server.list_runs()
        except (UserError, OSError, ImportError) as error:
            why = str(error)
            self.server.session = self.shown = None  # what comes back may have lost them
        before, self.up = self.up, why is None
        if self.up and not before:
            tqdm.write(f"dashboard: {self.server.url}/env/{self.server.env}")
        elif not self.up and before is not False:
            goes_on = "; training goes on" if self.thread else ""
            tqdm.write(f"no dashboard at {self.server.url}: {why}{goes_on}")
        return self.up


# The program.


def serve(port):
    """Runs a visdom server for this machine; with browser files that were fetched before, no network is needed."""
    try:
        from tornado import autoreload
        from visdom.server import build, run_server
    except ImportError:
        raise UserError("visdom is not installed here: pip install -r requirements.txt") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            logging.disable()  # a line for each of thirty files
            build.download_scripts()
    except OSError:
        static = Path(build.__file__).parents[1] / "static"
        raise UserError(
            "visdom's server fetches its browser files (10 MB) when it is first started, and cannot: start it once where "
            f"there is internet, then copy {static} from there to here"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    # A changed file would restart the server, which would lose all that it shows.
    autoreload.start = lambda: None
    sys.argv[1:] = ["-port", str(port), "-bind_local", "-logging_level", "ERROR"]
    line = f"visdom: http://localhost:{port}, Ctrl-C ends it"
    run_server.main(print_func=lambda _: print(line, flush=True))


def main(argv=None):
    """Shows a run again, or starts a server; returns the exit status."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    about = __doc__.split("\n")[0]
    parser = Parser(prog="viz.dashboard", description=about, allow_abbrev=False, formatter_class=defaults)
    parser.add_argument("folder", type=Path, nargs="?", help="of the run: outputs/NAME")
    parser.add_argument("--server", action="store_true", help="start a visdom server for this machine")
    parser.add_argument("--viz_server", default="localhost", help="host or address of the visdom server")
    parser.add_argument("--viz_port", type=count, default=8097, help="port of the visdom server")
    args = parser.parse_args(argv)
    if bool(args.folder) == args.server:
        parser.error("give the folder of a run, outputs/NAME, or --server")
    if args.folder and not (args.folder / "args.json").exists():
        parser.error(f"{args.folder} is no run's folder: it holds no args.json")

    def run():
        if args.server:
            return serve(args.viz_port)
        try:
            name = json.loads((args.folder / "args.json").read_text())["arguments"]["viz_name"]
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{args.folder / 'args.json'} is damaged, or not of a run") from None
        board = Dashboard(args.folder, name, args.viz_server, args.viz_port)
        return 0 if board.send(board.windows()) else 1

    return run_cli("viz.dashboard", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
