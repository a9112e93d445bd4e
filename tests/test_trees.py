"""Boosted trees: those of scikit-learn, up to rounding and ties."""

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from evaluation.trees import boosted_trees


def rows(n, classes):
    """Labels, and five features: two are informative, one is constant, one has few values, one is noise."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, 5))
    x[:, 0] += y
    x[:, 1] += y % 2
    x[:, 2] = 0.7
    x[:, 3] = rng.integers(4, size=n)
    return x, y


@pytest.mark.parametrize("classes", [2, 3])
def test_importance_and_labels_are_those_of_scikit_learn(classes):
    x, y = rows(3000, classes)
    x = x[:, [0, 1, 4]]
    theirs = GradientBoostingClassifier(n_estimators=6, random_state=0).fit(x[:2000], y[:2000])
    importance, labels = boosted_trees(x[:2000], y[:2000], x[2000:], 6, learning_rate=0.1, max_depth=3)
    assert importance == pytest.approx(theirs.feature_importances_, abs=1e-9)
    assert (labels == theirs.predict(x[2000:])).all()


def test_with_many_ties_they_differ_as_little_as_those_of_other_seeds_of_scikit_learn():
    x, y = rows(600, 3)
    settings = dict(n_estimators=10, learning_rate=0.2, max_depth=3)
    theirs = [GradientBoostingClassifier(**settings, random_state=s).fit(x[:400], y[:400]) for s in range(6)]
    importance, labels = boosted_trees(x[:400], y[:400], x[400:], **settings)
    seeds = np.array([each.feature_importances_ for each in theirs])
    assert np.abs(importance - seeds).max() < 2 * np.ptp(seeds, axis=0).max() < 0.03
    assert (labels == theirs[0].predict(x[400:])).mean() > 0.95


def test_features_without_two_values_are_never_split():
    importance, labels = boosted_trees(np.full((9, 2), 0.3), np.arange(9) % 3, np.zeros((4, 2)), 5, 0.1, 3)
    assert (importance == 0).all() and len(set(labels)) == 1
    x = np.array([[0, 1], [1e-8, 1], [2e-8, 1], [0.5, 1], [0.5, 1], [0.5, 1]])  # the first three are equal
    importance, labels = boosted_trees(x, np.array([0, 0, 1, 1, 1, 1]), x[:3], 20, 0.5, 3)
    assert importance.tolist() == [1.0, 0.0] and labels.tolist() == [0, 0, 0]


def test_a_copy_of_a_feature_gets_half_of_its_importance():
    x, y = rows(300, 3)
    importance, _ = boosted_trees(x[:, [0, 0, 4]], y, x[:, [0, 0, 4]], 30, 0.1, 3)
    assert importance[0] == pytest.approx(importance[1], rel=0.5) and importance[2] < importance[:2].min()


def test_a_split_lies_halfway_between_two_values():
    x, y = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])
    _, labels = boosted_trees(x, y, np.array([[0.49], [0.5], [0.51]]), 3, 0.5, 1)
    assert labels.tolist() == [0, 0, 1]
