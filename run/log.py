"""The log of a run, log.csv: averages over windows of iterations, written row by row, and read."""

import csv
import os
from pathlib import Path

import torch

from utils import UserError, atomic_file


class Window:
    """Averages of what the steps log, since the last row of log.csv. Sums stay on the device: reading them would wait for it."""

    def __init__(self):
        self.columns, self.sums, self.count, self.last_row = [], None, 0, None

    @torch.no_grad()
    def add(self, terms, device):
        """Add a step. terms: a dict of scalars and of vectors (z_dim,), which get a column a value: kld_0, kld_1 .."""
        columns, values = [], []
        for name, value in terms.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=device)
            columns += [f"{name}_{j}" for j in range(len(value))] if value.dim() else [name]
            values.append(value.reshape(-1))
        if columns != self.columns:  # the first step of a run
            self.columns, self.count = columns, 0
            self.sums = torch.zeros(len(columns), dtype=torch.float64, device=device)
        self.sums += torch.cat(values)
        self.count += 1

    def means(self):
        """Return {column: average} over the open window, or over the last one if it has just closed; {} before the first step."""
        row = (self.sums / self.count).tolist() if self.count else self.last_row
        return dict(zip(self.columns, row or []))

    def text(self):
        """Return the averages of the scalars as a line."""
        means = self.means().items()
        return ", ".join(f"{name} {mean:.4g}" for name, mean in means if not name[-1].isdecimal())

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
    """log.csv: a header, and a row for each window of iterations, at least one."""

    def __init__(self, path):
        self.path = Path(path)

    def begin(self, last_iter):
        """Make the file ready for rows after last_iter: later ones, of a run that was killed, go.

        Where no checkpoint was found, all go: the file is kept as log.csv.old, in case --ckpt_dir was mistyped.
        """
        if self.path.exists() and not last_iter:
            self.path.replace(f"{self.path}.old")
        elif self.path.exists():
            header, *rows = self.path.read_text().splitlines()
            whole = [row for row in rows if row.count(",") == header.count(",")]  # the last may be cut short
            kept = [row for row in whole if int(row.split(",")[0]) <= last_iter]
            if not kept:
                self.path.unlink()
                return
            with atomic_file(self.path) as file:
                file.write("".join(f"{line}\n" for line in [header, *kept]).encode())

    def append(self, iteration, means):
        """Add a row of {column: average}, on the disk at once; return its averages as a reader of the file will see them."""
        texts = [f"{mean:.6g}" for mean in means.values()]
        header, row = ",".join(["iter", *means]), ",".join([str(iteration), *texts])
        if not self.path.exists():
            with atomic_file(self.path) as file:
                file.write(f"{header}\n{row}\n".encode())
            return list(map(float, texts))
        with open(self.path, "r+") as file:
            if file.readline().strip() != header:
                raise UserError(f"{self.path} has other columns than this code logs: use another --viz_name")
            file.seek(0, os.SEEK_END)
            file.write(f"{row}\n")
            file.flush()
            os.fsync(file.fileno())
        return list(map(float, texts))


def read_log(path):
    """Read log.csv as {column: list of floats}; what is empty there is NaN."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    rows = [row for row in rows if len(row) == len(header)]  # a run may be writing the last one
    columns = zip(*rows) if rows else [()] * len(header)
    return {name: [float(text or "nan") for text in texts] for name, texts in zip(header, columns)}
