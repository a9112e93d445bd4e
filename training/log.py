"""The log of a run, log.csv: written row by row, and read."""

import contextlib
import csv
import math
import os
from pathlib import Path

from tqdm import tqdm

from utils import UserError, atomic_file, named


class Log:
    """The curves of a run: a csv file of one row for each window of iterations.

    columns: names, the first of which is "iter". A value may be None: it is written as nothing.
    """

    def __init__(self, path, columns):
        self.path, self.columns, self.file = Path(path), columns, None

    def open(self, last_iter, keep=False):
        """Opens the file to append after last_iter: later rows go.

        keep: leave the whole of it as log.csv.old, unless what is there already is longer.
        """
        rows, old = [self.columns], self.path.with_name(self.path.name + ".old")
        if (
            keep
            and self.path.exists()
            and not (old.exists() and old.stat().st_size > self.path.stat().st_size)
        ):
            with atomic_file(old) as file:
                file.write(self.path.read_bytes())
        if last_iter and self.path.exists():
            # no table: no rows
            with open(self.path, newline="", errors="replace") as file, contextlib.suppress(csv.Error):
                rows += [
                    row
                    for row in list(csv.reader(file))[1:]
                    if len(row) == len(self.columns) and row[0].isdecimal() and int(row[0]) <= last_iter
                ]
        with atomic_file(self.path) as file:
            file.write("".join(",".join(row) + "\n" for row in rows).encode())
        self.file = open(self.path, "a+", newline="")

    def append(self, iteration, values):
        """Adds a row; returns its values as a reader of the file will see them."""
        texts = ["" if value is None else f"{value:.6g}" for value in values]
        with named(self.path):
            self.file.write(",".join([str(iteration), *texts]) + "\n")
            self.file.flush()
        return [float(text) if text else None for text in texts]

    def flush_to_disk(self):
        if not self.path.exists():  # its folder was removed; the open file still has it all
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file.seek(0)
            with atomic_file(self.path) as file:
                file.write(self.file.read().encode())
            self.file.close()
            self.file = open(self.path, "a+", newline="")
            tqdm.write(f"{self.path} was removed: written again")
        with named(self.path):
            os.fsync(self.file.fileno())

    def close(self):
        if self.file:
            self.file.close()


def read_log(path):
    """Reads log.csv as {column: list of floats}; what is empty there is NaN."""
    try:
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
        return {
            name: [float(row[i]) if row[i] else math.nan for row in rows] for i, name in enumerate(header)
        }
    except (ValueError, csv.Error):  # empty, no text or no numbers
        raise UserError(
            f"{path} is damaged: it is no table of numbers; without it, all but the curves can be drawn"
        ) from None
