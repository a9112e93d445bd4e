"""The log of a run, log.csv: averages over windows of iterations, written row by row, and read."""

import csv
import math
import os
from pathlib import Path

import torch
from tqdm import tqdm

from utils import UserError, atomic_file, named


def column_names(terms):
    """Columns of a dict of what a step logs: a scalar is one, a vector one for each of its values, name_0, name_1 .."""
    names = []
    for name, value in terms.items():
        vector = isinstance(value, torch.Tensor) and value.dim()
        names += [f"{name}_{j}" for j in range(len(value))] if vector else [name]
    return names


class Window:
    """The steps since the last row of the log: sums of what they log, on the device, as reading them would wait for it."""

    def __init__(self, terms, device):
        """terms: what a step logs, a dict of scalars and of vectors (z_dim,)."""
        self.columns = column_names(terms)
        self.sums = torch.zeros(len(self.columns), dtype=torch.float64, device=device)
        self.count, self.last_row = 0, None

    @torch.no_grad()
    def add(self, terms):
        like = self.sums.float()
        values = [v if isinstance(v, torch.Tensor) else like.new_full((), v) for v in terms.values()]
        self.sums += torch.cat([value.reshape(-1) for value in values])
        self.count += 1

    def means(self):
        """{column: average} over the open window, or over the last one if it has just closed; {} before the first step."""
        row = (self.sums / self.count).tolist() if self.count else self.last_row
        return dict(zip(self.columns, row or []))

    def text(self):
        """The averages of the scalars, in a line; without those that are not defined at this step (NaN)."""
        means = {
            name: value for name, value in self.means().items() if not name[-1].isdecimal() and value == value
        }
        return ", ".join(f"{name} {value:.4g}" for name, value in means.items())

    def close(self, row):
        """Begins the next window; row: the averages of this one, as the log has them."""
        self.last_row, self.count = row, 0
        self.sums.zero_()

    def state_dict(self):
        return {name: getattr(self, name) for name in ("columns", "sums", "count", "last_row")}

    def load_state_dict(self, saved):
        """Goes on with the sums of a checkpoint, by the names of its columns; with an empty window where one is missing."""
        latents = (len(saved["sums"]) - 4) // 3  # of checkpoints without names
        before = ["recon_loss", "total_kld", "mean_kld", "C"]
        before += [f"{name}_{j}" for name in ("kld", "mu", "var") for j in range(latents)]
        before = saved.get("columns", before)
        if missing := [name for name in self.columns if name not in before]:
            print(f"the checkpoint has no {missing[0]} for the log: its open row starts anew here")
            return
        places = [before.index(name) for name in self.columns]
        self.sums.copy_(saved["sums"][places])
        self.count, row = saved["count"], saved["last_row"]
        self.last_row = row and [row[place] for place in places]


class Log:
    """log.csv: a row for each window of iterations. columns: names, the first of which is "iter"."""

    def __init__(self, path, columns):
        self.path, self.columns, self.file = Path(path), columns, None

    def open(self, last_iter, keep=False):
        """Opens the file to append after last_iter: later rows go. Columns that are new are empty in earlier rows.

        keep: leave the whole of it as log.csv.old, unless what is there already is longer.
        """
        rows, old = [], self.path.with_name(f"{self.path.name}.old")
        header, found = self.read_rows()
        if last_iter and "iter" in header:
            rows = [dict(zip(header, row)) for row in found if len(row) == len(header)]
            rows = [row for row in rows if row["iter"].isdecimal() and int(row["iter"]) <= last_iter]
            keep = keep or header != self.columns
        if keep and self.path.exists():
            if not (old.exists() and old.stat().st_size > self.path.stat().st_size):
                with atomic_file(old) as file:
                    file.write(self.path.read_bytes())
        lines = [self.columns, *([row.get(name, "") for name in self.columns] for row in rows)]
        with atomic_file(self.path) as file:
            file.write("".join(",".join(line) + "\n" for line in lines).encode())
        self.file = open(self.path, "a+", newline="")

    def read_rows(self):
        """Header and rows that are there, as texts; none where there is no table."""
        try:
            with open(self.path, newline="", errors="replace") as file:
                header, *rows = csv.reader(file)
            return header, rows
        except (FileNotFoundError, ValueError, csv.Error):
            return [], []

    def append(self, iteration, values):
        """Adds a row; returns its values as a reader of the file will see them."""
        texts = [f"{value:.6g}" for value in values]
        with named(self.path):
            self.file.write(",".join([str(iteration), *texts]) + "\n")
            self.file.flush()
        return [float(text) for text in texts]

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
    """Reads log.csv as {column: list of floats}; what is empty there is NaN. UserError if it is no table of numbers."""
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
