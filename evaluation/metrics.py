"""Disentanglement metrics, each a function of two arrays.

    codes:   (N, z) floats, the means of q(z|x) for N images, or any other representation
    factors: (N, K) integers, the values of the K factors that the images were made from

    mu, _ = encode_all(net, data)               # evaluation.evaluator
    _, factors = subgrid(data.factor_sizes)
    mig(mu, factors), higgins(mu, factors, exclude=(0,))

Definitions and settings are those of disentanglement_lib (Locatello et al., 2019), with every factor discrete. Scores
lie in [0, 1], higher is better, except position_effect (lower is better) and active_latents (a count). seed fixes all
random draws. A metric's settings are its keyword arguments after seed.

higgins, factor_vae and total_effect look up images by their factors, so their rows must be a full grid of factors, the
last one fastest; the others take any sample. In dSprites, rotations by 0 and by 360 degrees are the same image and count
as two values, as everywhere in the field. What needs scikit-learn imports it, as that takes a second.
"""

import json
import math

import numpy as np
import torch

from evaluation.information import mean_kl, mutual_information, position_effect
from utils import ACTIVE, SHOWN, atomic_file, progress

LEVELS = ("none", "fast", "full")


class NoGridError(ValueError):
    """The metric needs a full grid of factors."""


# Settings of the classifiers; max_iter is enough to converge.
LOGISTIC = dict(solver="lbfgs", C=1.0, tol=1e-4, max_iter=5000)
# One-vs-rest, squared hinge loss. Primal and dual have the same solution, but the dual solver is random.
SVM = dict(C=0.01, class_weight="balanced", dual=False, tol=1e-4, max_iter=5000)
BOOSTING = dict(n_estimators=100, learning_rate=0.1, max_depth=3)


# Codes and factors.


def subgrid(sizes, level="full"):
    """List the full grid of factors, or at level "fast" every second value of a factor with 20 or more.

    sizes: of the K factors, the last one fastest. Fast is 92,160 of dSprites' 737,280 images.
    Returns indices into the full grid, (N,), and factors, (N, K), counted from 0, which are a full grid themselves.
    """
    values = [np.arange(0, size, 2 if level == "fast" and size >= 20 else 1) for size in sizes]
    indices = np.arange(math.prod(sizes)).reshape(sizes)[np.ix_(*values)].ravel()
    factors = np.indices([len(v) for v in values]).reshape(len(sizes), -1).T
    return indices, factors


def checked(codes, factors):
    """Return codes as float64 and factors as arrays; ValueError if they cannot be scored."""
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    tables = codes.ndim == factors.ndim == 2 and len(codes) == len(factors)
    if not tables or codes.shape[1] < 2 or factors.shape[1] < 2:
        needed = "codes must be (N, z) and factors (N, K), of at least 2 latents and 2 factors"
        raise ValueError(f"{needed}, not {codes.shape} and {factors.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("some codes are not finite")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, not {factors.dtype}")
    if (constant := (factors == factors[0]).all(axis=0)).any():
        raise ValueError(f"factor {constant.argmax()} has a single value: leave it out")
    return codes, factors


def split(codes, factors, train, test, seed):
    """Draw train and test rows without replacement; returns x, y, x_test, y_test.

    Of fewer than train + test rows, all are used, in that proportion. (disentanglement_lib draws with replacement,
    which makes little difference if there are many more.)
    """
    rows = np.random.default_rng(seed).permutation(len(codes))[: train + test]
    cut = len(rows) * train // (train + test)
    return codes[rows[:cut]], factors[rows[:cut]], codes[rows[cut:]], factors[rows[cut:]]


def grid_sizes(factors):
    """Find the sizes (K,) of the grid that factors (N, K) run through; None if they are no full grid in its order."""
    values, places = zip(*(np.unique(column, return_inverse=True) for column in factors.T))
    sizes = np.array([len(v) for v in values])
    full = math.prod(sizes.tolist()) == len(factors)
    return sizes if full and (np.ravel_multi_index(places, sizes) == np.arange(len(factors))).all() else None


def checked_grid(codes, factors):
    """Return codes as float64 and the sizes of the grid of factors; ValueError if they cannot be scored."""
    codes, factors = checked(codes, factors)
    if (sizes := grid_sizes(factors)) is None:
        raise NoGridError("rows must be a full grid: each combination of factors once, the last one fastest")
    return codes, sizes


