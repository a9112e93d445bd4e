"""What all pictures say of a latent alike: its KL, the factor it codes, its name, its colour, its direction."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from utils import SHOWN

COLORS = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
STYLES = "solid", "dashed", "dotted", "dashdot"  # of latents 0 to 9, 10 to 19, ..
PERCENT = "%: the named factor's share of the latent's mutual information with all factors."
NATS = "nats: KL of the latent from the prior, per image."


def color(j):
    """Colour and line style of latent j in every picture and on the dashboard."""
    return COLORS[j % 10], STYLES[j // 10 % 4]


def vectors(log, name):
    """The columns name_0, name_1, .. of a log {column: values}, as {0: values, 1: values, ..}."""
    found = {}
    for column, values in log.items():
        prefix, _, j = column.rpartition("_")
        if prefix == name and j.isdecimal():
            found[int(j)] = values
    return found


@dataclass(frozen=True)
class Latents:
    """The latents of a network at one moment, as evaluation.evaluator.Evaluator.describe() finds them.

    All but kld is None without known factors.
    """

    kld: list  # z_dim floats: KL from the prior, nats per image
    top_factor: list | None = None  # (factor, share) or None, see evaluation.information.top_factor
    information: np.ndarray | None = None  # z_dim, K: mutual information with each factor, nats
    signs: list | None = None  # -1 where x, y or size falls as the latent grows, else 1

    def shown(self):
        """Latents with a KL above SHOWN, the highest first; the highest alone if there are none."""
        order = sorted(range(len(self.kld)), key=lambda j: -self.kld[j])
        return [j for j in order if self.kld[j] > SHOWN] or order[:1]

    def not_shown(self):
        """How many latents shown() leaves out: "7 latents under 0.1 nats not shown"; "" for none."""
        count = len(self.kld) - len(self.shown())
        return f"{count} latent{'s' * (count > 1)} under {SHOWN} nats not shown" if count else ""

    def notes(self):
        """Lines that stand below a picture: what the parts of a label mean, and how many latents are left out."""
        percent = PERCENT if any(map(self.factor, self.shown())) else ""
        return "\n".join(filter(None, [percent, NATS, self.not_shown()]))

    def factor(self, j):
        """The factor that latent j is most informative about and its share, "posX  93 %"; "" for none, or if it is not shown."""
        top = self.top_factor and self.kld[j] > SHOWN and self.top_factor[j]
        return f"{top[0]}  {100 * top[1]:.0f} %" if top else ""

    def label(self, j, separator="\n", signed=False):
        """Name of latent j: its factor and its KL, as in "posX  93 %", "z_3  4.12 nats"; signed: -z_3 where sign(j) is -1."""
        minus = "-" if signed and self.sign(j) < 0 else ""
        return separator.join(filter(None, [self.factor(j), f"{minus}z_{j}  {self.kld[j]:.2f} nats"]))

    def sign(self, j):
        """The direction in which traversals go, so that x goes right, y down and size up: 1, or -1 for from high to low."""
        return self.signs[j] if self.signs else 1

    def plane(self):
        """The two latents that share most, the higher KL first; None if there is only one latent.

        Of all pairs shown, the one with the largest sum_k min(P_ik, P_jk) min(I_i, I_j), where I_j is the sum of latent j's
        information about the factors k and P_jk the share of factor k in it: both code the same factors, and neither codes
        little. Without known factors, the two with the highest KL.
        """
        pairs = list(combinations(self.shown(), 2))
        if self.information is None or not pairs:
            two = sorted(range(len(self.kld)), key=lambda j: -self.kld[j])[:2]
            return tuple(two) if len(two) == 2 else None
        total = self.information.sum(axis=1)  # z_dim
        shares = self.information / total.clip(1e-9)[:, None]  # z_dim, K

        def overlap(pair):
            i, j = pair
            return np.minimum(shares[i], shares[j]).sum() * min(total[i], total[j])

        return max(pairs, key=overlap)
