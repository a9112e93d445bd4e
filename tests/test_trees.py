"""Boosted trees: those of scikit-learn, up to rounding and ties."""

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from evaluation.trees import boosted_trees


@pytest.fixture(params=[2, 3])
def rows(request):
    """Five features and labels, for training and for tests: two are informative, one is constant, one has few values, one is noise."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(3000) % request.param)
    x = rng.normal(size=(3000, 5))
    x[:, :3] = x[:, :3] * [1, 1, 0] + np.stack([y, y % 2, 0 * y + 0.7], axis=1)
    x[:, 3] = rng.integers(4, size=3000)
    return x[:2000], y[:2000], x[2000:]


def test_importance_and_labels_are_those_of_scikit_learn(rows):
    x, y, x_test = rows
    x, x_test = x[:, [0, 1, 4]], x_test[:, [0, 1, 4]]
    theirs = GradientBoostingClassifier(n_estimators=6, random_state=0).fit(x, y)
    importance, labels = boosted_trees(x, y, x_test, 6, learning_rate=0.1, max_depth=3)
    assert importance == pytest.approx(theirs.feature_importances_, abs=1e-9)
    assert (labels == theirs.predict(x_test)).all()


def test_values_that_are_equal_are_never_split_and_others_halfway():
    importance, labels = boosted_trees(np.full((9, 2), 0.3), np.arange(9) % 3, np.zeros((4, 2)), 5, 0.1, 3)
    assert (importance == 0).all() and len(set(labels)) == 1
    x = np.array([[0, 1], [1e-8, 1], [2e-8, 1], [0.5, 1], [0.5, 1], [0.5, 1]])  # the first three are equal
    x_test = np.array([[0, 1], [2e-8, 1], [0.2499, 1], [0.2501, 1]])
    importance, labels = boosted_trees(x, np.array([0, 0, 1, 1, 1, 1]), x_test, 20, 0.5, 3)
    assert importance.tolist() == [1.0, 0.0] and labels.tolist() == [0, 0, 0, 1]


def test_a_copy_of_a_feature_gets_half_of_its_importance(rows):
    x, y, x_test = rows
    importance, _ = boosted_trees(x[:300, [0, 0, 4]], y[:300], x_test[:, [0, 0, 4]], 30, 0.1, 3)
    assert importance[0] == pytest.approx(importance[1], rel=0.5) and importance[2] < importance[:2].min()
