"""Metrics: what they must say of codes that are known to be good or bad, and that each is its definition."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from evaluation import metrics
from evaluation.metrics import (
    SAMPLE,
    active_latents,
    dci,
    encode_all,
    factor_vae,
    higgins,
    importance_scores,
    latent_information,
    mean_kl,
    mig,
    modularity,
    mutual_information,
    sap,
    score,
    split,
    subgrid,
    top_factor,
    total_correlation,
)
from model import BetaVAE_B
from prepare import dsprites
from utils import ACTIVE

SIZES = (3, 4, 5, 6)
FACTORS = subgrid(SIZES)[1]  # 360, 4
POINTS = dict(train=1000, test=500)


def perfect(factors=FACTORS):
    """Each factor in a latent of its own, of standard deviation 1."""
    return (factors - factors.mean(axis=0)) / factors.std(axis=0)


def rotated():
    """The same, turned so that every latent holds as much of each factor."""
    return perfect() @ np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def noise(n=len(FACTORS), z=4):
    return np.random.default_rng(4).normal(size=(n, z))


def mixed():
    """Neither good nor bad: leaning latents, noise, and a weak one."""
    turn = np.eye(4, 5) + 0.4 * np.random.default_rng(5).normal(size=(4, 5))
    return perfect() @ turn + 0.3 * noise(z=5)


def all_scores(codes, seed=0):
    parts = dci(codes, FACTORS, seed)
    return dict(
        higgins=higgins(codes, FACTORS, seed, **POINTS),
        factor_vae=factor_vae(codes, FACTORS, seed, **POINTS),
        mig=mig(codes, FACTORS, seed),
        sap=sap(codes, FACTORS, seed),
        modularity=modularity(codes, FACTORS, seed),
        **parts,
    )


BOOSTING = dict(metrics.BOOSTING)


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """Boosting with a fifth of its rounds: as good on so few rows, and quicker."""
    rounds, metrics.BOOSTING["n_estimators"] = metrics.BOOSTING["n_estimators"], 20
    yield
    metrics.BOOSTING["n_estimators"] = rounds


@pytest.fixture(scope="module")
def perfect_scores():
    return all_scores(perfect())


# What a score must say.


def test_perfect_codes_reach_the_ceiling_of_every_metric(perfect_scores):
    for name in (
        "higgins",
        "factor_vae",
        "mig",
        "modularity",
        "disentanglement",
        "completeness",
        "informativeness",
    ):
        assert perfect_scores[name] > 0.99, name
    assert perfect_scores["sap"] > 0.25  # of one latent and straight lines; far above the rest below
    assert total_correlation(perfect()) == pytest.approx(0, abs=1e-9)


def test_perfect_codes_of_dsprites_reach_the_ceilings_that_the_docstrings_state():
    factors = subgrid(dsprites.FACTOR_SIZES)[1]
    codes = perfect(factors)
    assert higgins(codes, factors, **POINTS) == higgins(codes, factors, exclude=(0,), **POINTS) == 1
    assert factor_vae(codes, factors, **POINTS) == 1
    assert mig(codes, factors) == pytest.approx(0.90, abs=0.01)
    assert modularity(codes, factors) > 0.999
    assert sap(codes, factors) == pytest.approx(0.25, abs=0.02)
    assert sap(factors / (np.array(dsprites.FACTOR_SIZES) - 1), factors) == pytest.approx(0.18, abs=0.02)


def test_rotated_codes_score_clearly_less_where_the_definition_allows_it(perfect_scores):
    scores = all_scores(rotated())
    for name, less in dict(
        higgins=0.3,
        factor_vae=0.4,
        mig=0.8,
        sap=0.2,
        modularity=0.4,
        disentanglement=0.7,
        completeness=0.7,
        informativeness=0.1,
    ).items():
        assert scores[name] < perfect_scores[name] - less, name
    assert total_correlation(rotated()) == pytest.approx(0, abs=1e-9)  # still uncorrelated


def test_noise_scores_near_chance_or_nothing():
    factors = subgrid((3, 6, 10, 10, 10))[1]
    codes = noise(len(factors), 6)
    assert (
        abs(higgins(codes, factors) - 1 / 5) < 0.03
        and abs(higgins(codes, factors, exclude=(0,)) - 1 / 4) < 0.03
    )
    assert abs(factor_vae(codes, factors) - 1 / 5) < 0.03
    assert mig(codes, factors) < 0.01 and sap(codes, factors) < 0.02
    assert total_correlation(codes) < 0.01
    scores = dci(codes, factors, train=1000, test=500)
    assert scores["disentanglement"] < 0.15 and scores["completeness"] < 0.15
    assert abs(scores["informativeness"] - (1 / 3 + 1 / 6 + 3 / 10) / 5) < 0.04


def test_a_duplicated_latent_drops_mig_and_sap_but_not_dci_disentanglement(perfect_scores):
    codes = perfect()[:, [0, 0, 1, 2, 3]]
    assert mig(codes, FACTORS) == pytest.approx(perfect_scores["mig"] * 3 / 4, abs=0.01)
    assert sap(codes, FACTORS) < perfect_scores["sap"] - 0.1
    parts = dci(codes, FACTORS)
    assert parts["disentanglement"] > 0.99 and parts["completeness"] < 0.99
    assert total_correlation(codes) == pytest.approx(-0.5 * math.log(1e-6 * 2))  # 6.9 nats and not infinite


def test_dead_latents_are_no_help_and_no_harm_but_for_modularity_which_counts_them(perfect_scores):
    dead = 0.7 + noise(z=2) * [0, 1e-3]  # constant; nearly so
    codes = np.hstack([perfect(), dead])
    scores = all_scores(codes)
    for name in ("higgins", "factor_vae", "mig", "disentanglement", "completeness", "informativeness"):
        assert scores[name] == pytest.approx(perfect_scores[name], abs=0.1 if name == "mig" else 0.03), name
    assert modularity(codes[:, :5], FACTORS) == pytest.approx(4 / 5)
    assert factor_vae(dead, FACTORS, **POINTS) == 0
    constant = np.ones((len(FACTORS), 3))
    assert mig(constant, FACTORS) == modularity(constant, FACTORS) == total_correlation(constant) == 0
    assert dci(constant, FACTORS)["disentanglement"] == pytest.approx(0, abs=1e-9)
    assert total_correlation(codes[:, :5]) == pytest.approx(0, abs=1e-9)


def test_permuting_latents_changes_nothing():
    order = [3, 0, 4, 1, 2]
    scores, permuted = all_scores(mixed()), all_scores(mixed()[:, order])
    for name in scores:
        by_trees = name in ("disentanglement", "completeness", "informativeness")  # they break ties by chance
        assert permuted[name] == pytest.approx(scores[name], abs=0.02 if by_trees else 0.002), name
    assert total_correlation(mixed()[:, order]) == pytest.approx(total_correlation(mixed()))


def test_the_same_seed_gives_the_same_score_and_another_does_not():
    factors = subgrid((3, 6, 10, 10, 10))[1]
    codes = perfect(factors) @ np.random.default_rng(0).normal(size=(5, 5))
    for metric in (higgins, factor_vae, mig, sap, modularity):
        points = dict(points=1000) if metric in (mig, modularity) else POINTS
        first, again, other = (metric(codes, factors, seed, **points) for seed in (0, 0, 1))
        assert first == again != other, metric
    first, again, other = (
        dci(codes, factors, seed, train=300, test=200, jobs=jobs) for seed, jobs in ((0, 1), (0, 2), (1, 2))
    )
    assert first == again != other


def test_global_random_numbers_are_neither_used_nor_changed():
    np.random.seed(0), torch.manual_seed(0), random.seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()
    scores = all_scores(mixed())
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate())
    np.random.seed(1), torch.manual_seed(1), random.seed(1)
    assert all_scores(mixed()) == scores


@pytest.mark.parametrize(
    "codes, factors, words",
    [
        (noise(9), FACTORS, "N rows both"),
        (noise(), FACTORS[:, 0], "N rows both"),
        (noise(z=1), FACTORS, "2 latents"),
        (noise(), FACTORS[:, :1], "2 factors"),
        (noise() * np.nan, FACTORS, "not finite"),
        (noise(), FACTORS * 1.0, "whole numbers"),
        (noise(), FACTORS * [1, 0, 1, 1], "factor 1 has a single value"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(codes, factors, words):
    for metric in (higgins, factor_vae, mig, dci, sap, modularity):
        with pytest.raises(ValueError, match=words):
            metric(codes, factors)


def test_partners_are_looked_up_in_full_grids_only():
    for rows in (slice(1, None), np.random.default_rng(0).permutation(len(FACTORS)), slice(None, None, -1)):
        for metric in (higgins, factor_vae):
            with pytest.raises(ValueError, match="full grid"):
                metric(noise()[rows], FACTORS[rows])
    assert higgins(perfect(), 7 - 2 * FACTORS[::-1], **POINTS) == 1  # other values, but a grid in its order


# Each is its definition: written again, slowly, from the words of the papers.


def literal_information(codes, factors, bins=20):
    """I(z_j; v_k) by counting pairs, bins of equal width over the latent's range."""
    table = np.zeros((codes.shape[1], factors.shape[1]))
    for j in range(codes.shape[1]):
        low, high = min(codes[:, j]), max(codes[:, j])
        width = (high - low) / bins
        binned = [min(int((value - low) / width), bins - 1) for value in codes[:, j]]
        for k in range(factors.shape[1]):
            n, pairs = len(binned), Counter(zip(binned, factors[:, k]))
            left, right = Counter(binned), Counter(factors[:, k])
            table[j, k] = sum(c / n * math.log(c * n / (left[b] * right[v])) for (b, v), c in pairs.items())
    return table


