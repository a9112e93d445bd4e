"""What all pictures say of a latent alike: its KL, the factor it codes, its name, its colour, its direction."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from utils import SHOWN

COLORS = "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf".split()
STYLES = "solid", "dashed", "dotted", "dashdot"  # of latents 0 to 9, 10 to 19, ..
PERCENT = "%: the named factor's share of the latent's mutual information with all factors."
NATS = "nats: KL of the latent from the prior, per image."


def style(name):
    """Colour and line style of a curve in every picture and on the dashboard: of latent z_j, of C, or of all else."""
    if name.startswith("z_"):
        j = int(name[2:])
        return COLORS[j % 10], STYLES[j // 10 % 4]
    return ("darkgrey", "dashed") if name == "C" else ("black", "solid")


@dataclass(frozen=True)
class Latents:
    """The latents of a network at one moment, as evaluation.evaluator.Evaluator.describe() finds them.

    All but kld is None without known factors.
    """

    kld: list  # z_dim floats: KL from the prior, nats per image
    names: tuple | None = None  # of the K factors
    information: np.ndarray | None = None  # z_dim, K: mutual information with each factor, nats
    signs: list | None = None  # -1 where x, y or size falls as the latent grows, else 1

    def order(self):
        """All latents, the highest KL first."""
        return sorted(range(len(self.kld)), key=lambda j: -self.kld[j])

    def shown(self):
        """Latents with a KL above SHOWN, the highest first; the highest alone if there are none."""
        return [j for j in self.order() if self.kld[j] > SHOWN] or self.order()[:1]

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
        if self.information is None or self.kld[j] <= SHOWN or not self.information[j].any():
            return ""
        shares = self.information[j] / self.information[j].sum()  # K
        return f"{self.names[shares.argmax()]}  {100 * shares.max():.0f} %"

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
        information = np.array(self.kld)[:, None] if self.information is None else self.information
        total = information.sum(axis=1)  # z_dim
        shares = information / total.clip(1e-9)[:, None]  # z_dim, K

        def overlap(pair):
            i, j = pair
            return np.minimum(shares[i], shares[j]).sum() * min(total[i], total[j])

        pairs = combinations(self.order()[: max(2, len(self.shown()))], 2)
        return max(pairs, key=overlap, default=None)
