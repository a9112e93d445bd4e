"""Show a run on a visdom server, while it trains or afterwards. Knows a run's folder, no solvers or flags.

    python -m viz.dashboard --server         # start a visdom server on this machine: http://localhost:8097
    python -m viz.dashboard outputs/NAME     # show a finished or running run

Each window is sent whole, as the JSON that visdom's own client sends: whatever was lost is there again after the next
sending. For a server with a login, set VISDOM_USERNAME and VISDOM_PASSWORD in the environment.
"""

import base64
import contextlib
import hashlib
import html
import io
import ipaddress
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

from PIL import Image
from tqdm import tqdm

from training.log import read_log
from utils import Parser, UserError, count, regular, run_cli
from viz.figures import CURVES, read_curves

INTERVAL = 5  # seconds between two sendings
TIMEOUT = (2, 10)  # seconds to connect, and to wait for an answer
FLUSH = 3  # seconds that the end of a run waits for the last sending
SIZE = (500, 390)  # pixels of a window: three side by side on a screen of 1600
PALETTE = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
DASHES = ["solid", "dash", "dot", "dashdot"]  # of latents 0 to 9, 10 to 19, ..
NO_VISDOM = "visdom is not installed here: pip install -r requirements.txt"


# Windows: dicts as visdom's /events takes them, without the environment.


def window(win, title, data, size=SIZE):
    return dict(win=win, data=data, opts=dict(title=title, width=size[0], height=size[1]))


def text(win, title, content, size=SIZE):
    """A window of HTML."""
    content = f"<div style='color: black; padding: 4px; font-size: 12px'>{content}</div>"
    return window(win, title, [dict(type="text", content=content)], size)


def picture(path, title, width):
    png = regular(path).read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        height = round(width * image.height / image.width)
    content = dict(src=f"data:image/png;base64,{base64.b64encode(png).decode()}", caption=title)
    data = [dict(type="image", content=content)]
    return window(path.stem, title, data, (width, height + 45))  # visdom cuts off 45 pixels


