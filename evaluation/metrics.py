"""Disentanglement metrics, each a function of two arrays.

    codes:   (N, z) floats, the means of q(z|x) for N images, or any other representation
    factors: (N, K) integers, the values of the K factors that the images were made from

    mu, logvar = encode_all(net, data)
    indices, factors = subgrid(data.factor_sizes)
    mig(mu, factors), higgins(mu, factors, exclude=(0,))

Definitions and settings are those of disentanglement_lib (Locatello et al., 2019), with every factor discrete. Scores
lie in [0, 1], higher is better, except active_latents (a count) and total_correlation (nats). seed fixes all random draws.
A metric's settings are its keyword arguments after seed.

higgins and factor_vae look up images that share a factor's value, so their rows must be a full grid of factors, the
last one fastest; the others take any sample. In dSprites, rotations by 0 and by 360 degrees are the same image and
count as two values, as everywhere in the field. scikit-learn takes a second to import: only what needs it imports it.
"""

import math

import numpy as np
import torch

from evaluation.trees import boosted_trees
from utils import ACTIVE, progress

LEVELS = ("none", "fast", "full")
SAMPLE = 10_000  # images from which a latent's mutual information is estimated

# Settings of the classifiers; max_iter is enough to converge.
LOGISTIC = dict(solver="lbfgs", C=1.0, tol=1e-4, max_iter=5000)
# One-vs-rest, squared hinge loss. Primal and dual have the same solution, but the dual solver is random.
SVM = dict(C=0.01, class_weight="balanced", dual=False, tol=1e-4, max_iter=5000)
BOOSTING = dict(n_estimators=100, learning_rate=0.1, max_depth=3)


# Codes and factors.


def subgrid(sizes, level="full"):
    """The full grid of factors, or at level "fast" every second value of a factor with 20 or more.

    sizes: of the K factors, the last one fastest. Fast is 92,160 of dSprites' 737,280 images.
    Returns indices into the full grid, (N,), and factors, (N, K), counted from 0, which are a full grid themselves.
    """
    values = [np.arange(0, size, 2 if level == "fast" and size >= 20 else 1) for size in sizes]
    indices = np.arange(math.prod(sizes)).reshape(sizes)[np.ix_(*values)].ravel()
    factors = np.indices([len(v) for v in values]).reshape(len(sizes), -1).T
    return indices, factors


def fixed_sample(sizes):
    """SAMPLE random images of a grid, distinct and the same in every call: indices (N,) and factors (N, K)."""
    indices = np.random.default_rng(0).permutation(math.prod(sizes))[:SAMPLE]
    return indices, np.stack(np.unravel_index(indices, sizes), axis=1)


@torch.no_grad()
def encode_all(net, data, indices=None, batch_size=1024):
    """Encodes the images at indices (N,), default all of data.

    net: encode(x) -> mu, logvar; data: len() and batch(indices), as from dataset.return_data.
    Returns mu and logvar, float32 (N, z) each, on the CPU: 59 MB for both on dSprites.
    """
    indices = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    parts = [
        torch.stack(net.encode(data.batch(part)))  # 2, B, z
        for part in progress(indices.split(batch_size), desc="encoding", unit="batch")
    ]
    mu, logvar = torch.cat(parts, dim=1).float().cpu()  # N, z
    return mu, logvar


def checked(codes, factors):
    """Codes as float64 and factors as arrays; ValueError if they cannot be scored."""
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(f"codes must be (N, z) and factors (N, K), not {codes.shape} and {factors.shape}")
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise ValueError("a score needs at least 2 latents and 2 factors")
    if not np.isfinite(codes).all():
        raise ValueError("some codes are not finite")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, not {factors.dtype}")
    if (constant := (factors == factors[0]).all(axis=0)).any():
        raise ValueError(f"factor {constant.argmax()} has a single value: leave it out")
    return codes, factors


