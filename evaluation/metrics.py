"""Is it disentangled? The metrics of the field, as functions of two arrays.

    codes:   (N, z) floats, the means that an encoder gives to N images
    factors: (N, K) whole numbers, the values of the K factors that the images were made from

    mu, logvar = encode_all(model, data)                       # or any other representation
    indices, factors = subgrid(data.factor_sizes)
    mig(mu, factors), higgins(mu, factors, exclude=(0,)), ...

Definitions and default settings are those of disentanglement_lib (Locatello et al., 2019): codes
are means, every factor counts as discrete. Scores lie from 0 to 1, more is better, but for
active_latents (a number) and total_correlation (nats). seed fixes all that is drawn.

higgins and factor_vae look up images that share a factor's value: for them the rows have to be a full
grid of factors in its order, the last one fastest. The others take any sample. On dSprites the first and the last
orientation are one picture (0 and 360 degrees); they count as two values here, as everywhere in the field.

scikit-learn is imported where it is needed: it would add a second to the start of every training.
"""

import math

import numpy as np
import torch

from evaluation.trees import boosted_trees
from utils import ACTIVE, progress

LEVELS = ("none", "fast", "full")
SAMPLE = 10_000  # images that information of latents is measured on

# What differs between versions of scikit-learn is pinned. max_iter is large enough to converge.
LOGISTIC = dict(solver="lbfgs", C=1.0, tol=1e-4, max_iter=5000)
# One against the rest, squared hinge. The primal problem has the same solution as the dual one, found without chance.
SVM = dict(C=0.01, class_weight="balanced", dual=False, tol=1e-4, max_iter=5000)
BOOSTING = dict(n_estimators=100, learning_rate=0.1, max_depth=3)


# Codes and factors.


def subgrid(sizes, level="full"):
    """A grid of factors, or a coarser one with every n-th value of its large factors.

    sizes: of the K factors, the last one fastest. level: "full", or "fast" for every second value of a factor
    with 20 or more (dSprites: 92,160 images).
    Returns indices into the full grid, (N,), and factors, (N, K), counted from 0: a full grid themselves.
    """
    values = [np.arange(0, size, 2 if level == "fast" and size >= 20 else 1) for size in sizes]
    indices = np.arange(math.prod(sizes)).reshape(sizes)[np.ix_(*values)].ravel()
    factors = np.indices([len(v) for v in values]).reshape(len(sizes), -1).T
    return indices, factors


def fixed_sample(sizes):
    """SAMPLE random images of a grid, the same in every call, none twice: indices (N,) and factors (N, K)."""
    indices = np.random.default_rng(0).permutation(math.prod(sizes))[:SAMPLE]
    return indices, np.stack(np.unravel_index(indices, sizes), axis=1)


@torch.no_grad()
def encode_all(model, data, indices=None, batch_size=1024):
    """Encodes images once, so that every metric is a look-up in a table.

    model: has encode(x) -> mu, logvar; data: has len() and batch(indices); indices: (N,), default all.
    Returns mu and logvar, float32 (N, z) each, on the CPU: 59 MB for both on dSprites.
    """
    indices = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    parts = [
        torch.stack(model.encode(data.batch(part)))  # 2, B, z
        for part in progress(indices.split(batch_size), desc="encoding", unit="batch")
    ]
    mu, logvar = torch.cat(parts, dim=1).float().cpu()  # N, z
    return mu, logvar


def checked(codes, factors):
    """Codes as float64 and factors as arrays; ValueError, in one sentence, if they cannot be scored."""
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            f"codes {codes.shape} and factors {factors.shape} need N rows both: (N, z) and (N, K)"
        )
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise ValueError("a score needs at least 2 latents and 2 factors")
    if not np.isfinite(codes).all():
        raise ValueError("some codes are not finite")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be whole numbers, not {factors.dtype}")
    for k in np.flatnonzero((factors == factors[0]).all(axis=0)):
        raise ValueError(f"factor {k} has a single value: leave it out")
    return codes, factors


def split(codes, factors, train, test, seed):
    """Draws rows, none twice, to learn from and to be tested on: x, y, x_test, y_test.

    disentanglement_lib draws with repetition: the same where there are far more rows than drawn. With
    fewer rows than train + test all are taken, in that proportion.
    """
    rows = np.random.default_rng(seed).permutation(len(codes))[: train + test]
    cut = len(rows) * train // (train + test)
    return codes[rows[:cut]], factors[rows[:cut]], codes[rows[cut:]], factors[rows[cut:]]


