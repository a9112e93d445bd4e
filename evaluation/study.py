"""Results of many runs: a table of means and deviations, and a picture. Knows folders, nothing of flags."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from training.log import read_log
from utils import ACTIVE, UserError, atomic_file
from viz import figures


class Result(NamedTuple):
    """Where a run stands, as a row of summary.csv has it."""

    run: str  # its name
    settings: dict  # what distinguishes it from the other runs, as typed; the seed last
    finished: bool
    numbers: dict  # of read_numbers(), or empty

    @property
    def setting(self):
        """All settings but the seed, in a line."""
        return ", ".join(f"{name}={text}" for name, text in self.settings.items() if name != "seed")


def iterations(folder):
    """The last iteration in the log of a run's folder; 0 without one."""
    try:
        rows = (Path(folder) / "log.csv").read_bytes().split(b"\n")[:-1]  # complete ones
        return int(rows[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):  # no log, only its header, no rows
        return 0


def read_numbers(folder, level="none"):
    """Losses (nats), active latents and scores of a run's folder at its last iteration, as a dict.

    level: the level of --metrics whose scores must be there; with "none", none are read. None where the log or the
    scores cannot be read.
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
        scores = json.loads((Path(folder) / str(numbers["iterations"]) / "metrics.json").read_text())
        if scores["settings"]["level"] != level:
            return None
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return None
    return numbers | {name: value for name, value in scores.items() if isinstance(value, (int, float))}


def write(folder, name, results):
    """Writes summary.csv of all results that have numbers, and summary.md and summary.png of finished ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"run": each.run, **each.settings, "finished": each.finished, **each.numbers}
        for each in results
        if each.numbers
    ]
    table = io.StringIO()
    columns = dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    put(folder / "summary.csv", table.getvalue())

    finished = [each for each in results if each.finished]
    put(folder / "summary.md", markdown(name, finished, len(results)))
    if finished:
        figures.study(by_setting(finished, name), folder / "summary.png")


def put(path, text):
    with atomic_file(path) as file:
        file.write(text.encode())


def by_setting(results, name):
    """{metric: {setting: its values, a run each}} of what all runs have; where no setting varies, it is called name."""
    values = {}
    for metric in results[0].numbers if results else ():
        if metric != "iterations" and all(metric in each.numbers for each in results):
            for each in results:
                values.setdefault(metric, {}).setdefault(each.setting or name, []).append(
                    each.numbers[metric]
                )
    return values


def markdown(name, results, total):
    """A table of mean, standard deviation and number of the finished runs, a line a setting."""
    values = by_setting(results, name)
    lines = [
        f"# {name}",
        "",
        f"{len(results)} of {total} runs are finished; of those, mean ± standard deviation (n - 1) over n runs. "
        "Losses and KL in nats, as in the last row of log.csv.",
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