def test_mig_and_modularity_are_their_definitions():
    codes, factors = mixed(), FACTORS
    table = literal_information(codes, factors)
    assert mutual_information(codes, factors) == pytest.approx(table)
    gaps = []
    for k in range(4):
        first, second = sorted(table[:, k])[:-3:-1]
        gaps.append((first - second) / math.log(SIZES[k]))
    assert mig(codes, factors) == pytest.approx(sum(gaps) / 4)
    parts = []
    for row in table:
        best = max(row)
        parts.append(1 - sum(value**2 for value in row if value != best) / (best**2 * 3))
    assert modularity(codes, factors) == pytest.approx(sum(parts) / len(parts))


def draw(rng):
    return [rng.randrange(size) for size in SIZES]


def row_of(values):
    """Where the factors stand in the grid, found by looking."""
    return ROW[tuple(values)]


ROW = {tuple(row): i for i, row in enumerate(FACTORS.tolist())}


def literal_higgins(codes, rng, candidates, n, batch):
    points, labels = [], []
    for _ in range(n):
        y, z_diff = rng.choice(candidates), np.zeros(codes.shape[1])
        for _ in range(batch):
            one, other = draw(rng), draw(rng)
            other[y] = one[y]
            z_diff += abs(codes[row_of(one)] - codes[row_of(other)]) / batch
        points.append(z_diff), labels.append(y)
    half = 2 * n // 3
    return (
        LogisticRegression(max_iter=1000)
        .fit(points[:half], labels[:half])
        .score(points[half:], labels[half:])
    )


