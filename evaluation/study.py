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

    @property
    def setting(self):
        """All settings but the seed, as text."""
        return ", ".join(f"{name}={text}" for name, text in self.settings.items() if name != "seed")


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
    return {
        "iterations": int(last["iter"]),
        "recon_loss": last["recon_loss"],
        "total_kld": last["total_kld"],
        "active_latents": sum(value > ACTIVE for name, value in last.items() if name.startswith("kld_")),
    }


def read_scores(folder, iteration, level):
    """Read the scores of a run's folder at an iteration; {} if there are none of this level of --metrics."""
    path = Path(folder) / str(iteration) / "metrics.json"
    scores = json.loads(path.read_text()) if path.exists() else {}
    if not scores or scores["settings"]["level"] != level:
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
        values = by_setting(finished, name)
        figures.study(values, folder / "summary.png")
        texts["summary.md"] = markdown(name, values, len(finished), len(results))
    for file_name, text in texts.items():
        with atomic_file(folder / file_name) as file:
            file.write(text.encode())


def by_setting(results, name):
    """Return {metric: {setting: one value per run}} of the metrics that all runs have; name: the setting if none varies."""
    values = {}
    for metric in results[0].numbers:
        if metric != "iterations" and all(metric in each.numbers for each in results):
            values[metric] = {}
            for each in results:
                values[metric].setdefault(each.setting or name, []).append(each.numbers[metric])
    return values


def markdown(name, values, finished, total):
    """Return a table of mean, standard deviation and number of runs, one line per setting; values: of by_setting()."""
    text = (
        f"# {name}\n\n{finished} of {total} runs are finished. Mean ± standard deviation (n - 1) over n runs; "
        "losses and KL in nats, from the last row of log.csv.\n\n"
    )
    text += f"| setting | n | {' | '.join(values)} |\n" + "|---" * (len(values) + 2) + "|\n"
    for setting, runs in values["recon_loss"].items():
        cells = [mean_and_deviation(each[setting]) for each in values.values()]
        text += f"| {setting} | {len(runs)} | {' | '.join(cells)} |\n"
    return text


def mean_and_deviation(values):
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
