"""What is on disk of many runs: which are finished, and how far they spread, as a table and a picture.

A run here is anything with a name, its settings (flags that the study varies, as typed), args (flags of main.py, read)
and outputs (its folder).
"""

import csv
import io
import json
import statistics
from pathlib import Path

from training.checkpoint import read_checkpoint
from training.log import read_log
from training.settings import defining_flags, fault_of_flags, saved_flags
from utils import ACTIVE, UserError, atomic_file
from viz import dashboard, figures


def scores(run, iteration):
    """The numbers of a run's metrics.json, of the level that --metrics asks for; None if they are not there."""
    if run.args.metrics == "none":
        return {}
    try:
        found = json.loads((run.outputs / str(iteration) / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    numbers = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    return numbers if found.get("settings", {}).get("level") == run.args.metrics else None


def trained(run):
    """Whether there is a checkpoint of the last iteration, of these settings: of others, main.py has to speak."""
    try:
        state = read_checkpoint(run.checkpoints / "last")
    except (OSError, ValueError):
        return False
    saved = saved_flags(state["arguments"] or {})
    return (
        state["iter"] >= run.args.max_iter
        and not fault_of_flags(saved)
        and defining_flags(saved) == defining_flags(run.args)
    )


def row(run, done):
    """A row of summary.csv, from a run's log and, when it is done, its scores; None if they are not there."""
    try:
        log = read_log(run.outputs / "log.csv")
    except (OSError, UserError):
        return None
    if not log["iter"]:
        return None
    last = {name: values[-1] for name, values in log.items()}
    numbers = scores(run, int(last["iter"])) if done else {}
    if numbers is None:
        return None
    active = sum(value > ACTIVE for name, value in last.items() if name.startswith("kld_"))
    return {
        "run": run.name,
        **run.settings,
        "seed": run.args.seed,
        "finished": done,
        "iterations": int(last["iter"]),
        "recon_loss": last["recon_loss"],
        "total_kld": last["total_kld"],
        "active_latents": active,
        **numbers,
    }


def iterations(run):
    """How far a run's log has come."""
    found = row(run, False)
    return found["iterations"] if found else 0


class Summary:
    """What is on disk of all runs, in outputs/<sweep_name>/: summary.csv, summary.md and summary.png."""

    def __init__(self, args, runs):
        self.name, self.runs, self.rows = args.sweep_name, runs, {}  # rows: of finished runs
        self.folder = Path(runs[0].args.output_dir) / args.sweep_name
        one = runs[0].args
        self.board = (
            dashboard.Dashboard(self.folder, args.sweep_name, one.viz_server, one.viz_port)
            if one.viz_on
            else None
        )

    def done(self, run):
        """Whether main.py has nothing left to do."""
        if run.name not in self.rows and trained(run) and (found := row(run, True)):
            self.rows[run.name] = found
        return run.name in self.rows

    def write(self):
        rows = [self.rows[run.name] if self.done(run) else row(run, False) for run in self.runs]
        rows = [each for each in rows if each]
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = list(max(rows, key=len))  # those of a run with scores, if there is one
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        self.put("summary.csv", buffer.getvalue())
        metrics = columns[columns.index("iterations") + 1 :]
        values = {metric: self.by_setting(metric) for metric in metrics}
        self.put("summary.md", self.text(values))
        if self.rows:
            figures.study(values, self.folder / "summary.png")
            if self.board:
                self.board.send(dashboard.study(self.folder, self.name))

    def put(self, name, text):
        # other sweeps may write theirs at the same time
        with atomic_file(self.folder / name, shared=True) as file:
            file.write(text.encode())

    def by_setting(self, metric):
        """{setting: values of a metric in its finished runs}."""
        values = {}
        for run in self.runs:
            if run.name in self.rows:
                setting = ", ".join(f"{name}={text}" for name, text in run.settings.items() if name != "seed")
                values.setdefault(setting or self.name, []).append(self.rows[run.name][metric])
        return values

    def text(self, values):
        """A table of mean, standard deviation and number of runs: a line a setting."""
        lines = [
            f"# {self.name}",
            "",
            f"{len(self.rows)} of {len(self.runs)} runs are finished; of those, mean ± "
            "standard deviation (n - 1) over n runs. Losses and KL in nats, as in the last row of log.csv.",
            "",
            f"| setting | n | {' | '.join(values)} |",
            "|---" * (len(values) + 2) + "|",
        ]
        for setting, runs in next(iter(values.values())).items():
            cells = [mean_and_deviation(each[setting]) for each in values.values()]
            lines.append(f"| {setting} | {len(runs)} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def mean_and_deviation(values):
    mean = statistics.mean(values)
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
