"""The log of a run, log.csv: averages over windows of iterations, written row by row, and read."""

import csv
import math
import os
from pathlib import Path

import torch

from utils import UserError, atomic_file, named, regular


class Window:
    """Sums of what the steps since the last row of the log have logged. They stay on the device: reading them would wait for it."""

    def __init__(self, terms, device):
        """terms: what a step logs, a dict of scalars and of vectors (z_dim,), which get a column a value: kld_0, kld_1 .."""
        self.columns = []
        for name, value in terms.items():
            vector = isinstance(value, torch.Tensor) and value.dim()
            self.columns += [f"{name}_{j}" for j in range(len(value))] if vector else [name]
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

    def latent_kld(self):
        """KL of each latent in nats, (z_dim,); None before the first step."""
        return [mean for name, mean in self.means().items() if name.startswith("kld_")] or None

    def text(self):
        """The averages of the scalars, in a line; without those that are not defined at this step (NaN)."""
        scalars = {name: mean for name, mean in self.means().items() if not name[-1].isdecimal()}
        return ", ".join(f"{name} {mean:.4g}" for name, mean in scalars.items() if not math.isnan(mean))

    def close(self, row):
        """Begins the next window; row: the averages of this one, as the log has them."""
        self.last_row, self.count = row, 0
        self.sums.zero_()

    def state_dict(self):
        return {name: getattr(self, name) for name in ("columns", "sums", "count", "last_row")}

    def load_state_dict(self, saved):
        """Goes on with the sums of a checkpoint; with none where it logged other terms, or did not name them."""
        if saved.get("columns") == self.columns:
            self.sums.copy_(saved["sums"])
            self.count, self.last_row = saved["count"], saved["last_row"]
        elif saved["count"]:
            print("the checkpoint logged other terms: the log's first row averages over fewer iterations")


class Log:
    """log.csv: a row for each window of iterations. columns: names, the first of which is "iter"."""

    def __init__(self, path, columns):
        self.path, self.columns = Path(path), columns

    def begin(self, last_iter, keep=False):
        """Makes the file ready for rows after last_iter: later ones go. Columns that are new are empty in earlier rows.

        keep: the file as it was becomes log.csv.old, unless a longer one has that name. It does, too, where columns change.
        """
        rows, old = self.read_rows(), self.path.with_name(f"{self.path.name}.old")
        if self.path.is_file() and (keep or rows and list(rows[0]) != self.columns):
            if not (old.exists() and old.stat().st_size > self.path.stat().st_size):
                with atomic_file(old) as file:
                    file.write(self.path.read_bytes())
        own = [row for row in rows if int(row["iter"]) <= last_iter]
        lines = [self.columns, *([row.get(name, "") for name in self.columns] for row in own)]
        with atomic_file(self.path) as file:
            file.write("".join(",".join(line) + "\n" for line in lines).encode())

    def read_rows(self):
        """The whole rows that are there, as dicts of texts; none where there is no table."""
        if not self.path.is_file():  # a pipe would be waited for
            return []
        try:
            with open(self.path, newline="", errors="replace") as file:
                rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
            return [row for row in rows if row.get("iter", "").isdecimal()]
        except csv.Error:
            return []

    def append(self, iteration, values):
        """Adds a row; returns its values as a reader of the file will see them."""
        texts = [f"{value:.6g}" for value in values]
        with named(self.path), open(self.path, "r+") as file:  # an error if someone removed it
            file.seek(0, os.SEEK_END)
            file.write(",".join([str(iteration), *texts]) + "\n")
        return [float(text) for text in texts]

    def flush_to_disk(self):
        with named(self.path), open(self.path) as file:
            os.fsync(file.fileno())


def read_log(path):
    """Reads log.csv as {column: list of floats}; what is empty there is NaN. UserError if it is no table of numbers."""
    try:
        with open(regular(Path(path)), newline="") as file:
            header, *rows = csv.reader(file)
        rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
        columns = dict(zip(header, zip(*rows))) if rows else dict.fromkeys(header, ())
        return {name: [float(text or "nan") for text in texts] for name, texts in columns.items()}
    except (ValueError, csv.Error):  # empty, no text or no numbers
        raise UserError(
            f"{path} is damaged: it is no table of numbers; without it, all but the curves can be drawn"
        ) from None
