"""Results of many runs: a table of means and standard deviations, and a picture."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from run.log import read_log
from utils import ACTIVE, UserError, atomic_file
from viz import figures


class Result(NamedTuple):
    """One run of a study, a row of summary.csv."""

    run: str  # its name
    settings: dict  # {flag: value as typed}, those that differ between runs, and the seed
    finished: bool
    numbers: dict  # of read_numbers(); empty if there are none

    @property
    def setting(self):
        """All settings except the seed, as text."""
        return ", ".join(f"{name}={text}" for name, text in self.settings.items() if name != "seed")


def iterations(folder):
    """The last iteration in the log of a run's folder; 0 without one. Fast, for progress bars."""
    try:
        rows = (Path(folder) / "log.csv").read_bytes().split(b"\n")[:-1]  # complete ones
        return int(rows[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):  # no log, only a header, no rows
        return 0


def read_numbers(folder, level="none"):
    """Losses (nats), active latents and scores of a run's folder at its last iteration; None if they cannot be read.

    level: of --metrics, at which the scores must have been computed; "none": do not read scores.
    """
    try:
        last = {name: values[-1] for name, values in read_log(Path(folder) / "log.csv").items()}
        numbers = {
            "iterations": int(last["iter"]),
            "recon_loss": last["recon_loss"],
            "total_kld": last["total_kld"],
            "active_latents": sum(value > ACTIVE for name, value in last.items() if name.startswith("kld_")),
        }
        if level == "none":
            return numbers
        path = Path(folder) / str(numbers["iterations"]) / "metrics.json"
        scores = json.loads(path.read_text())
        if scores["settings"]["level"] != level:
            return None
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return None
    return numbers | {name: value for name, value in scores.items() if isinstance(value, (int, float))}


def write(folder, name, results):
    """Writes summary.csv of all results with numbers, and summary.md and summary.png of the finished ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"run": each.run, **each.settings, "finished": each.finished, **each.numbers}
        for each in results
        if each.numbers
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    finished = [each for each in results if each.finished]
    texts = {"summary.csv": table.getvalue(), "summary.md": markdown(name, finished, len(results))}
    for file_name, text in texts.items():
        with atomic_file(folder / file_name) as file:
            file.write(text.encode())
    if finished:
        figures.study(by_setting(finished, name), folder / "summary.png")


def by_setting(results, name):
    """{metric: {setting: one value per run}} for metrics that all runs have; name: of the setting if none varies."""
    values = {}
    for metric in results[0].numbers if results else ():
        if metric != "iterations" and all(metric in each.numbers for each in results):
            values[metric] = {each.setting or name: [] for each in results}
            for each in results:
                values[metric][each.setting or name].append(each.numbers[metric])
    return values


def markdown(name, results, total):
    """A table of mean, standard deviation and number of the finished runs, one line per setting."""
    values = by_setting(results, name)
    lines = [
        f"# {name}",
        "",
        f"{len(results)} of {total} runs are finished. Mean ± standard deviation (n - 1) over n runs; "
        "losses and KL in nats, from the last row of log.csv.",
        "",
        f"| setting | n | {' | '.join(values)} |",
        "|---" * (len(values) + 2) + "|",
    ]
    for setting, runs in values.get("recon_loss", {}).items():
        cells = [mean_and_deviation(each[setting]) for each in values.values()]
        lines.append(f"| {setting} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values):
    mean = statistics.mean(values)
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