def test_higgins_is_its_definition():
    codes = mixed() + 0.1 * noise(z=5)
    for candidates, exclude in (([0, 1, 2, 3], ()), ([1, 2, 3], (0,))):
        rng = random.Random(0)
        slow = np.mean([literal_higgins(codes, rng, candidates, 1500, 16) for _ in range(2)])
        fast = np.mean(
            [higgins(codes, FACTORS, seed, exclude, train=1000, test=500, batch=16) for seed in range(8)]
        )
        assert 0.5 < slow < 0.97 and fast == pytest.approx(slow, abs=0.04)


def literal_factor_vae(codes, rng, n, batch):
    variance = [np.var(z, ddof=1) for z in codes.T]
    alive = [j for j in range(len(variance)) if variance[j] ** 0.5 >= 0.05]
    votes = []
    for _ in range(n):
        k, value = rng.randrange(4), draw(rng)
        local = []
        for _ in range(batch):
            row = draw(rng)
            row[k] = value[k]
            local.append(codes[row_of(row)])
        votes.append((min(alive, key=lambda j: np.var(np.array(local)[:, j], ddof=1) / variance[j]), k))
    train, test = votes[: 2 * n // 3], votes[2 * n // 3 :]
    majority = {j: Counter(k for i, k in train if i == j).most_common(1)[0][0] for j in {i for i, _ in train}}
    return sum(majority.get(j) == k for j, k in test) / len(test)


def test_factor_vae_is_its_definition():
    # the last one would betray factor 0
    codes = np.hstack([mixed() * [1, 5, 0.2, 1, 1], 0.01 * perfect()[:, :1]])
    rng = random.Random(0)
    slow = np.mean([literal_factor_vae(codes, rng, 1500, 16) for _ in range(2)])
    fast = np.mean([factor_vae(codes, FACTORS, seed, train=1000, test=500, batch=16) for seed in range(8)])
    assert 0.4 < slow < 0.95 and fast == pytest.approx(slow, abs=0.04)


def literal_svm(x, y, x_test):
    """One class against the rest, squared hinge loss, C = 0.01, balanced weights, intercept penalised too."""
    distance = []
    for label in sorted(set(y)):
        sign = np.where(y == label, 1, -1)
        count = (sign == 1).sum()
        # LinearSVC balances the two sides of each of its problems by the frequencies of all classes.
        weight = np.where(sign == 1, len(y) / (len(set(y)) * count), 1)

        def loss(wb):
            slack = np.maximum(0, 1 - sign * (wb[0] * x + wb[1]))
            return 0.5 * wb @ wb + 0.01 * (weight * slack**2).sum()

        w, b = minimize(loss, np.zeros(2), method="BFGS", options=dict(gtol=1e-7)).x
        distance.append(w * x_test + b)
    return np.array(sorted(set(y)))[np.argmax(distance, axis=0)]


def test_sap_is_its_definition():
    codes = mixed()
    x, y, x_test, y_test = split(codes, FACTORS, 240, 120, seed=0)
    gaps = []
    for k in range(4):
        accuracy = [np.mean(literal_svm(x[:, j], y[:, k], x_test[:, j]) == y_test[:, k]) for j in range(5)]
        gaps.append(sorted(accuracy)[-1] - sorted(accuracy)[-2])
    assert sap(codes, FACTORS, 0, train=240, test=120) == pytest.approx(np.mean(gaps), abs=0.005)


def test_dci_is_its_definition():
    codes = mixed()
    x, y, x_test, y_test = split(codes, FACTORS, 240, 120, seed=0)
    trees = [GradientBoostingClassifier(n_estimators=20, random_state=0).fit(x, y[:, k]) for k in range(4)]
    R = [[trees[k].feature_importances_[j] for k in range(4)] for j in range(5)]
    disentanglement = completeness = 0
    total = sum(map(sum, R))
    for row in R:
        h = -sum(r / sum(row) * math.log(r / sum(row), 4) for r in row if r > 0)
        disentanglement += sum(row) / total * (1 - h)
    for column in zip(*R):
        h = -sum(r / sum(column) * math.log(r / sum(column), 5) for r in column if r > 0)
        completeness += sum(column) / total * (1 - h)
    right = [np.mean(trees[k].predict(x_test) == y_test[:, k]) for k in range(4)]
    assert dci(codes, FACTORS, 0, train=240, test=120) == pytest.approx(
        dict(disentanglement=disentanglement, completeness=completeness, informativeness=np.mean(right)),
        abs=0.02,  # of small nodes several splits are as good
    )


def test_dci_by_hand():
    # z_0 tells of a alone; z_1 as much of a as of b; z_2 of nothing.
    R = np.array([[0.5, 0], [0.5, 0.5], [0, 0]])
    disentanglement, completeness = importance_scores(R)
    assert disentanglement == pytest.approx((0.5 * 1 + 1 * 0) / 1.5)
    assert completeness == pytest.approx((1 * (1 - math.log(2, 3)) + 0.5 * 1) / 1.5)
    assert importance_scores(np.eye(3)) == pytest.approx((1, 1))
    assert importance_scores(np.ones((3, 2))) == pytest.approx((0, 0))
    assert importance_scores(np.zeros((3, 2))) == pytest.approx((0, 0))


def test_kl_active_latents_and_total_correlation_are_their_definitions():
    from objectives import kl_divergence

    mu = torch.tensor(mixed()[:, :3] * [1, 0.1, 0.5])
    logvar = torch.tensor([[-2.0, 0.0, -1.0]]) + 0 * mu
    logvar[:, 1] -= mu[:, 1] ** 2
    kl = mean_kl(mu, logvar)
    assert kl == pytest.approx(kl_divergence(mu, logvar)[1].numpy())
    for threshold in (0, kl[1] * 0.99, kl[1] * 1.01, 100):
        assert active_latents(mu, logvar, threshold) == sum(value > threshold for value in kl)
    assert active_latents(torch.full((5, 2), 0.1), torch.zeros(5, 2)) == 0  # 0.005 nats each
    assert active_latents(torch.full((5, 2), 0.15), torch.zeros(5, 2)) == 2  # 0.011
    S = np.cov(mixed(), rowvar=False)
    D = np.diag(np.diag(S))
    kl = 0.5 * (np.trace(np.linalg.inv(D) @ S) - len(S) + math.log(np.linalg.det(D) / np.linalg.det(S)))
    assert total_correlation(mixed()) == pytest.approx(kl)


# Tables.


def test_subgrids_are_grids_of_the_whole():
    names = {"full": (3, 6, 40, 32, 32), "fast": (3, 6, 20, 16, 16)}
    for level, sizes in names.items():
        indices, factors = subgrid(dsprites.FACTOR_SIZES, level)
        assert metrics.grid_sizes(factors).tolist() == list(sizes) and len(indices) == math.prod(sizes)
        steps = [math.ceil(whole / part) for whole, part in zip(dsprites.FACTOR_SIZES, sizes)]
        assert np.array_equal(np.transpose(np.unravel_index(indices, dsprites.FACTOR_SIZES)), factors * steps)
    assert metrics.grid_sizes(subgrid((20, 19), "fast")[1]).tolist() == [10, 19]


def test_rows_to_learn_from_and_to_be_tested_on_never_meet():
    rows = np.arange(360)[:, None]
    for train, test, sizes in ((100, 50, (100, 50)), (10_000, 5_000, (240, 120)), (10_000, 0, (360, 0))):
        x, y, x_test, y_test = split(rows, rows, train, test, seed=1)
        assert (len(x), len(x_test)) == sizes and (x == y).all() and (x_test == y_test).all()
        assert len(np.unique([*x, *x_test])) == sum(sizes)


def test_encode_all_gives_what_the_encoder_gives():
    class Data:
        images = torch.rand(50, 1, 64, 64, generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return 50

        def batch(self, indices):
            return self.images[indices]

    model = BetaVAE_B()
    mu, logvar = encode_all(model, Data(), batch_size=16)
    with torch.no_grad():
        whole = model.encode(Data.images)
    assert torch.allclose(mu, whole[0], atol=1e-5) and torch.allclose(logvar, whole[1], atol=1e-5)
    assert mu.dtype == torch.float32 and mu.shape == (50, 10) and not mu.requires_grad
    part, _ = encode_all(model, Data(), np.array([7, 3]))
    assert torch.allclose(part, whole[0][[7, 3]], atol=1e-5)


# As in Higgins et al. (2017), Kim & Mnih (2018), Chen et al. (2018), Eastwood & Williams (2018), Kumar et al. (2018)
# and Ridgeway & Mozer (2018), by Locatello et al. (2019) and their disentanglement_lib.
PUBLISHED = {
    "higgins": (higgins, dict(exclude=(), train=10_000, test=5_000, batch=64)),
    "factor_vae": (factor_vae, dict(train=10_000, test=5_000, batch=64, variance_points=10_000, dead=0.05)),
    "mig": (mig, dict(points=10_000, bins=20)),
    "modularity": (modularity, dict(points=10_000, bins=20)),
    "sap": (sap, dict(train=10_000, test=5_000)),
    "dci": (dci, dict(train=10_000, test=5_000)),
}


@pytest.fixture(scope="module")
def large():
    """Codes that are neither good nor bad, one of them faint, and a grid with more rows than any metric draws."""
    factors = subgrid((3, 6, 10, 10, 10))[1]  # 18,000
    turn = np.eye(5, 6) + 0.6 * np.random.default_rng(5).normal(size=(5, 6))
    codes = perfect(factors) @ turn + noise(len(factors), 6)
    codes[:, 5] *= 0.3 / codes[:, 5].std()
    return torch.tensor(codes, dtype=torch.float32), factors


@pytest.fixture(scope="module")
def full(large):
    codes, factors = large
    metrics.BOOSTING["n_estimators"] = 2
    return score(codes, torch.zeros_like(codes), factors, "full")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_level_and_the_defaults_are_the_published_settings(name, large, full):
    function, settings = PUBLISHED[name]
    metrics.BOOSTING["n_estimators"] = 2  # as in full
    value = function(*large, 0, **settings)
    assert function(*large, 0) == value
    if name == "dci":
        assert {part: full[f"dci_{part}"] for part in value} == value
    else:
        assert full[name] == value
    assert {key: full["settings"][name][key] for key in settings} == settings


def test_the_paper_leaves_shape_out(large, full):
    assert full["higgins_paper"] == higgins(*large, 0, (0,), 10_000, 5_000, 64) != full["higgins"]


def test_classifiers_have_the_published_settings():
    assert BOOSTING == dict(n_estimators=100, learning_rate=0.1, max_depth=3)
    assert (metrics.SVM["C"], metrics.SVM["class_weight"]) == (0.01, "balanced")
    assert metrics.LOGISTIC["C"] == 1.0
    assert (SAMPLE, ACTIVE) == (10_000, 0.01)


def test_the_fast_level_leaves_dci_out_and_draws_half_as_many_points(large, full):
    codes, factors = large
    fast = score(codes, torch.zeros_like(codes), factors, "fast")
    assert list(fast) == list(full) and fast["dci_completeness"] is fast["settings"]["dci"] is None
    assert fast["higgins"] == higgins(codes, factors, 0, (), 5_000, 2_500, 64)
    assert (fast["mig"], fast["modularity"]) == (full["mig"], full["modularity"])


# Information of latents.


def gaussian_codes(n=20_000, std=0.3):
    """z_0 ~ N(v_0 or 0, std) with v_0 of -1, 1; z_1 dead, with means that wobble with v_0; labels v_0 and v_1."""
    v = np.random.default_rng(0).integers(2, size=(n, 2))
    mu = np.stack([2.0 * v[:, 0] - 1, 0.01 * (2.0 * v[:, 0] - 1)], axis=1)
    logvar = np.log(np.array([[std**2, 1.0]])) + 0 * mu
    return mu, logvar, v


def test_information_of_a_latent_is_that_of_a_noisy_channel():
    for std in (0.3, 1.0, 2.0):
        information = latent_information(*gaussian_codes(std=std))
        grid = np.linspace(-30, 30, 60_001)
        p = np.exp(-((grid - [[-1], [1]]) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi)) + 1e-99
        exact = (p * np.log(p / p.mean(axis=0))).sum(axis=1).mean() * (grid[1] - grid[0])
        assert information[0, 0] == pytest.approx(exact, abs=0.005)
        assert information[0, 1] < 1e-3  # of a factor that it does not know


def test_a_dead_latent_has_no_information_however_its_means_wobble():
    mu, logvar, v = gaussian_codes()
    assert mutual_information(mu, v)[1, 0] > 0.69  # the means alone betray the factor
    assert latent_information(mu, logvar, v)[1, 0] < 1e-4


def test_information_of_few_images_is_corrected_for_their_number():
    factors = subgrid((40, 4, 5, 25))[1]
    codes = perfect(factors)
    logvar = np.full(codes.shape, 2 * math.log(0.05))
    rng = np.random.default_rng(0)
    for n in (2_500, 10_000):
        rows = rng.permutation(len(codes))[:n]
        information = latent_information(codes[rows], logvar[rows], factors[rows])
        assert information[~np.eye(4, dtype=bool)] == pytest.approx(0, abs=0.03)
        assert np.diag(information)[1:3] == pytest.approx(np.log([4, 5]), abs=0.02)


def test_information_is_never_above_the_kl_of_its_latent():
    rng = np.random.default_rng(0)
    for scale in (0, 1e-3, 0.1, 1, 30):
        mu, logvar = scale * rng.normal(size=(400, 3)), -rng.uniform(0, 1 + scale, size=(400, 3))
        factors = np.unique(mu[:, :2], return_inverse=True)[1].reshape(400, 2) // 10
        information = latent_information(mu, logvar, factors)
        assert (0 <= information).all() and (information.max(axis=1) <= mean_kl(mu, logvar)).all()
    assert (latent_information(np.zeros((9, 2)), np.full((9, 2), -200.0), np.eye(9, 2, dtype=int)) == 0).all()
    # Each half of these rows knows one label only, so that the correction adds as much again: 1.37 nats.
    mu, labels = np.array([[-1.0], [1.0]] * 50), np.array([[0], [1]] * 50)
    information, kl = (
        latent_information(mu, 0 * mu + 2 * math.log(0.3), labels),
        0.5 * (0.09 - math.log(0.09)),
    )
    assert information == pytest.approx(kl) and kl < 1.3


def test_the_top_factor_is_the_one_a_latent_knows_most_about_and_dead_latents_have_none():
    information = np.array([[0.9, 0.3], [0.0, 0.5], [0.0, 0.0], [0.009, 0.0]])
    named = top_factor(information, ("a", "b"), [2.0, 0.6, 0.5, ACTIVE])
    assert named == [("a", pytest.approx(0.75)), ("b", 1), None, None]


def test_the_sample_that_names_latents_is_always_the_same_and_random(monkeypatch):
    indices, factors = metrics.fixed_sample(dsprites.FACTOR_SIZES)
    assert (
        np.array_equal(indices, metrics.fixed_sample(dsprites.FACTOR_SIZES)[0]) and len(set(indices)) == 300
    )
    assert np.array_equal(np.ravel_multi_index(factors.T, dsprites.FACTOR_SIZES), indices)
    assert len(metrics.fixed_sample((3, 4))[0]) == 12