def grid_sizes(factors):
    """Sizes (K,) of the full grid that factors (N, K) run through, the last one fastest."""
    values, places = zip(*(np.unique(column, return_inverse=True) for column in factors.T))
    sizes, n = [len(v) for v in values], len(factors)
    if math.prod(sizes) != n or (np.ravel_multi_index(places, sizes) != np.arange(n)).any():
        raise ValueError(
            "rows must be a full grid of factors, every combination once, the last factor fastest"
        )
    return np.array(sizes)


def share_factor(rows, like, k, sizes):
    """Rows of a grid in which factor k has the value it has in like, all others are those of rows.

    rows, like: whole numbers from 0 to N - 1; k: factors, likewise; all broadcast to one shape.
    """
    size = sizes[k]
    stride = (np.cumprod(sizes[::-1])[::-1] // sizes)[k]  # rows from one value to the next
    return rows + (like // stride % size - rows // stride % size) * stride


# Metrics that a classifier gives.


def higgins(codes, factors, seed=0, exclude=(), train=10_000, test=5_000, batch=64):
    """Higgins et al. (2017), Sec. 3: can a linear classifier tell which factor was kept fixed?

    For each point draw a factor y; for l = 1 .. batch draw two rows at random, give the second the
    first one's value of y, and take z_diff = mean over l of |z_a - z_b|, (z,). A logistic regression
    is fitted to (z_diff, y) of train points; its accuracy on test points is the score.

    exclude: factors that are never y, though they vary. (0,) leaves out shape on dSprites, as the
    paper does; () is disentanglement_lib's variant. Rows: a full grid in its order.
    1 at best; guessing gives 1 / (number of candidates). It is the most lenient of all: rotated
    latents score high as long as each factor leaves a trace of its own.
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = checked(codes, factors)
    sizes = grid_sizes(factors)
    rng = np.random.default_rng(seed)
    y = rng.choice([k for k in range(len(sizes)) if k not in exclude], size=train + test)
    a, b = rng.integers(len(codes), size=(2, train + test, batch))
    b = share_factor(b, a, y[:, None], sizes)
    z_diff = np.stack([np.abs(codes[i] - codes[j]).mean(axis=0) for i, j in zip(a, b)])  # points, z
    classifier = LogisticRegression(**LOGISTIC).fit(z_diff[:train], y[:train])
    return float(classifier.score(z_diff[train:], y[train:]))


def factor_vae(codes, factors, seed=0, train=10_000, test=5_000, batch=64, variance_points=10_000, dead=0.05):
    """Kim & Mnih (2018), Sec. 4: does the latent that varies least betray the factor kept fixed?

    For each point draw a factor and batch rows that share its value; the vote is the latent of the
    smallest local / global variance (both with ddof 1, the global one from variance_points rows).
    Each latent stands for the factor it got most votes from in train points; the score is the share of test
    points whose vote is right. Latents of standard deviation under dead have no vote; without any other: 0.

    Rows: a full grid in its order. 1 at best; a representation that tells nothing gets about 1 / K.
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
    vote = np.array([np.argmin(codes[i].var(axis=0, ddof=1) / variance) for i in rows])
    votes = np.zeros((len(sizes), len(active)))  # K, active z
    np.add.at(votes, (k[:train], vote[:train]), 1)
    stands_for = votes.argmax(axis=0)
    return float((stands_for[vote[train:]] == k[train:]).mean())


def sap(codes, factors, seed=0, train=10_000, test=5_000):
    """Kumar et al. (2018), Sec. 3, Separated Attribute Predictability: how far is the best latent ahead?

    For each latent and factor, the test accuracy of a linear support vector machine that sees this latent
    alone; the score is the mean over factors of best - second best.

    One latent and straight lines tell few of 32 values apart: even perfect codes of dSprites get only 0.18
    (each from 0 to 1) or 0.25 (standard deviation 1: the machine's penalty makes the score depend on scale).
    Compare with that, not with 1. A duplicated latent takes its factor's share away.
    """
    from sklearn.svm import LinearSVC

    x, y, x_test, y_test = split(*checked(codes, factors), train, test, seed)
    accuracy = np.empty((x.shape[1], y.shape[1]))  # z, K
    for j, k in progress(list(np.ndindex(accuracy.shape)), desc="SAP", unit="fit"):
        classifier = LinearSVC(**SVM, random_state=seed).fit(x[:, [j]], y[:, k])
        accuracy[j, k] = classifier.score(x_test[:, [j]], y_test[:, k])
    ranked = np.sort(accuracy, axis=0)
    return float((ranked[-1] - ranked[-2]).mean())


def dci(codes, factors, seed=0, train=10_000, test=5_000, jobs=None):
    """Eastwood & Williams (2018), Sec. 2: Disentanglement, Completeness and Informativeness.

    For each factor, boosted trees predict it from all latents; R (z, K) holds the importance of each latent for each factor.
    See importance_scores for the first two; informativeness is the accuracy on test rows, averaged over factors, not the
    paper's error.

    jobs: factors that are fitted at once, without all; it does not change the result.
    Returns {"disentanglement", "completeness", "informativeness"}; perfect codes get 1 each.
    """
    from joblib import Parallel, delayed

    x, y, x_test, y_test = split(*checked(codes, factors), train, test, seed)
    labels = [np.unique(column, return_inverse=True) for column in y.T]  # values, and their places

    def fit(k):
        values, places = labels[k]
        importance, found = boosted_trees(x, places, x_test, **BOOSTING, seed=seed)
        return importance, (values[found] == y_test[:, k]).mean()

    # The longest first; the scores do not depend on the order. Its threads end with the program, also on Ctrl-C.
    order = sorted(range(len(labels)), key=lambda k: -len(labels[k][0]))
    fits = Parallel(jobs or -1, prefer="threads", return_as="generator")(delayed(fit)(k) for k in order)
    importance, accuracy = zip(*progress(fits, total=len(order), desc="DCI", unit="factor"))
    disentanglement, completeness = importance_scores(np.array(importance).T)
    accuracy = float(np.mean(accuracy))
    return dict(disentanglement=disentanglement, completeness=completeness, informativeness=accuracy)


def importance_scores(R):
    """Disentanglement and completeness of an importance matrix R (z, K) (Eastwood & Williams, Sec. 2).

    Disentanglement of a latent: 1 - entropy of its row, in units of log K: 1 if it tells of one
    factor alone. Completeness of a factor: 1 - entropy of its column, in units of log z: 1 if one latent alone tells of it.
    Both are averaged with the row's, or column's, share of all importance as weight.
    """

    def concentration(R):  # of each row
        p = (R + 1e-11) / (R + 1e-11).sum(axis=1, keepdims=True)
        return 1 + (p * np.log(p)).sum(axis=1) / np.log(R.shape[1])

    weights = R if R.sum() else np.ones_like(R)
    weights = weights / weights.sum()
    return float(concentration(R) @ weights.sum(axis=1)), float(concentration(R.T) @ weights.sum(axis=0))


# Metrics that mutual information gives.


def mutual_information(codes, factors, bins=20):
    """I(z_j; v_k) of each latent and factor in nats, (z, K), from counts.

    Each latent is cut into bins of equal width over its own range. What N rows show is too large by
    about (bins - 1) (values - 1) / 2N: 0.04 nats for 40 values and 10,000 rows.
    """
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    places = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    information = np.zeros((codes.shape[1], factors.shape[1]))
    for j, z in enumerate(codes.T):
        binned = np.digitize(z, np.histogram_bin_edges(z, bins)[:-1]) - 1
        for k, place in enumerate(places):
            counts = np.zeros((bins, place.max() + 1))
            np.add.at(counts, (binned, place), 1)
            alone = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(z)  # expected if independent
            seen = counts > 0
            information[j, k] = (counts[seen] * np.log(counts[seen] / alone[seen])).sum() / len(z)
    return information


def entropy(factors):
    """H(v_k) of each factor in nats, (K,), from counts."""
    counts = [np.unique(column, return_counts=True)[1] / len(factors) for column in np.asarray(factors).T]
    return np.array([-(p * np.log(p)).sum() for p in counts])


def mig(codes, factors, seed=0, points=10_000, bins=20):
    """Chen et al. (2018), Sec. 4.1, Mutual Information Gap: is there one latent a factor, and only one?

    Mean over factors of (I(best latent; v) - I(second best; v)) / H(v), from points rows.

    1 at best, but 20 bins cannot tell 32 or 40 values apart: on dSprites perfect codes get about 0.90.
    Chen et al. themselves integrate over q(z|x) and leave shape out: their values are not comparable.
    """
    codes, factors, _, _ = split(*checked(codes, factors), points, 0, seed)
    ranked = np.sort(mutual_information(codes, factors, bins), axis=0)
    return float(((ranked[-1] - ranked[-2]) / entropy(factors)).mean())


def modularity(codes, factors, seed=0, points=10_000, bins=20):
    """Ridgeway & Mozer (2018), Sec. 3: does each latent tell of one factor only?

    Mean over latents of 1 - (sum_k I_k^2 - max_k I_k^2) / (max_k I_k^2 (K - 1)), I_k = I(z_j; v_k); 0 for a
    latent that tells nothing at all.

    1 at best. A latent that tells next to nothing counts as much as any other, and what chance
    shows in its few bits decides its part: compare only models with as many active latents.
    """
    codes, factors, _, _ = split(*checked(codes, factors), points, 0, seed)
    squared = mutual_information(codes, factors, bins) ** 2
    best = squared.max(axis=1)
    others = (squared.sum(axis=1) - best) / (np.where(best > 0, best, 1) * (squared.shape[1] - 1))
    return float(np.where(best > 0, 1 - others, 0).mean())


# Information of a latent as the decoder sees it: with the noise of q(z|x).


def latent_information(mu, logvar, factors, bins=200):
    """I(z_j; v_k) of a latent z_j ~ q(z_j|x) and a factor in nats, (z, K): 0 for a dead latent, never above its KL.

    mu, logvar: (N, z); factors: (N, K) of a random sample of images. p(z_j|v_k) is the mean of q(z_j|x) over images that
    share v_k, in bins of equal width. For 10,000 images of dSprites the result lies within 0.02 nats of that for all.

    MIG has another estimator by definition, bins of the means: there a dead latent shows how its means wobble.
    """
    mu, logvar = (torch.as_tensor(part, dtype=torch.float64) for part in (mu, logvar))
    factors = torch.as_tensor(factors)
    information = torch.zeros(mu.shape[1], factors.shape[1])
    for j, (mean, std) in enumerate(zip(mu.T, (logvar / 2).exp().clip(1e-6).T)):
        edges = torch.linspace((mean - 3 * std).min(), (mean + 3 * std).max(), bins + 1).to(mean)[1:-1]
        below = torch.special.ndtr((edges - mean[:, None]) / std[:, None])  # N, bins - 1
        ends = torch.zeros(len(mean), 1).to(mean)
        q = torch.cat([ends, below, ends + 1], dim=1).diff(dim=1)  # N, bins; each row sums to 1
        information[j] = torch.stack([bin_information(q, v) for v in factors.T])
    return np.clip(information.numpy(), 0, mean_kl(mu, logvar)[:, None])


def bin_information(q, v):
    """I(b; v) in nats of a bin b, which row i falls into with probability q[i, b], (N, bins), and its label v[i].

    N rows show too much, by a term in 1/N, which 2 I(all) - mean of I(each half) is without.
    """
    _, label = v.unique(return_inverse=True)
    sums = torch.zeros(2, int(label.max()) + 1, q.shape[1]).to(q)  # halves, labels, bins
    counts = torch.zeros(sums.shape[:2]).to(q)
    for half in (0, 1):
        sums[half].index_add_(0, label[half::2], q[half::2])
        counts[half] = torch.bincount(label[half::2], minlength=counts.shape[1])

    def information(sums, counts):
        q_v, p_v = sums / counts.clip(1)[:, None], counts / counts.sum()
        return torch.special.entr(p_v @ q_v).sum() - p_v @ torch.special.entr(q_v).sum(dim=1)

    return 2 * information(sums.sum(dim=0), counts.sum(dim=0)) - sum(map(information, sums, counts)) / 2


def top_factor(information, names, kld):
    """For each latent, the factor it is most informative about, and that factor's share: z pairs (name, share).

    The share is I(z_j; v_best) / sum_k I(z_j; v_k), 0 to 1: a part of what this latent knows, not of the factor's entropy.
    information: (z, K) nats, of latent_information; kld: (z,) nats. A dead latent, of at most ACTIVE nats, or one without
    information gets None.
    """
    return [
        (names[row.argmax()], float(row.max() / row.sum())) if kl > ACTIVE and row.sum() > 0 else None
        for row, kl in zip(information, kld)
    ]


# Metrics that need no factors.


def mean_kl(mu, logvar):
    """KL(q(z_j|x) || N(0, 1)) of each latent in nats, (z,), averaged over the images (N, z)."""
    mu, logvar = np.asarray(mu, dtype=np.float64), np.asarray(logvar, dtype=np.float64)
    return 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).mean(axis=0)


def active_latents(mu, logvar, threshold=ACTIVE):
    """Number of latents with a mean KL over threshold nats: 0 to z."""
    return int((mean_kl(mu, logvar) > threshold).sum())


def total_correlation(codes):
    """KL(N(m, S) || N(m, diag S)) in nats, m and S of codes: do latents depend on each other, at least linearly?

    As in Locatello et al. (2019): -1/2 log det of the matrix of correlations. 0 for uncorrelated
    latents, no upper end. A constant latent depends on nothing. A latent that is a sum of others would
    make it infinite: eigenvalues under 1e-6, what float32 can tell from 0, count as 1e-6, 6.9 nats each.
    """
    codes = np.asarray(codes, dtype=np.float64)
    codes = codes[:, codes.std(axis=0) > 1e-7]
    if codes.shape[1] < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(codes, rowvar=False))
    return max(0.0, float(-0.5 * np.log(eigenvalues.clip(1e-6)).sum()))