def share_factor(rows, like, k, sizes):
    """Find the rows of a grid that differ from the given ones in factor k alone, which takes its value in row `like`.

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

    codes, sizes = checked_grid(codes, factors)
    rng = np.random.default_rng(seed)
    y = rng.choice([k for k in range(len(sizes)) if k not in exclude], size=train + test)
    first, second = rng.integers(len(codes), size=(2, train + test, batch))
    second = share_factor(second, first, y[:, None], sizes)
    z_diff = np.stack([np.abs(codes[a] - codes[b]).mean(axis=0) for a, b in zip(first, second)])  # points, z
    classifier = LogisticRegression(**LOGISTIC).fit(z_diff[:train], y[:train])
    return float(classifier.score(z_diff[train:], y[train:]))


def factor_vae(codes, factors, seed=0, *, train=10_000, test=5_000, batch=64, dead=0.05):
    """Kim & Mnih (2018), Sec. 4: does the latent that varies least identify the factor kept fixed?

    A point: draw a factor k, and batch images that share its value; d = argmin_j Var(z_j in the batch) / Var(z_j), with
    the denominator from all images. The score is the test accuracy of the majority vote of train points, d -> the most
    frequent k. Latents of standard deviation under dead are left out; 0 if none is left. Chance is 1 / K.
    """
    codes, sizes = checked_grid(codes, factors)
    rng = np.random.default_rng(seed)
    variance = codes.var(axis=0, ddof=1)  # z
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
    from sklearn.ensemble import GradientBoostingClassifier

    x, y, x_test, y_test = split(*checked(codes, factors), train, test, seed)

    def fit(k):
        trees = GradientBoostingClassifier(**BOOSTING, random_state=seed).fit(x, y[:, k])
        return trees.feature_importances_, trees.score(x_test, y_test[:, k])

    parallel = Parallel(torch.get_num_threads(), prefer="threads")
    R, accuracy = zip(*parallel(delayed(fit)(k) for k in range(y.shape[1])))  # K, z and K
    disentanglement, completeness = importance_scores(np.array(R).T)
    informativeness = float(np.mean(accuracy))
    return dict(disentanglement=disentanglement, completeness=completeness, informativeness=informativeness)


def importance_scores(R):
    """Compute disentanglement and completeness from an importance matrix R (z, K) (Eastwood & Williams, Sec. 2).

    D = sum_j rho_j (1 - H_K(P_j)): P_j is row j of R, normalised, H_K its entropy to base K and rho_j the row's share of
    all importance. C is the same of the columns, with entropies to base z.
    """
    from scipy.stats import entropy  # of what it normalises

    R = R + 1e-11
    rows, columns = (1 - entropy(R, base=R.shape[1 - axis], axis=1 - axis) for axis in (0, 1))  # z and K
    return float(rows @ R.sum(axis=1) / R.sum()), float(columns @ R.sum(axis=0) / R.sum())


# Metrics from mutual information.


def mig(codes, factors, seed=0, *, points=10_000, samples=10, bins=20):
    """Chen et al. (2018), Sec. 4.1, Mutual Information Gap: mean_k (I_1k - I_2k) / H(v_k).

    I_1k and I_2k are the highest and second highest I(z_j; v_k) over latents j, from points images; the score is the mean
    over samples of them, as one varies by 0.01. 20 bins cannot separate 32 or 40 values: perfect codes of dSprites get
    about 0.90. Chen et al. themselves integrate over q(z|x) and leave shape out: their values are not comparable.
    """
    from sklearn.metrics import mutual_info_score

    codes, factors = checked(codes, factors)
    gaps = []
    for sample in range(samples):
        z, v, _, _ = split(codes, factors, points, 0, (seed, sample))
        ranked = np.sort(mutual_information(z, v, bins), axis=0)
        entropy = [mutual_info_score(values, values) for values in v.T]  # H(v) = I(v; v)
        gaps.append((ranked[-1] - ranked[-2]) / entropy)
    return float(np.mean(gaps))


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


# Metrics from interventions: factors are redrawn, others stay as they are.


def irs(codes, factors, seed=0, *, points=10_000, bins=20, quantile=0.99):
    """Suter et al. (2019), Sec. 4, Interventional Robustness Score: does a latent depend on one factor alone?

    Of the images that share a value of factor k, the quantile of |z_j - their mean|, averaged over values and divided by
    the largest |z_j - mean| of all points images, is 1 - R_jk. The score is the mean of max_k R_jk over latents, weighted
    by that largest deviation. As in disentanglement_lib, factors are binned, and 0.99 stands for the paper's maximum.
    """
    codes, factors, _, _ = split(*checked(codes, factors), points, 0, seed)
    codes = codes[:, codes.std(axis=0) > 0]
    if not codes.size:
        return 0.0
    largest = np.abs(codes - codes.mean(axis=0)).max(axis=0)  # z
    R = np.empty((codes.shape[1], factors.shape[1]))  # z, K
    for k, v in enumerate(factors.T):
        group = np.digitize(v, np.linspace(v.min(), v.max(), bins + 1)[:-1])
        alike = [codes[group == value] for value in np.unique(group)]
        deviations = [np.quantile(np.abs(z - z.mean(axis=0)), quantile, axis=0) for z in alike]  # values, z
        R[:, k] = 1 - np.mean(deviations, axis=0) / largest
    return float(np.average(R.max(axis=1), weights=largest))


def total_effect(codes, factors, seed=0, *, points=10_000):
    """Compute the total-effect index of each factor on each latent, (z, K) (Sobol; Saltelli et al., 2010, Table 2, f).

    T_jk = E[(z_j - z_j')^2] / (2 Var z_j), with z' the code of the same image but for factor k, which is drawn anew: the
    share of the variance of z_j that is left when all factors but k are known. Rows add up to 1 for a sum of functions of
    one factor each, and to more where factors act together. Constant latents get 0.
    """
    codes, sizes = checked_grid(codes, factors)
    variance = codes.var(axis=0)[:, None]  # z, 1
    rng = np.random.default_rng(seed)
    rows, others = rng.integers(len(codes), size=(2, points))
    changes = [codes[rows] - codes[share_factor(rows, others, k, sizes)] for k in range(len(sizes))]
    return np.mean(np.square(changes), axis=1).T / (2 * np.where(variance > 0, variance, 1))  # z, K


# All of them.

METRICS = {
    "higgins_paper": higgins,  # never keeps shape fixed
    "higgins": higgins,
    "factor_vae": factor_vae,
    "mig": mig,
    "dci": dci,
    "sap": sap,
    "modularity": modularity,
    "irs": irs,
    "total_effect": total_effect,
}


def settings_of(level, roles):
    """List the keyword arguments of each metric of a level; roles: of the factors, see score().

    "full": as published. "fast": no DCI, and half the points for classifiers. MIG and modularity keep theirs, as their
    bias depends on it; yet on the coarser grid MIG is higher, as 20 bins separate 16 positions and 20 orientations.
    """
    settings = {name: dict(metric.__kwdefaults__ or {}) for name, metric in METRICS.items()}
    if "shape" in roles:
        settings["higgins_paper"]["exclude"] = (roles.index("shape"),)
    else:
        del settings["higgins_paper"]
    if level == "fast":
        del settings["dci"]
        for each in settings.values():
            each |= {key: each[key] // 2 for key in ("train", "test") if key in each}
    return settings


def score(mu, logvar, factors, level="full", seed=0, roles=()):
    """Compute every metric of a level, {name: number}, with all settings under "settings".

    mu: (N, z); logvar: (N, z), or None for codes without, whose active latents are not counted; factors: (N, K); level:
    "full" or "fast"; roles: of the K factors, such as ("shape", "scale", "rotation", "x", "y"), may be empty: without
    shape there is no "higgins_paper", without x and y no "position_effect". "total_effect" is a matrix, z rows of K: 0
    for latents with a KL under SHOWN, whose means are next to constant.
    """
    codes, factors = checked(mu, factors)
    settings, scores, left_out = settings_of(level, roles), {}, []
    for name, arguments in progress(settings.items(), desc="metrics", unit="metric"):
        try:
            value = METRICS[name](codes, factors, seed, **arguments)
        except NoGridError:
            left_out.append(name)
            continue
        if isinstance(value, dict):
            scores |= {f"{name}_{part}": number for part, number in value.items()}
        else:
            scores[name] = np.asarray(value).tolist()
    kld = np.full(codes.shape[1], np.inf) if logvar is None else mean_kl(mu, logvar)  # z
    if logvar is not None:
        scores["active_latents"] = int((kld > ACTIVE).sum())
    if "total_effect" in scores:
        effect = np.where(kld[:, None] > SHOWN, scores["total_effect"], 0)  # z, K
        scores["total_effect"] = effect.tolist()
        if {"x", "y"} <= set(roles):
            scores["position_effect"] = position_effect(effect, roles)
    settings |= dict(level=level, seed=seed, images=len(codes), roles=list(roles), left_out=left_out)
    settings["factor_sizes"] = [len(np.unique(values)) for values in factors.T]
    settings["thresholds"] = dict(active_latents=ACTIVE, total_effect=SHOWN)  # nats of KL
    settings |= dict(logistic_regression=LOGISTIC, linear_svm=SVM, boosted_trees=BOOSTING)
    return {**scores, "settings": settings}


def write(scores, path):
    """Write scores to path as JSON; print them, one number per line, and what was left out."""
    with atomic_file(path) as file:
        file.write(json.dumps(scores, indent=2).encode())
    for name, value in scores.items():
        if isinstance(value, (int, float)):
            print(f"{name:22}{value if isinstance(value, int) else f'{value:.3f}'}")
    settings = scores["settings"]
    if settings["left_out"]:
        print(f"left out, as the rows are no full grid of factors: {', '.join(settings['left_out'])}")
    print(f"{settings['images']:,} images; settings in {path}", flush=True)
