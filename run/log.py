"""The log of a run, log.csv: averages over windows of iterations, written row by row, and read."""

import csv
import math
import os
from pathlib import Path

import torch

from utils import UserError, atomic_file


class Window:
    """Averages of what the steps log, since the last row of log.csv. Sums stay on the device: reading them would wait for it."""

    def __init__(self):
        self.names, self.columns, self.sums, self.count, self.last_row = None, [], None, 0, None

    @torch.no_grad()
    def add(self, terms, device):
        """Add a step. terms: a dict of scalars and of vectors (z_dim,), which get a column a value: kld_0, kld_1 .."""
        values = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in terms.values()]
        row = torch.cat([value.reshape(-1) for value in values])
        if self.names != list(terms):  # the first step in this process
            self.names, columns = list(terms), []
            for name, value in zip(terms, values):
                columns += [f"{name}_{j}" for j in range(len(value))] if value.dim() else [name]
            if columns != self.columns:  # else the sums are a checkpoint's, to go on with
                self.columns, self.count = columns, 0
                self.sums = torch.zeros(len(row), dtype=torch.float64, device=device)
        self.sums += row
        self.count += 1

    def means(self):
        """Return {column: average} over the open window, or over the last one if it has just closed; {} before the first step."""
        row = (self.sums / self.count).tolist() if self.count else self.last_row
        return dict(zip(self.columns, row or []))

    def latent_kld(self):
        """Return the KL of each latent in nats, (z_dim,); None before the first step."""
        return [mean for name, mean in self.means().items() if name.startswith("kld_")] or None

    def text(self):
        """Write the averages of the scalars in a line, without those that are not defined at this step (NaN)."""
        scalars = {name: mean for name, mean in self.means().items() if not name[-1].isdecimal()}
        return ", ".join(f"{name} {mean:.4g}" for name, mean in scalars.items() if not math.isnan(mean))

    def close(self, row):
        """Begin the next window. row: the averages of this one, as the log has them."""
        self.last_row, self.count = row, 0
        self.sums.zero_()

    def state_dict(self):
        return {name: getattr(self, name) for name in ("columns", "sums", "count", "last_row")}

    def load_state_dict(self, saved, device):
        """Go on with the sums of a checkpoint; old ones do not name them."""
        if "columns" in saved:
            self.columns, self.count, self.last_row = saved["columns"], saved["count"], saved["last_row"]
            self.sums = saved["sums"].to(device)


class Log:
    """log.csv: a header, and a row for each window of iterations."""

    def __init__(self, path):
        self.path, self.columns = Path(path), None

    def begin(self, last_iter):
        """Make the file ready for rows after last_iter: later ones, of a run that was killed, go.

        Where no checkpoint was found, all go: the file is kept as log.csv.old, in case --ckpt_dir was mistyped.
        """
        if self.path.exists() and not last_iter:
            self.path.replace(f"{self.path}.old")
        elif self.path.exists():
            self.write([row for row in self.rows() if int(row["iter"]) <= last_iter])

    def rows(self):
        """Read the whole rows that are there, as dicts of texts."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
        # a killed run may have left a part of one
        return [row for row in rows if row.get("iter", "").isdecimal()]

    def write(self, rows):
        """Replace the file by these rows, with a column for each name in self.columns or, without those, in the rows."""
        columns = self.columns or (list(rows[0]) if rows else [])
        lines = [columns, *([row.get(name, "") for name in columns] for row in rows)] if columns else []
        with atomic_file(self.path) as file:
            file.write("".join(",".join(line) + "\n" for line in lines).encode())

    def append(self, iteration, means):
        """Add a row of {column: average}; return its averages as a reader of the file will see them."""
        texts = {"iter": str(iteration), **{name: f"{mean:.6g}" for name, mean in means.items()}}
        if self.columns != list(texts):  # the first row, or a step logs other terms than before
            self.columns = list(texts)
            self.write(self.rows())
        with open(self.path, "a") as file:
            file.write(",".join(texts.values()) + "\n")
        return [float(text) for text in list(texts.values())[1:]]

    def flush_to_disk(self):
        if self.path.exists():
            with open(self.path) as file:
                os.fsync(file.fileno())


def read_log(path):
    """Read log.csv as {column: list of floats}; what is empty there is NaN. UserError if it is no table of numbers."""
    try:
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
        columns = dict(zip(header, zip(*rows))) if rows else dict.fromkeys(header, ())
        return {name: [float(text or "nan") for text in texts] for name, texts in columns.items()}
    except (ValueError, csv.Error):
        raise UserError(f"{path} is damaged: it is no table of numbers") from None