# All of them.

METRICS = {"higgins_paper": higgins, "higgins": higgins, "factor_vae": factor_vae, "mig": mig, "dci": dci}
METRICS |= {"sap": sap, "modularity": modularity}
POINTS = dict(train=10_000, test=5_000)  # that classifiers learn from and are tested on
FULL = {
    "higgins_paper": dict(exclude=(0,), **POINTS, batch=64),
    "higgins": dict(exclude=(), **POINTS, batch=64),
    "factor_vae": dict(**POINTS, batch=64, variance_points=10_000, dead=0.05),
    "mig": dict(points=10_000, bins=20),
    "dci": POINTS,
    "sap": POINTS,
    "modularity": dict(points=10_000, bins=20),
}
# Half the points for classifiers; mutual information keeps its own, because its bias depends on them. On the
# coarser grid, MIG of the same model is higher: 20 bins suffice for its 16 positions and 20 orientations.
HALF = {key: value // 2 for key, value in POINTS.items()}
FAST = {name: {**values, **HALF} if "train" in values else values for name, values in FULL.items()}
SETTINGS = {"full": FULL, "fast": {**FAST, "dci": None}}


def score(mu, logvar, factors, level="full", seed=0):
    """Every metric of a model: a dict of numbers, and of all settings under "settings".

    mu, logvar: (N, z); factors: (N, K), a full grid in its order whose factor 0 is shape; level:
    "fast", which leaves out DCI (None), or "full".
    """
    scores, jobs = {}, torch.get_num_threads()
    for name, settings in (bar := progress(SETTINGS[level].items(), desc="metrics", unit="metric")):
        bar.set_postfix_str(name, refresh=False)
        options = dict(settings or {}, seed=seed, **({"jobs": jobs} if name == "dci" else {}))
        value = METRICS[name](mu, factors, **options) if settings else None
        if name == "dci":
            value = value or dict.fromkeys(("disentanglement", "completeness", "informativeness"))
            scores |= {f"dci_{part}": value[part] for part in value}
        else:
            scores[name] = value
    about = dict(
        level=level, seed=seed, images=len(mu), factor_sizes=grid_sizes(np.asarray(factors)).tolist()
    )
    about |= {**SETTINGS[level], "active_latents": dict(threshold=ACTIVE)}
    about |= dict(logistic_regression=LOGISTIC, linear_svm=SVM, boosted_trees=BOOSTING)
    scores |= dict(active_latents=active_latents(mu, logvar), total_correlation=total_correlation(mu))
    return {**scores, "settings": about}


def table(scores):
    """Scores as text, a line each."""
    lines = []
    for name, value in scores.items():
        if name not in ("latents", "settings"):
            text = "not computed" if value is None else f"{value:.3f}" if isinstance(value, float) else value
            lines.append(f"{name:22}{text}{' nats' if name == 'total_correlation' else ''}")
    return "\n".join(lines)
