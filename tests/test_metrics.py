"""Metrics: what they say of codes that are known to be good or bad, and that each is its definition."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from evaluation import metrics
from evaluation.__main__ import main
from evaluation.information import latent_information, mean_kl, mutual_information, position_effect
from evaluation.metrics import (
    dci,
    factor_vae,
    higgins,
    irs,
    mig,
    modularity,
    sap,
    split,
    subgrid,
    total_effect,
)
from prepare import dsprites

SIZES = (3, 4, 5, 6)
FACTORS = subgrid(SIZES)[1]  # 360, 4
ROLES = ("shape", "x", "y", "")
POINTS = dict(train=1000, test=500)
SETTINGS = [metrics.settings_of(level, ROLES) for level in ("full", "fast")]  # before tests change them
CLASSIFIERS = dict(metrics.BOOSTING), metrics.SVM, metrics.LOGISTIC

pytestmark = pytest.mark.usefixtures("few_points")


def perfect(factors=FACTORS):
    """Each factor in a latent of its own, of standard deviation 1."""
    return (factors - factors.mean(axis=0)) / factors.std(axis=0)


def rotated():
    """The same, rotated so that each latent holds as much of each factor."""
    return perfect() @ np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def noise(n=len(FACTORS), z=4):
    return np.random.default_rng(4).normal(size=(n, z))


def mixed():
    """Neither good nor bad: entangled latents, noise, and a weak one."""
    mixing = np.eye(4, 5) + 0.4 * np.random.default_rng(5).normal(size=(4, 5))
    return perfect() @ mixing + 0.3 * noise(z=5)


def all_scores(codes):
    scores = {m.__name__: m(codes, FACTORS) for m in (higgins, factor_vae, mig, sap, modularity, irs)}
    return scores | dci(codes, FACTORS)


# What a score must say.


def test_perfect_codes_reach_the_ceiling_rotated_ones_score_less_and_dead_latents_change_only_modularity():
    best, less = all_scores(perfect()), all_scores(rotated())
    lost = dict(higgins=0.25, factor_vae=0.4, mig=0.8, modularity=0.4, irs=0.4)
    for name, gap in (lost | dict(disentanglement=0.7, completeness=0.7, informativeness=0.1)).items():
        assert best[name] > 0.99 and less[name] < best[name] - gap, name
    assert best["sap"] > 0.25 > 0.05 > less["sap"]
    dead = all_scores(np.hstack([perfect(), np.full((len(FACTORS), 1), 0.7)]))
    expected = best | dict(modularity=4 / 5, sap=dead["sap"])  # the machine of a dead latent guesses
    assert dead == pytest.approx(expected, abs=0.03)
    constant = np.ones((len(FACTORS), 3))
    assert [metric(constant, FACTORS) for metric in (factor_vae, mig, modularity, irs)] == [0] * 4
    assert dci(constant, FACTORS)["disentanglement"] == pytest.approx(0)


def test_perfect_codes_of_dsprites_reach_the_ceilings_that_the_docstrings_state():
    factors = subgrid(dsprites.FACTOR_SIZES)[1]
    assert mig(perfect(factors), factors, samples=2) == pytest.approx(0.90, abs=0.01)
    assert irs(perfect(factors), factors) == pytest.approx(0.985, abs=0.005)
    assert irs(noise(len(factors)), factors) == pytest.approx(0.40, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [higgins, factor_vae])
def test_classifiers_are_scored_on_points_that_they_have_not_seen(metric):
    scores = [metric(noise(z=30), FACTORS, seed, train=100, test=100, batch=8) for seed in range(5)]
    assert np.mean(scores) == pytest.approx(1 / 4, abs=0.07)  # chance; they know their own points by heart


@pytest.mark.parametrize("metric", [higgins, factor_vae, mig, sap, modularity, dci, irs, total_effect])
def test_a_score_depends_on_its_seed_alone(metric):
    settings = dict(train=200, test=100) if "train" in metric.__kwdefaults__ else dict(points=200)
    settings |= dict(samples=2) if metric is mig else {}
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, other = (metric(mixed(), FACTORS, seed, **settings) for seed in (0, 1))
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    np.random.seed(1)
    again = metric(mixed(), FACTORS, 0, **settings)
    assert np.array_equal(again, first) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    "codes, factors, words",
    [
        (noise(9), FACTORS, r"\(N, z\)"),
        (noise(z=1), FACTORS, "2 latents"),
        (noise() * np.nan, FACTORS, "not finite"),
        (noise(), FACTORS * 1.0, "integers"),
        (noise(), FACTORS * [1, 0, 1, 1], "factor 1 has a single value"),
        (noise()[1:], FACTORS[1:], "full grid"),
        (noise(), FACTORS[::-1], "full grid"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(codes, factors, words):
    with pytest.raises(ValueError, match=words):
        total_effect(codes, factors)


# Each is its definition: written again, slowly, from the words of the papers.


def test_the_total_effect_is_the_share_of_variance_that_a_factor_alone_changes():
    shape, x, y, _ = perfect().T
    codes = np.stack([x, x + 2 * y, x * y, 0 * x + 0.7, np.sign(shape) * y], axis=1)
    others = 7 - 2 * FACTORS[::-1]  # other values, but a grid in its order
    effect = total_effect(codes, others, points=100_000)
    assert effect[0] == pytest.approx([0, 1, 0, 0], abs=0.02)
    assert effect[1] == pytest.approx([0, 1 / 5, 4 / 5, 0], abs=0.02)
    assert effect[2] == pytest.approx([0, 1, 1, 0], abs=0.03)  # neither alone, both together
    assert (effect[3] == 0).all()
    grid = codes[:, 4].reshape(SIZES)  # all rows instead of a sample
    assert effect[4] == pytest.approx([grid.var(axis=k).mean() / grid.var() for k in range(4)], abs=0.02)


def test_an_orientation_coded_relative_to_y_shows_in_the_total_effect_and_not_in_mutual_information():
    factors = subgrid((3, 8, 16, 16))[1]  # shape, x, orientation, y
    shape, x, orientation, y = factors.T
    turned = (orientation + 3 * y) % 16
    codes = np.stack([shape, x, y, np.cos(turned * np.pi / 8), np.sin(turned * np.pi / 8)], axis=1)
    roles = ("shape", "x", "rotation", "y")
    assert mutual_information(codes, factors)[3:].max() < 0.01
    effect = total_effect(codes, factors)
    assert position_effect(effect, roles) == pytest.approx(1, abs=0.05) == effect[3, 3]
    fixed = np.stack([shape, x, y, np.cos(orientation * np.pi / 8), 0.1 * x + orientation], axis=1)
    small = position_effect(total_effect(fixed, factors), roles)
    assert small == pytest.approx(0.01 * x.var() / fixed[:, 4].var(), rel=0.1)  # of x on the last
    assert position_effect(np.eye(2), ("y", "x")) == 0  # no other latent


def test_mig_and_modularity_are_their_definitions_and_mig_is_the_mean_of_samples():
    codes = mixed()
    bins = np.minimum((20 * (codes - codes.min(axis=0)) / np.ptp(codes, axis=0)).astype(int), 19)
    I = np.array([[mutual_info_score(b, v) for v in FACTORS.T] for b in bins.T])  # noqa: E741
    ranked = np.sort(I, axis=0)
    assert mig(codes, FACTORS, samples=1) == pytest.approx(np.mean((ranked[-1] - ranked[-2]) / np.log(SIZES)))
    parts = [1 - sum(i**2 for i in row if i != max(row)) / (max(row) ** 2 * 3) for row in I]
    assert modularity(codes, FACTORS) == pytest.approx(np.mean(parts))
    two = codes[:, :2], FACTORS[:, :2]
    one, mean = ([mig(*two, seed, points=90, samples=n) for seed in range(9)] for n in (1, 16))
    assert np.std(one) > 2 * np.std(mean) > 0


def draw(rng, k=None, value=None):
    """Factors of a random image, of which factor k has the given value."""
    return tuple(value if i == k else rng.randrange(size) for i, size in enumerate(SIZES))


def literal_higgins(codes, rng):
    points, labels = [], []
    for _ in range(1500):
        y, z_diff = rng.choice([1, 2, 3]), 0  # never shape, the first
        for _ in range(16):
            first = draw(rng)
            z_diff = z_diff + abs(codes[first] - codes[draw(rng, y, first[y])]) / 16
        points.append(z_diff), labels.append(y)
    return LogisticRegression().fit(points[:1000], labels[:1000]).score(points[1000:], labels[1000:])


def literal_factor_vae(codes, rng):
    variance, votes = np.var(codes.reshape(360, -1), axis=0, ddof=1), []
    alive = [j for j in range(len(variance)) if variance[j] ** 0.5 >= 0.05]
    for _ in range(1500):
        k = rng.randrange(4)
        value = rng.randrange(SIZES[k])
        local = np.var([codes[draw(rng, k, value)] for _ in range(16)], axis=0, ddof=1)
        votes.append((min(alive, key=lambda j: local[j] / variance[j]), k))
    train, test = votes[:1000], votes[1000:]
    majority = {d: Counter(k for i, k in train if i == d).most_common(1)[0][0] for d, _ in train}
    return sum(majority.get(d) == k for d, k in test) / len(test)


@pytest.mark.slow
@pytest.mark.parametrize(
    "metric, settings, literal",
    [(higgins, dict(exclude=(0,)), literal_higgins), (factor_vae, {}, literal_factor_vae)],
)
def test_higgins_and_factor_vae_are_their_definitions(metric, settings, literal):
    codes, rng = mixed() + 0.1 * noise(z=5), random.Random(0)
    if metric is factor_vae:  # of very different scales; the last latent would identify factor 0, but is dead
        codes = np.hstack([codes * [1, 5, 0.2, 1, 1], 0.049 * perfect()[:, :1]])
    slow = np.mean([literal(codes.reshape(*SIZES, -1), rng) for _ in range(2)])
    fast = [metric(codes, FACTORS, seed, **settings, **POINTS, batch=16) for seed in range(8)]
    assert 0.4 < slow < 0.97 and np.mean(fast) == pytest.approx(slow, abs=0.05)


def test_sap_and_dci_are_their_definitions():
    codes, points = mixed(), dict(train=240, test=120)
    x, y, x_test, y_test = split(codes, FACTORS, **points, seed=0)
    gaps, importance, right = [], [], []
    for v, v_test in zip(y.T, y_test.T):
        svms = [LinearSVC(C=0.01, class_weight="balanced").fit(x[:, [j]], v) for j in range(5)]
        accuracy = sorted(svm.score(x_test[:, [j]], v_test) for j, svm in enumerate(svms))
        gaps.append(accuracy[-1] - accuracy[-2])
        trees = GradientBoostingClassifier(**metrics.BOOSTING, random_state=0).fit(x, v)
        importance.append(trees.feature_importances_), right.append(trees.predict(x_test) == v_test)
    assert sap(codes, FACTORS, **points) == pytest.approx(np.mean(gaps), abs=0.005)
    D, C = metrics.importance_scores(np.transpose(importance))
    expected = dict(disentanglement=D, completeness=C, informativeness=np.mean(right))
    assert dci(codes, FACTORS, **points) == pytest.approx(expected)
    # By hand: z_0 is informative about factor 0 alone, z_1 as much about 0 as about 1, z_2 about nothing.
    D, C = metrics.importance_scores(np.array([[3, 0], [1, 1], [0, 0]]))
    assert D == pytest.approx(3 / 5 * 1 + 2 / 5 * 0)
    three_quarters = 1 - 2 * math.log(2, 3) + 3 / 4  # of (3/4, 1/4); the other factor is in z_1 alone
    assert C == pytest.approx(4 / 5 * three_quarters + 1 / 5 * 1)


def test_irs_is_its_definition():
    codes, factors = mixed(), FACTORS * [1, 1, 1, 9]  # the last from 0 to 45, each value in a bin of its own
    score, weights = [], [max(abs(z - z.mean())) for z in codes.T]
    for z, most in zip(codes.T, weights):
        values = [[z[v == i] for i in set(v)] for v in factors.T]
        spread = [np.mean([np.quantile(abs(z - z.mean()), 0.99) for z in alike]) for alike in values]
        score.append(1 - min(spread) / most)
    assert irs(codes, factors) == pytest.approx(np.average(score, weights=weights))
    forty = np.arange(400)[:, None] // 10 % 40 * [1, 1]  # in bins of two
    expected = np.average([1 - 0.5 / 19.5, 0], weights=[19.5, 0.5])
    assert irs(forty % [40, 2] * 1.0, forty) == pytest.approx(expected)


# Rows and settings.


@pytest.mark.parametrize("level, sizes", {"full": (3, 6, 40, 32, 32), "fast": (3, 6, 20, 16, 16)}.items())
def test_subgrids_are_grids_of_the_whole(level, sizes):
    whole = dsprites.FACTOR_SIZES
    indices, factors = subgrid(whole, level)
    assert metrics.grid_sizes(factors).tolist() == list(sizes)
    steps = [size // part for size, part in zip(whole, sizes)]
    assert np.array_equal(np.transpose(np.unravel_index(indices, whole)), factors * steps)


@pytest.mark.parametrize("train, test, rows", [(100, 50, (100, 50)), (10_000, 5_000, (240, 120))])
def test_training_and_test_rows_are_disjoint(train, test, rows):
    table = np.arange(360)[:, None]
    x, y, x_test, y_test = split(table, table, train, test, seed=1)
    assert (len(x), len(x_test)) == rows and (x == y).all() and (x_test == y_test).all()
    assert len(np.unique([*x, *x_test])) == sum(rows)


def test_the_full_level_has_the_published_settings_and_fast_half_the_points_and_no_dci():
    """Those of the papers, as Locatello et al. (2019) and their disentanglement_lib have them."""
    full, fast = SETTINGS
    points = dict(train=10_000, test=5_000)
    assert full.pop("total_effect") == dict(points=10_000)
    assert full == {
        "higgins_paper": dict(exclude=(0,), **points, batch=64),
        "higgins": dict(exclude=(), **points, batch=64),
        "factor_vae": dict(**points, batch=64, dead=0.05),
        "mig": dict(points=10_000, samples=10, bins=20),
        "dci": points,
        "sap": points,
        "modularity": dict(points=10_000, bins=20),
        "irs": dict(points=10_000, bins=20, quantile=0.99),
    }
    assert full.keys() - fast.keys() == {"dci"} and fast["mig"] == full["mig"]
    assert (fast["sap"], fast["higgins"]["test"]) == (dict(train=5_000, test=2_500), 2_500)
    boosting, svm, logistic = CLASSIFIERS
    assert boosting == dict(n_estimators=100, learning_rate=0.1, max_depth=3)  # scikit-learn's defaults
    assert (svm["C"], svm["class_weight"], logistic["C"]) == (0.01, "balanced", 1.0)


# All scores. The KL of WEAK's last latent is 0.0096 nats; 0.018 if mu and logvar were swapped.

WEAK = mixed() * [1, 1, 1, 1, 1e-3]
LOGVAR = np.array([-3, -2, -1, -1, 0.19]) + 0 * WEAK
EXPECTED = metrics.METRICS.keys() - {"dci"} | {"active_latents", "position_effect", "settings"}


def test_dead_latents_are_not_counted_and_have_no_total_effect(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "mine", lambda codes, factors, seed: len(codes) / 360)
    scores = metrics.score(WEAK, LOGVAR, FACTORS, "fast", roles=ROLES)
    assert scores.keys() == EXPECTED | {"mine"} and scores["mine"] == 1  # a metric needs only its name
    effect = total_effect(WEAK, FACTORS) * [[1], [1], [1], [1], [0]]
    assert scores["active_latents"] == 4 and scores["total_effect"] == effect.tolist()
    assert scores["position_effect"] == position_effect(effect, ROLES) > 0
    monkeypatch.setattr(
        metrics, "METRICS", {name: metrics.METRICS[name] for name in ("higgins_paper", "total_effect")}
    )
    codes = perfect()[:, [1, 2, 1]] * [1, 1, 0.3]
    logvar = 0 * codes + [-3, -3, -0.05]  # KL of the last: 0.046 nats
    weak, unknown = (metrics.score(codes, given, FACTORS, roles=ROLES) for given in (logvar, None))
    assert weak["active_latents"] == 3 and weak["position_effect"] == 0
    assert unknown["position_effect"] == pytest.approx(1, abs=0.05)


# python -m evaluation codes.npz


def command(folder, *flags, status=0, **arrays):
    """Score arrays as a user would; returns what is in metrics.json."""
    np.savez(folder / "codes.npz", **arrays)
    assert main([str(folder / "codes.npz"), *flags]) == status
    return json.loads((folder / "metrics.json").read_text()) if status == 0 else None


def test_codes_in_a_file_get_the_scores_of_their_model_whatever_the_order_of_rows(tmp_path, capsys):
    rows = np.random.default_rng(0).permutation(len(FACTORS))
    arrays = dict(mu=WEAK[rows], logvar=LOGVAR[rows], factors=FACTORS[rows], factor_roles=ROLES)
    expected = json.loads(json.dumps(metrics.score(WEAK, LOGVAR, FACTORS, roles=ROLES)))
    assert command(tmp_path, **arrays) == expected
    printed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("higgins_paper", "mig", "irs", "position_effect", "dci_disentanglement"):
        assert float(printed[name].split()[1]) == pytest.approx(expected[name], abs=5e-4)


def test_a_fast_score_takes_the_images_of_main_py(tmp_path):
    factors = subgrid((3, 20, 5))[1]
    scores = command(tmp_path, "--metrics", "fast", mu=perfect(factors), factors=factors)
    assert scores["settings"]["factor_sizes"] == [3, 10, 5] and scores["settings"]["images"] == 150


def test_what_a_file_does_not_allow_is_left_out(tmp_path, capsys):
    missing = {"higgins_paper", "position_effect", "active_latents"}
    scores = command(tmp_path, "--metrics", "fast", mu=WEAK, factors=FACTORS)
    assert scores.keys() == EXPECTED - missing and "left out" not in capsys.readouterr().out
    scores = command(tmp_path, "--metrics", "fast", mu=WEAK[7:], factors=FACTORS[7:], factor_roles=ROLES)
    assert scores.keys() == {"mig", "sap", "modularity", "irs", "settings"}
    assert (
        "no full grid of factors: higgins_paper, higgins, factor_vae, total_effect" in capsys.readouterr().out
    )


def test_a_wrong_file_is_one_line_and_nothing_is_written(tmp_path, capsys):
    good, path = dict(mu=WEAK, factors=FACTORS), tmp_path / "codes.npz"
    for words, arrays in [
        ("mu is not a file in the archive", dict(codes=WEAK, factors=FACTORS)),
        ("integers", good | dict(factors=FACTORS + 0.5)),
        ("the shape of mu", good | dict(logvar=WEAK[:, 1:])),
        ("a text for each factor", good | dict(factor_roles=ROLES[1:])),
        ("main.py --encode", dict(mu=np.array([{}]), factors=FACTORS)),  # an object: pickled
    ]:
        command(tmp_path, status=1, **arrays)
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and str(path) in line
    for content in (b"text", path.read_bytes()[:500]):
        path.write_bytes(content)
        assert main([str(path)]) == 1 and "main.py --encode" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json*"))


# KL and information of latents.


def test_information_of_a_latent_is_that_of_its_factor_without_the_bias_of_counts():
    factors = subgrid((40, 4, 5, 25))[1]
    rows = np.random.default_rng(0).permutation(len(factors))[:2_500]
    found = latent_information(perfect(factors)[rows], factors[rows], [9.0] * 4)
    assert found[~np.eye(4, dtype=bool)] == pytest.approx(0, abs=0.03)
    assert np.diag(found)[1:3] == pytest.approx(np.log([4, 5]), abs=0.02)


def test_information_is_never_negative_nor_above_the_kl_of_its_latent():
    rng = np.random.default_rng(0)
    mu, logvar = 0.1 * rng.normal(size=(400, 3)), -rng.uniform(0, 1.1, size=(400, 3))
    kld = mean_kl(mu, logvar)
    found = latent_information(mu, rng.integers(20, size=(400, 2)), kld)
    assert (0 <= found).all() and (found.max(axis=1) <= kld).all()
    q = torch.distributions.Normal(torch.tensor(mu), torch.tensor(logvar / 2).exp())
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(dim=0)
    assert kld == pytest.approx(exact.numpy())