def curves(log):
    """The windows of log.csv, {column: values}: one for each of CURVES. What is not finite is a gap."""
    if not log["iter"]:
        return
    lines, latents = read_curves(log)
    for win, (title, unit, _) in CURVES.items():
        data = []
        for name, y in lines[win].items():
            style = dict(color="silver", dash="dash") if name == "C" else dict(color="black")
            if name.startswith("z_"):
                j = int(name[2:])  # a latent keeps its colour when the order changes
                style = dict(color=PALETTE[j % 10], dash=DASHES[j // 10 % 4])
            y = [value if math.isfinite(value) else None for value in y]  # JSON has no infinity
            mode = "lines+markers" if len(y) < 50 else "lines"
            data.append(dict(type="scatter", name=name, x=log["iter"], y=y, line=style, mode=mode))
        xlabel = f"iterations      {'' if win == 'recon' else latents.not_shown()}".strip()
        layout = dict(xaxis=dict(title=xlabel), yaxis=dict(title=unit), margin=dict(l=60, r=10, t=35, b=45))
        layout |= dict(title=dict(text=title, x=0.02, font=dict(size=15)), showlegend=True)
        yield window(win, title, data) | dict(layout=layout)


def study(folder, name):
    """The windows of a sweep: picture and table of its runs."""
    width = 3 * SIZE[0]
    yield picture(folder / "summary.png", name, width)
    table = html.escape(regular(folder / "summary.md").read_text(encoding="utf-8"))
    yield text("table", "Table", f"<pre>{table}</pre>", (width, SIZE[1]))


def newest(folder, name):
    """The last outputs/NAME/<iter> that holds a file of that name; None if there is none."""
    found = [path.parent for path in folder.glob(f"*/{name}") if path.parent.name.isdecimal()]
    return max(found, key=lambda each: int(each.name), default=None)


def summary(folder, name, log, iteration):
    """The window "Run": iteration, latest losses and scores, device and flags."""
    about = json.loads(regular(folder / "args.json").read_text())
    end = about["arguments"]["max_iter"]
    words = {"iteration": f"{iteration:,} of {end:,} ({100 * iteration / end:.1f} %)"}
    if log["iter"]:
        recon, kl = log["recon_loss"][-1], log["total_kld"][-1]
        words["latest"] = f"reconstruction {recon:.1f}, KL {kl:.2f} nats per image"
    if scored := newest(folder, "metrics.json"):
        scores = json.loads(regular(scored / "metrics.json").read_text())
        numbers = [f"{key} {value:.3g}" for key, value in scores.items() if isinstance(value, (int, float))]
        words[f"scores at {int(scored.name):,}"] = ", ".join(numbers)
    words["device"] = f"{about['device']}, {about['threads']} threads, {about['precision']}"
    words["flags"] = ", ".join(f"{key} {value}" for key, value in about["arguments"].items())
    words["sent"] = time.strftime("%Y-%m-%d %H:%M:%S")
    rows = [f"<tr><td><b>{key}</b></td><td>{html.escape(value)}</td></tr>" for key, value in words.items()]
    return text("run", "Run", f"<h4>{html.escape(name)}</h4><table>{''.join(rows)}</table>")


# The server.


def address(server, port):
    """URL of a server given as host, host:port or URL; a port in it takes precedence over port."""
    if "@" in server:  # not quoted: it may hold a password
        login = "visdom's own takes VISDOM_USERNAME and VISDOM_PASSWORD, a proxy's ~/.netrc"
        raise UserError(f"the address of a visdom server must hold no login: {login}")
    with contextlib.suppress(ValueError):
        server = f"[{ipaddress.IPv6Address(server)}]"
    try:
        parts = urlsplit(server if "//" in server else f"http://{server}")
        host = parts.netloc if parts.port else f"{parts.netloc}:{port}"
    except ValueError:
        parts = None
    if not (parts and parts.hostname):
        raise UserError(f"{server!r} is no address of a visdom server: give a host or http://HOST:PORT")
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def environment(name):
    """visdom's environment for a run: its name, if short and of letters, digits and _.=-; else changed, with a checksum."""
    fit = re.sub(r"[^\w.=-]", "_", name).encode()[:180].decode(errors="ignore")
    return fit if fit == name else f"{fit}-{zlib.crc32(os.fsencode(name)):08x}"


class Server:
    """One environment of a visdom server; each call works within TIMEOUT or raises UserError."""

    def __init__(self, url, env):
        self.url, self.env, self.session = url, env, None

    def post(self, endpoint, message):
        """Send a message; returns the text of the answer."""
        try:
            import requests  # comes with visdom
        except ImportError:
            raise UserError(NO_VISDOM) from None
        if not self.session:
            self.session = requests.Session()
            here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
            self.session.trust_env = not here  # no proxy
            self.session.auth = requests.utils.get_netrc_auth(self.url)
            if user := os.environ.get("VISDOM_USERNAME"):
                password = hashlib.sha256(os.environ.get("VISDOM_PASSWORD", "").encode()).hexdigest()
                self.post("", dict(username=user, password=password))
        try:
            reply = self.session.post(f"{self.url}/{endpoint}", json=message, timeout=TIMEOUT)
        except requests.Timeout:
            raise UserError(f"no answer in {max(TIMEOUT)} s") from None
        except requests.RequestException:
            raise UserError("no visdom server there: start `python -m viz.dashboard --server`") from None
        if not reply.ok:
            answer = f"HTTP {reply.status_code} from {reply.headers.get('Server', 'a proxy')}"
            raise UserError(f"{answer}; visdom's own login takes VISDOM_USERNAME and VISDOM_PASSWORD")
        return reply.text

    def show(self, window):
        """Replace the window of that name."""
        if self.post("events", {"eid": self.env, **window}) != window["win"]:
            raise UserError("something else than visdom answers")

    def list_runs(self):
        """List all environments in "main", which visdom opens first."""
        base, links = urlsplit(self.url).path, ""
        for name in sorted(json.loads(self.post("env_state", {}))):
            if name != "main" and "/" not in name:
                links += f"<li><a href='{base}/env/{quote(name)}'>{html.escape(name)}</a></li>"
        self.show(text("runs", "Runs", f"<h4>Runs</h4><ul>{links}</ul>") | {"eid": "main"})


class Dashboard:
    """Keeps the windows of a run up to date from a thread of its own: training never waits for the server.

    Within `with`, update() returns at once. What could not be sent is sent again, as it is by then.
    """

    def __init__(self, folder, name, server="localhost", port=8097):
        self.folder, self.name, self.iteration = Path(folder), name, None
        self.server = Server(address(server, port), environment(name))
        self.up = self.shown = None  # whether the last sending arrived; the folder whose pictures did
        self.news, self.closing = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, name="dashboard", daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.news.set()
        self.thread.join(FLUSH)

    def update(self, iteration):
        """Note that the run is at iteration and has written to its folder."""
        self.iteration = iteration
        self.news.set()

    def work(self):
        """The thread: sends what is new, at most once every INTERVAL, and a last time at the end."""
        closing = False
        while not closing:
            self.news.wait()
            self.news.clear()
            closing = self.closing.is_set()  # read after clear(): the end sets closing before news
            if not self.send(self.windows()):
                self.news.set()
            self.closing.wait(INTERVAL)

    def windows(self):
        """The windows of the run's folder; pictures only if they are not shown yet."""
        path = self.folder / "log.csv"
        log = read_log(path) if path.exists() else {"iter": []}
        last_row = int(log["iter"][-1]) if log["iter"] else 0
        yield summary(self.folder, self.name, log, last_row if self.iteration is None else self.iteration)
        yield from curves(log)
        folder = newest(self.folder, "reconstruction.png")
        if folder and folder != self.shown:
            at = f"iteration {int(folder.name):,}"
            # The reconstructions, which were drawn last, fill the row of the curves.
            yield picture(folder / "reconstruction.png", f"Reconstructions, {at}", SIZE[0])
            yield picture(folder / "traverse.png", f"Traversals, {at}", 2 * SIZE[0])
            self.shown = folder

    def send(self, windows):
        """Send windows; returns whether all arrived. One line says when the server comes or goes."""
        try:
            for each in windows:
                self.server.show(each)
            self.server.list_runs()
            up, line = True, f"dashboard: {self.server.url}/env/{self.server.env}"
        except (UserError, OSError) as error:
            up, line = False, f"no dashboard at {self.server.url}: {error}"
            self.server.session = self.shown = None  # a server that comes back may have lost all
        if up != self.up:
            tqdm.write(line)
        self.up = up
        return up


# The program.


def serve(port):
    """Run a visdom server for this machine; it needs the internet for its browser files, once."""
    try:
        from tornado import autoreload
        from visdom.server import build, run_server
    except ImportError:
        raise UserError(NO_VISDOM) from None
    logging.disable()  # it logs each of thirty files
    try:
        build.download_scripts()
    except OSError:
        static = Path(build.__file__).parents[1] / "static"
        why = "visdom's server cannot fetch its browser files (10 MB)"
        raise UserError(f"{why}: start it where there is internet, then copy {static} from there") from None
    finally:
        logging.disable(logging.NOTSET)
    # Otherwise the server restarts, and loses all windows, when the file of a module changes.
    autoreload.start = lambda: None
    sys.argv[1:] = ["-port", str(port), "-bind_local", "-logging_level", "ERROR"]
    run_server.main(lambda _: print(f"visdom: http://localhost:{port}, Ctrl-C ends it", flush=True))


def main(argv=None):
    parser = Parser(prog="viz.dashboard", description=__doc__.split("\n")[0], allow_abbrev=False)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("folder", type=Path, nargs="?", help="folder of the run: outputs/NAME")
    either.add_argument("--server", action="store_true", help="start a visdom server on this machine")
    parser.add_argument("--viz_server", default="localhost", help="host or address of the visdom server")
    parser.add_argument("--viz_port", type=count, default=8097, help="port of the visdom server (8097)")
    args = parser.parse_args(argv)

    def run():
        if args.server:
            return serve(args.viz_port)
        try:
            name = json.loads(regular(args.folder / "args.json").read_text())["arguments"]["viz_name"]
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(
                f"{args.folder} is no run's folder: its args.json is missing or damaged"
            ) from None
        board = Dashboard(args.folder, name, args.viz_server, args.viz_port)
        return 0 if board.send(board.windows()) else 1

    return run_cli("viz.dashboard", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
