"""Show a run on a visdom server, while it trains or afterwards. Knows a run's folder, no solvers or flags.

    python -m visdom.server                  # in another terminal: http://localhost:8097
    python -m viz.dashboard outputs/NAME     # show a finished or running run

Each window is sent whole, never appended to: what a server has missed or lost is there after the next sending.
"""

import logging
import re
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from run.log import read_log
from utils import Parser, UserError, count, first_line, run_cli
from viz.figures import CURVES, read_curves
from viz.latents import style

INTERVAL = 5  # seconds between two sendings
TIMEOUT = (2, 10)  # seconds to connect, and to wait for an answer
FLUSH = 3  # seconds that the end of a run waits for the last sending
WIDTH, HEIGHT = 500, 390  # pixels of a window: three side by side on a screen of 1600
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}  # plotly's names


def window(method, win, title, width=WIDTH, height=HEIGHT, opts={}, **content):
    """Return a window: the name of a method of visdom.Visdom, which draws it, and the arguments of that."""
    return dict(method=method, win=win, opts=dict(title=title, width=width, height=height, **opts), **content)


def picture(path, title, width):
    """Return a window of the picture at path. As a JPEG it costs the thread a tenth of the time of a PNG."""
    pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)  # 3, H, W
    height = round(width * pixels.shape[1] / pixels.shape[2]) + 45  # visdom cuts off 45 pixels
    return window("image", path.stem, title, width, height, {"jpgquality": 90}, img=pixels)


def curves(log):
    """Yield the windows of log.csv, {column: values}: one for each of CURVES. What is not finite is a gap."""
    lines, latents = read_curves(log)
    for win, (title, unit, _) in CURVES.items():
        y = np.array(list(lines[win].values())).T  # rows of the log, lines
        y = np.where(np.isfinite(y), y, np.nan)  # an infinity would stop visdom's page
        looks = {}
        for name in lines[win]:
            color, dash = style(name)
            looks[name] = {"line": dict(color=color, dash=DASHES[dash])}
        opts = dict(xlabel=f"iterations      {latents.not_shown()}".strip(), ylabel=unit)
        opts |= dict(legend=list(lines[win]), markers=len(y) < 50, markersize=6)
        opts |= dict(marginright=10, margintop=35, marginbottom=45, traceopts={"plotly": looks})
        opts["layoutopts"] = {"plotly": {"title": {"text": title, "x": 0.02}}}  # beside the plot's buttons
        yield window("line", win, title, opts=opts, X=np.array(log["iter"]), Y=y)


def run_windows(folder):
    """Yield the windows of a run's folder, in their order on the page, three columns."""
    if (folder / "log.csv").exists():
        yield from curves(read_log(folder / "log.csv"))
    drawn = folder.glob("*/reconstruction.png")  # the last of an iteration's pictures on this page
    if newest := max(drawn, key=lambda path: int(path.parent.name), default=None):
        at = f"iteration {int(newest.parent.name):,}"
        yield picture(newest.with_name("traverse.png"), f"Traversals, {at}", 2 * WIDTH)
        yield picture(newest, f"Reconstructions, {at}", WIDTH)


# The server.


def connect(server, port, env):
    """Return a client for one environment of a visdom server: a call works within TIMEOUT or raises ConnectionError."""
    import visdom  # takes a second, and a machine that only trains may have none

    class Client(visdom.Visdom):
        def _handle_post(self, url, data=None):  # visdom's own waits for ever if the server hangs
            return self.session.post(url, data=data or {}, timeout=TIMEOUT).text

    logging.getLogger("visdom").setLevel(logging.ERROR)
    return Client(server, port=port, env=env, use_incoming_socket=False, raise_exceptions=True)


class Dashboard:
    """Keeps the windows of a run up to date from a thread of its own: training never waits for the server.

    Within `with`, update() returns at once. What could not be sent is sent again, as it is by then.
    """

    def __init__(self, folder, name, server="localhost", port=8097):
        self.folder = Path(folder)
        env = re.sub(r"[^\w.=-]", "_", name)  # in other names, pages or files of visdom are not found
        self.server, self.client = (server, port, env), None  # the client once a server has answered
        self.url = f"{server if '//' in server else f'http://{server}'}:{port}/env/{env}"
        self.up = None  # whether the last sending arrived; None before the first
        self.news, self.closing = threading.Event(), threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.thread.join(FLUSH)

    def update(self):
        """Note that the run has written to its folder."""
        self.news.set()

    def work(self):
        """Send what is new every INTERVAL, and all at the end. Runs in the thread."""
        while not self.closing.wait(INTERVAL):
            if self.news.is_set():
                self.news.clear()
                if not self.show():
                    self.news.set()
        self.show()

    def show(self):
        """Send all windows of the run; return whether they arrived."""
        return self.send(run_windows(self.folder))

    def send(self, windows):
        """Send windows; return whether all arrived. One line says when the server comes or goes."""
        try:
            self.client = self.client or connect(*self.server)
            for each in windows:
                if getattr(self.client, each.pop("method"))(**each) != each["win"]:
                    raise ConnectionError("something else answers")
            up, line = True, f"dashboard: {self.url}"
        except Exception as error:  # whatever visdom or a file may raise: training goes on
            up, line = False, f"no dashboard at {self.url} (python -m visdom.server): {first_line(error)}"
        if up != self.up:
            tqdm.write(line)
        self.up = up
        return up


def main(argv=None):
    parser = Parser(prog="viz.dashboard", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder of the run: outputs/NAME")
    parser.add_argument("--viz_server", default="localhost", help="host of the visdom server")
    parser.add_argument("--viz_port", type=count, default=8097, help="port of the visdom server (8097)")
    args = parser.parse_args(argv)

    def run():
        if not (args.folder / "log.csv").exists():
            raise UserError(f"{args.folder} has no log.csv: is it the folder of a run, outputs/NAME?")
        name = args.folder.resolve().name
        return int(not Dashboard(args.folder, name, args.viz_server, args.viz_port).show())

    return run_cli("viz.dashboard", "interrupted", run)


if __name__ == "__main__":
    sys.exit(main())
