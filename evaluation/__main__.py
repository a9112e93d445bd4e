"""Score codes of any representation.

    python main.py --train False --viz_name my_run --encode codes.npz
    python -m evaluation codes.npz

The file holds arrays: mu (N, z), the codes, and factors (N, K), integers, of N images in any order; and may hold logvar
(N, z), without which the active latents are not counted, and factor_roles (K,), texts such as "shape", "x" and "y",
without which higgins_paper and position_effect are left out. Rows that are no full grid of factors leave more out.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from evaluation import metrics
from utils import Parser, UserError, atomic_file, file_name, run_cli


def read_codes(path):
    """Read mu, logvar (None if not there), factors and their roles (() if not there); UserError says what is wrong."""
    needed = "it must hold mu (N, z) and factors (N, K), as main.py --encode writes them"
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        ValueError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
    ):  # text, a single array, half a file, pickles
        raise UserError(f"{path} is no .npz file of codes: {needed}") from None
    if absent := {"mu", "factors"} - arrays.keys():
        raise UserError(f"{path} has no array {' and '.join(sorted(absent))}: {needed}")
    try:
        mu, factors = metrics.checked(arrays["mu"], arrays["factors"])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    logvar, roles = arrays.get("logvar"), tuple(map(str, arrays.get("factor_roles", ())))
    if logvar is not None and logvar.shape != mu.shape:
        raise UserError(f"{path}: logvar is {logvar.shape}, but mu {mu.shape}")
    if roles and len(roles) != factors.shape[1]:
        raise UserError(f"{path}: {len(roles)} factor_roles, but {factors.shape[1]} factors")
    return mu, logvar, factors, roles


def rows_of(factors, level):
    """Choose rows: a full grid in its order, at level "fast" that of main.py --metrics fast; all rows of another sample."""
    rows = np.lexsort(factors.T[::-1])
    sizes = metrics.grid_sizes(factors[rows])
    if sizes is None:
        return np.arange(len(factors))
    return rows[metrics.subgrid(sizes, level)[0]]


def main(argv=None):
    """Run the program; returns its exit status."""
    parser = Parser(prog="python -m evaluation", description="Score codes of any representation.")
    parser.add_argument(
        "codes",
        type=file_name,
        metavar="CODES.npz",
        help="mu, factors, and logvar and factor_roles if known; as main.py --encode writes them",
    )
    parser.add_argument(
        "--metrics",
        choices=metrics.LEVELS[1:],
        default="full",
        help="fast: no DCI, every second value of large factors, half the points",
    )
    parser.add_argument(
        "--output",
        type=file_name,
        metavar="FILE",
        help="where scores are written; default: metrics.json beside the codes",
    )
    args = parser.parse_args(argv)

    def run():
        path = Path(args.output or Path(args.codes).with_name("metrics.json"))
        mu, logvar, factors, roles = read_codes(args.codes)
        rows = rows_of(factors, args.metrics)
        logvar = None if logvar is None else logvar[rows]
        scores = metrics.score(mu[rows], logvar, factors[rows], args.metrics, roles=roles)
        with atomic_file(path) as file:
            file.write(json.dumps(scores, indent=2).encode())
        print(f"{metrics.table(scores)}\n{len(rows):,} images; settings in {path}", flush=True)

    return run_cli("python -m evaluation", "interrupted: nothing is written", run)


if __name__ == "__main__":
    sys.exit(main())