def split(codes, factors, train, test, seed):
    """Draws train and test rows without replacement; returns x, y, x_test, y_test.

    Of fewer than train + test rows, all are used, in that proportion. (disentanglement_lib draws with replacement,
    which makes little difference if there are many more.)
    """
    rows = np.random.default_rng(seed).permutation(len(codes))[: train + test]
    cut = len(rows) * train // (train + test)
    return codes[rows[:cut]], factors[rows[:cut]], codes[rows[cut:]], factors[rows[cut:]]


def grid_sizes(factors):
    """Sizes (K,) of the grid that factors (N, K) run through; ValueError if they are no full grid in its order."""
    values, places = zip(*(np.unique(column, return_inverse=True) for column in factors.T))
    sizes, n = [len(v) for v in values], len(factors)
    if math.prod(sizes) != n or (np.ravel_multi_index(places, sizes) != np.arange(n)).any():
        raise ValueError(
            "rows must be a full grid: each combination of factors once, the last factor fastest"
        )
    return np.array(sizes)


def share_factor(rows, like, k, sizes):
    """Rows of a grid that differ from the given ones in factor k alone, which takes its value in row `like`.

    rows, like: integers in [0, N); k: in [0, K); all three broadcast to one shape.
    """
    size = sizes[k]
    stride = (np.cumprod(sizes[::-1])[::-1] // sizes)[k]  # rows from one value of factor k to the next
    return rows + (like // stride % size - rows // stride % size) * stride


# Metrics with a classifier.


def higgins(codes, factors, seed=0, *, exclude=(), train=10_000, test=5_000, batch=64):
    """Higgins et al. (2017), Sec. 3: can a linear classifier tell which factor was kept fixed?

    A point: draw a factor y, and batch pairs of images that share its value, with the other factors independent;
    z_diff = mean over pairs of |z_1 - z_2|, (z,). The score is the test accuracy of a logistic regression z_diff -> y.

    exclude: factors that are never kept fixed. (0,), shape in dSprites, is the paper's metric; () is disentanglement_lib's.
    Chance is 1 / (number of candidates for y). Lenient: rotated latents score high if factors differ in their z_diff.
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = checked(codes, factors)
    sizes = grid_sizes(factors)
    rng = np.random.default_rng(seed)
    y = rng.choice([k for k in range(len(sizes)) if k not in exclude], size=train + test)
    first, second = rng.integers(len(codes), size=(2, train + test, batch))
    second = share_factor(second, first, y[:, None], sizes)
    z_diff = np.stack([np.abs(codes[a] - codes[b]).mean(axis=0) for a, b in zip(first, second)])  # points, z
    classifier = LogisticRegression(**LOGISTIC).fit(z_diff[:train], y[:train])
    return float(classifier.score(z_diff[train:], y[train:]))


def factor_vae(
    codes, factors, seed=0, *, train=10_000, test=5_000, batch=64, variance_points=10_000, dead=0.05
):
    """Kim & Mnih (2018), Sec. 4: does the latent that varies least identify the factor kept fixed?

    A point: draw a factor k, and batch images that share its value; d = argmin_j Var(z_j in the batch) / Var(z_j), with
    the denominator from variance_points images. The score is the test accuracy of the majority vote of train points,
    d -> the most frequent k. Latents of standard deviation under dead are left out; 0 if none is left. Chance is 1 / K.
    """
    codes, factors = checked(codes, factors)
    sizes = grid_sizes(factors)
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(codes))[:variance_points]
    variance = codes[sample].var(axis=0, ddof=1)  # z
    active = np.flatnonzero(variance >= dead**2)
    if not len(active):
        return 0.0
    codes, variance = codes[:, active], variance[active]
    k = rng.integers(len(sizes), size=train + test)
    rows = rng.integers(len(codes), size=(train + test, batch))
    rows = share_factor(rows, rows[:, :1], k[:, None], sizes)
    d = np.array([np.argmin(codes[local].var(axis=0, ddof=1) / variance) for local in rows])
    votes = np.zeros((len(sizes), len(active)))  # K, active z
    np.add.at(votes, (k[:train], d[:train]), 1)
    majority = votes.argmax(axis=0)  # the factor of each latent
    return float((majority[d[train:]] == k[train:]).mean())


def sap(codes, factors, seed=0, *, train=10_000, test=5_000):
    """Kumar et al. (2018), Sec. 3, Separated Attribute Predictability: mean_k (S_1k - S_2k).

    S_1k and S_2k are the highest and second highest S_jk over latents j; S_jk is the test accuracy of a linear support
    vector machine that predicts factor k from latent j alone. It separates few of 32 values: perfect codes of dSprites
    get only 0.18 (latents in [0, 1]) or 0.25 (standard deviation 1: the regularised machine depends on scale).
    """
    from sklearn.svm import LinearSVC

    x, y, x_test, y_test = split(*checked(codes, factors), train, test, seed)
    S = np.empty((x.shape[1], y.shape[1]))  # z, K
    for j, k in progress(list(np.ndindex(S.shape)), desc="SAP", unit="fit"):
        classifier = LinearSVC(**SVM, random_state=seed).fit(x[:, [j]], y[:, k])
        S[j, k] = classifier.score(x_test[:, [j]], y_test[:, k])
    ranked = np.sort(S, axis=0)
    return float((ranked[-1] - ranked[-2]).mean())


def dci(codes, factors, seed=0, *, train=10_000, test=5_000):
    """Eastwood & Williams (2018), Sec. 2: Disentanglement, Completeness and Informativeness, as a dict.

    Boosted trees predict each factor from all latents. R (z, K) holds the importance of each latent for each factor,
    from which importance_scores() computes the first two. Informativeness is the test accuracy, averaged over factors
    (the paper's is an error). Factors are fitted in parallel, on torch's number of threads.
    """
    from joblib import Parallel, delayed

    x, y, x_test, y_test = split(*checked(codes, factors), train, test, seed)

    def fit(k):
        values, labels = np.unique(y[:, k], return_inverse=True)
        importance, predicted = boosted_trees(x, labels, x_test, **BOOSTING, seed=seed)
        return importance, (values[predicted] == y_test[:, k]).mean()

    order = sorted(range(y.shape[1]), key=lambda k: -len(np.unique(y[:, k])))  # the slowest first
    parallel = Parallel(torch.get_num_threads(), prefer="threads", return_as="generator")
    fits = progress(parallel(delayed(fit)(k) for k in order), total=len(order), desc="DCI", unit="factor")
    R, accuracy = zip(*fits)  # K, z and K
    disentanglement, completeness = importance_scores(np.array(R).T)
    informativeness = float(np.mean(accuracy))
    return dict(disentanglement=disentanglement, completeness=completeness, informativeness=informativeness)


def importance_scores(R):
    """Disentanglement and completeness from an importance matrix R (z, K) (Eastwood & Williams, Sec. 2).

    D = sum_j rho_j (1 - H_K(P_j)): P_j is row j of R, normalised, H_K its entropy to base K and rho_j the row's share of
    all importance. C is the same of the columns, with entropies to base z.
    """

    def concentration(R):  # of each row
        P = (R + 1e-11) / (R + 1e-11).sum(axis=1, keepdims=True)
        return 1 + (P * np.log(P)).sum(axis=1) / np.log(R.shape[1])

    weights = R if R.sum() else np.ones_like(R)
    weights = weights / weights.sum()
    return float(concentration(R) @ weights.sum(axis=1)), float(concentration(R.T) @ weights.sum(axis=0))


# Metrics from mutual information.


def mutual_information(codes, factors, bins=20):
    """I(z_j; v_k) in nats, (z, K), from counts, with each latent in bins of equal width over its range.

    N images overestimate it by about (bins - 1) (values - 1) / 2N: 0.04 nats for 40 values and 10,000 images.
    """
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for k, v in enumerate(factors.T):
        labels = np.unique(v, return_inverse=True)[1]
        label_edges = np.arange(labels.max() + 2) - 0.5
        for j, z in enumerate(codes.T):
            counts = np.histogram2d(z, labels, (bins, label_edges))[0]  # bins, values
            independent = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(z)
            seen = counts > 0
            information[j, k] = (counts[seen] * np.log(counts[seen] / independent[seen])).sum() / len(z)
    return information


def entropy(factors):
    """H(v_k) of each factor in nats, (K,), from counts."""
    frequencies = [np.unique(v, return_counts=True)[1] / len(factors) for v in np.asarray(factors).T]
    return np.array([-(p * np.log(p)).sum() for p in frequencies])


def mig(codes, factors, seed=0, *, points=10_000, bins=20):
    """Chen et al. (2018), Sec. 4.1, Mutual Information Gap: mean_k (I_1k - I_2k) / H(v_k).

    I_1k and I_2k are the highest and second highest I(z_j; v_k) over latents j, from points images. 20 bins cannot
    separate 32 or 40 values: perfect codes of dSprites get about 0.90. Chen et al. themselves integrate over q(z|x) and
    leave shape out, so their values are not comparable.
    """
    codes, factors, _, _ = split(*checked(codes, factors), points, 0, seed)
    ranked = np.sort(mutual_information(codes, factors, bins), axis=0)
    return float(((ranked[-1] - ranked[-2]) / entropy(factors)).mean())


def modularity(codes, factors, seed=0, *, points=10_000, bins=20):
    """Ridgeway & Mozer (2018), Sec. 3: mean_j 1 - (sum_k I_jk^2 - max_k I_jk^2) / (max_k I_jk^2 (K - 1)).

    I_jk = I(z_j; v_k), from points images; a latent without any counts as 0. Nearly dead latents count as much as
    others and get a value by chance, so compare only models with the same number of active latents.
    """
    codes, factors, _, _ = split(*checked(codes, factors), points, 0, seed)
    squared = mutual_information(codes, factors, bins) ** 2
    best = squared.max(axis=1)
    others = (squared.sum(axis=1) - best) / (np.where(best > 0, best, 1) * (squared.shape[1] - 1))
    return float(np.where(best > 0, 1 - others, 0).mean())


# Mutual information as the decoder sees it: with the noise of q(z|x).


def latent_information(mu, logvar, factors, bins=200):
    """I(z_j; v_k) in nats, (z, K), of a sampled latent z_j ~ q(z_j|x): 0 for a dead latent, at most its KL.

    mu, logvar: (N, z); factors: (N, K) of a random sample of images. p(z_j|v_k) is the mean of q(z_j|x) over images
    with that v_k, in bins of equal width. 10,000 images of dSprites give it to within 0.02 nats. (MIG is defined with
    another estimator, bins of the means, in which even a dead latent may seem informative.)
    """
    mu, logvar = (torch.as_tensor(array, dtype=torch.float64) for array in (mu, logvar))
    factors = torch.as_tensor(factors)
    std = (logvar / 2).exp().clip(1e-6)
    information = torch.zeros(mu.shape[1], factors.shape[1])
    for j in range(len(information)):
        mean, sigma = mu[:, [j]], std[:, [j]]  # N, 1
        edges = torch.linspace((mean - 3 * sigma).min(), (mean + 3 * sigma).max(), bins + 1).to(mean)
        edges[0], edges[-1] = -math.inf, math.inf
        q = torch.special.ndtr((edges - mean) / sigma).diff(dim=1)  # N, bins; each row sums to 1
        information[j] = torch.stack([bin_information(q, v) for v in factors.T])
    return np.clip(information.numpy(), 0, mean_kl(mu, logvar)[:, None])


def bin_information(q, v):
    """I(b; v) in nats of a bin b with probabilities q (N, bins) for each image and of its label v (N,).

    The estimate from N images is too high by a term in 1/N; 2 I(all) - mean of I(each half) cancels it.
    """
    _, label = v.unique(return_inverse=True)
    sums = torch.zeros(2, int(label.max()) + 1, q.shape[1]).to(q)  # halves, labels, bins
    counts = torch.zeros(sums.shape[:2]).to(q)
    for half in (0, 1):
        sums[half].index_add_(0, label[half::2], q[half::2])
        counts[half] = torch.bincount(label[half::2], minlength=counts.shape[1])

    def information(sums, counts):  # H(b) - H(b|v)
        q_v, p_v = sums / counts.clip(1)[:, None], counts / counts.sum()
        return torch.special.entr(p_v @ q_v).sum() - p_v @ torch.special.entr(q_v).sum(dim=1)

    return 2 * information(sums.sum(dim=0), counts.sum(dim=0)) - sum(map(information, sums, counts)) / 2


def top_factor(information, names, kld):
    """For each latent, the factor it is most informative about and that factor's share of its mutual information.

    information: (z, K) nats, of latent_information; names: of the K factors; kld: (z,) nats.
    Returns z pairs (name, share in [0, 1]), None for latents that are dead (KL of at most ACTIVE) or uninformative.
    """
    return [
        (names[row.argmax()], float(row.max() / row.sum())) if kl > ACTIVE and row.sum() > 0 else None
        for row, kl in zip(information, kld)
    ]


# Metrics without factors.


def mean_kl(mu, logvar):
    """KL(q(z_j|x) || N(0, 1)) of each latent in nats, (z,), averaged over the images (N, z)."""
    mu, logvar = np.asarray(mu, dtype=np.float64), np.asarray(logvar, dtype=np.float64)
    return 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).mean(axis=0)


def active_latents(mu, logvar):
    """Number of latents with a mean KL over ACTIVE nats."""
    return int((mean_kl(mu, logvar) > ACTIVE).sum())


def total_correlation(codes):
    """KL(N(m, S) || N(m, diag S)) in nats, with m and S the mean and covariance of codes (Locatello et al., 2019).

    Equals -1/2 log det of the correlation matrix. Constant latents are left out. Eigenvalues under 1e-6, about the
    precision of float32, count as 1e-6: linearly dependent latents would make it infinite.
    """
    codes = np.asarray(codes, dtype=np.float64)
    codes = codes[:, codes.std(axis=0) > 1e-7]
    if codes.shape[1] < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(codes, rowvar=False))
    return max(0.0, float(-0.5 * np.log(eigenvalues.clip(1e-6)).sum()))


# All of them.

METRICS = {  # name: function, settings that are not its defaults
    "higgins_paper": (higgins, dict(exclude=(0,))),
    "higgins": (higgins, {}),
    "factor_vae": (factor_vae, {}),
    "mig": (mig, {}),
    "dci": (dci, {}),
    "sap": (sap, {}),
    "modularity": (modularity, {}),
}


def settings_of(level):
    """Keyword arguments of each metric of a level.

    "full": as published. "fast": no DCI, and half the points for classifiers. MIG and modularity keep theirs, as their
    bias depends on it; yet on the coarser grid MIG is higher, as 20 bins separate 16 positions and 20 orientations.
    """
    settings = {
        name: {**(metric.__kwdefaults__ or {}), **changed} for name, (metric, changed) in METRICS.items()
    }
    if level == "fast":
        settings.pop("dci", None)
        for each in settings.values():
            each |= {key: each[key] // 2 for key in ("train", "test") if key in each}
    return settings


def score(mu, logvar, factors, level="full", seed=0):
    """Every metric of a level, {name: number}, and all settings under "settings".

    mu, logvar: (N, z); factors: (N, K), a full grid in its order with shape as factor 0; level: "full" or "fast".
    """
    scores, settings = {}, settings_of(level)
    for name, arguments in progress(settings.items(), desc="metrics", unit="metric"):
        value = METRICS[name][0](mu, factors, seed, **arguments)
        if isinstance(value, dict):
            scores |= {f"{name}_{part}": number for part, number in value.items()}
        else:
            scores[name] = value
    scores |= dict(active_latents=active_latents(mu, logvar), total_correlation=total_correlation(mu))
    sizes = grid_sizes(np.asarray(factors)).tolist()
    about = dict(level=level, seed=seed, images=len(mu), factor_sizes=sizes)
    about |= {**settings, "active_latents": dict(threshold=ACTIVE)}
    about |= dict(logistic_regression=LOGISTIC, linear_svm=SVM, boosted_trees=BOOSTING)
    return {**scores, "settings": about}


def table(scores):
    """Scores as text, one per line."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    digits = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in numbers.items()}
    units = {"total_correlation": " nats"}
    return "\n".join(f"{name:22}{text}{units.get(name, '')}" for name, text in digits.items())
