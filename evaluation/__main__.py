"""Score codes of any representation.

    python main.py --train False --viz_name my_run --encode codes.npz
    python -m evaluation codes.npz

The file holds arrays: mu (N, z), the codes, and factors (N, K), integers, of N images in any order; and may hold logvar
(N, z), without which the active latents are not counted, and factor_roles (K,), texts such as "shape", "x" and "y",
without which higgins_paper and position_effect are left out. Rows that are no full grid of factors leave more out.
"""

import sys
from pathlib import Path

import numpy as np

from evaluation import metrics
from utils import Parser, UserError, file_name, first_line, run_cli


def read_codes(path):
    """Read mu, logvar (None if not there), factors and their roles (() if not there); UserError if they cannot be scored."""
    try:
        with np.load(path) as file:
            mu, factors = metrics.checked(file["mu"], file["factors"])
            logvar = file["logvar"] if "logvar" in file else None
            roles = tuple(map(str, file["factor_roles"])) if "factor_roles" in file else ()
        if logvar is not None and logvar.shape != mu.shape or roles and len(roles) != factors.shape[1]:
            raise ValueError("logvar must have the shape of mu, and factor_roles a text for each factor")
        return mu, logvar, factors, roles
    except Exception as error:  # of numpy and zipfile, for as many kinds of wrong files
        needed = "it must hold mu (N, z) and factors (N, K), as main.py --encode writes them"
        raise UserError(f"{path} cannot be scored: {first_line(error)}; {needed}") from None


def main(argv=None):
    """Run the program; return its exit status."""
    parser = Parser(prog="python -m evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("codes", type=file_name, metavar="CODES.npz", help="as main.py --encode writes them")
    parser.add_argument("--metrics", choices=metrics.LEVELS[1:], default="full", help="as of main.py")
    parser.add_argument("--output", type=file_name, help="default: metrics.json beside the codes")
    args = parser.parse_args(argv)

    def run():
        mu, logvar, factors, roles = read_codes(args.codes)
        rows = np.lexsort(factors.T[::-1])  # a full grid comes into its order
        if (sizes := metrics.grid_sizes(factors[rows])) is not None:
            rows = rows[metrics.subgrid(sizes, args.metrics)[0]]  # those of main.py
        logvar = None if logvar is None else logvar[rows]
        scores = metrics.score(mu[rows], logvar, factors[rows], args.metrics, roles=roles)
        metrics.write(scores, Path(args.output or Path(args.codes).with_name("metrics.json")))

    return run_cli("python -m evaluation", "interrupted: nothing is written", run)


if __name__ == "__main__":
    sys.exit(main())
