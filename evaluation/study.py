"""Compare many runs: a table of means and standard deviations, and a picture."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from run.log import read_log
from utils import ACTIVE, atomic_file
from viz import figures


class Result(NamedTuple):
    """A run of a study, one row of summary.csv."""

    run: str  # its name
    settings: dict  # {flag: value as typed}: the flags that vary, and the seed
    finished: bool
    numbers: dict  # as of read_numbers() and read_scores()


def iterations(folder):
    """Return the last iteration in the log of a run's folder, 0 without one. Fast, for progress bars."""
    path = Path(folder) / "log.csv"
    rows = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # complete rows
    return int(rows[-1].split(b",")[0]) if len(rows) > 1 else 0


def read_numbers(folder):
    """Read losses (nats) and the number of active latents from the last row of a run's log; {} if it has none."""
    if not iterations(folder):
        return {}
    last = {name: values[-1] for name, values in read_log(Path(folder) / "log.csv").items()}
    active = sum(value > ACTIVE for name, value in last.items() if name.startswith("kld_"))
    numbers = {name: last[name] for name in ("recon_loss", "total_kld")}
    return {"iterations": int(last["iter"]), **numbers, "active_latents": active}


def read_scores(folder, iteration, level):
    """Read the scores of a run's folder at an iteration; {} if there are none of this level of --metrics."""
    path = Path(folder) / str(iteration) / "metrics.json"
    scores = json.loads(path.read_text()) if path.exists() else {"settings": {"level": None}}
    if scores["settings"]["level"] != level:
        return {}
    return {name: value for name, value in scores.items() if isinstance(value, (int, float))}


def write(folder, name, results):
    """Write summary.csv of all results, and summary.md and summary.png of the finished ones."""
    rows = [{"run": r.run, **r.settings, "finished": r.finished, **r.numbers} for r in results]
    table = io.StringIO()
    writer = csv.DictWriter(table, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = {"summary.csv": table.getvalue()}
    if finished := [result for result in results if result.finished]:
        groups = {}  # {setting: numbers of each run}
        for each in finished:
            varied = [f"{flag}={text}" for flag, text in each.settings.items() if flag != "seed"]
            groups.setdefault(", ".join(varied) or name, []).append(each.numbers)
        metrics = [
            metric for metric in finished[0].numbers if all(metric in each.numbers for each in finished)
        ]
        metrics.remove("iterations")
        figures.study(groups, metrics, folder / "summary.png")
        progress = f"{len(finished)} of {len(results)} runs are finished"
        texts["summary.md"] = f"# {name}\n\n{progress}. {markdown(groups, metrics)}"
    for file_name, text in texts.items():
        with atomic_file(folder / file_name) as file:
            file.write(text.encode())


def markdown(groups, metrics):
    """Return a table of mean, standard deviation and number of runs, one line per setting; groups: {setting: numbers of each run}."""
    text = (
        "Mean ± standard deviation (n - 1) over n runs; losses and KL in nats, from the last row of log.csv.\n\n"
        f"| setting | n | {' | '.join(metrics)} |\n{'|---' * (len(metrics) + 2)}|\n"
    )
    for setting, runs in groups.items():
        text += f"| {setting} | {len(runs)} |"
        for metric in metrics:
            values = [numbers[metric] for numbers in runs]
            deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            text += f" {statistics.mean(values):.3f}{deviation} |"
        text += "\n"
    return text
