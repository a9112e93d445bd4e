"""The boosted trees of scikit-learn's GradientBoostingClassifier, equal up to ties, in a fraction of the time.

scikit-learn sorts each feature again at each node; here each is sorted once, and the order is handed down the tree. DCI
on dSprites grows 11,300 trees, of 10,000 codes each: five minutes of a core with scikit-learn, one and a half here, of the
two minutes that --metrics full may take. Histograms would be faster still, but are another model, without importances.
"""

import numpy as np

SAME = 1e-7  # values of a feature that lie closer are taken as equal, as in scikit-learn


def boosted_trees(x, y, x_test, n_estimators, learning_rate, max_depth, seed=0):
    """Gradient boosting for K classes (Friedman, 2001, Algorithm 6): trees with exact splits, fitted to the gradient.

    x: (N, F); y: labels 0 .. K - 1, (N,); x_test: (M, F); seed: breaks ties between features.
    Returns each feature's share of the total decrease of squared error, (F,), and the predicted labels of x_test, (M,).
    """
    x, x_test = x.astype(np.float32).T.copy(), x_test.astype(np.float32).T.copy()  # F, N and F, M
    target = np.eye(y.max() + 1)[y]  # N, K
    classes, prior = target.shape[1], np.log(target.mean(axis=0))
    shrinkage = learning_rate * ((classes - 1) / classes)
    logits, logits_test = np.tile(prior, (len(y), 1)), np.tile(prior, (x_test.shape[1], 1))
    order, decrease = np.argsort(x, axis=1, kind="stable"), np.zeros(len(x))
    rng = np.random.default_rng(seed)
    for _ in range(n_estimators):
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient, curvature = target - p, p * (1 - p)
        for k in range(classes):
            for rows, rows_test in leaves(x, order, x_test, gradient[:, k].copy(), max_depth, decrease, rng):
                g, h = gradient[rows, k].sum(), curvature[rows, k].sum()
                step = shrinkage * g / h if h > 1e-150 * len(rows) else 0.0  # Newton's
                logits[rows, k] += step
                logits_test[rows_test, k] += step
    return decrease / (decrease.sum() or 1), logits_test.argmax(axis=1)


def leaves(x, order, x_test, gradient, depth, decrease, rng):
    """Grows a tree; returns its leaves as pairs of rows of x and of x_test.

    order: rows sorted by each feature, (F, N); decrease: (F,), to which the decrease of squared error at each split is added.
    """
    found, nodes = [], [(order, np.arange(x_test.shape[1]), depth)]
    while nodes:
        order, rows_test, depth = nodes.pop()
        split = best_split(x, order, gradient, rng) if depth else None
        if split is None:
            found.append((order[0], rows_test))
            continue
        feature, last, gain = split
        decrease[feature] += gain
        threshold = x[feature, order[feature, last : last + 2]].astype(float).mean()
        below = x_test[feature, rows_test] <= threshold
        if depth == 1:  # children are leaves: their rows are needed, but no order
            left, right = order[None, feature, : last + 1], order[None, feature, last + 1 :]
        else:
            goes_left = np.zeros(x.shape[1], bool)
            goes_left[order[feature, : last + 1]] = True
            mask = goes_left[order]
            left, right = order[mask].reshape(len(x), -1), order[~mask].reshape(len(x), -1)
        nodes += [(left, rows_test[below], depth - 1), (right, rows_test[~below], depth - 1)]
    return found


def best_split(x, order, gradient, rng):
    """The split of a node that decreases the squared error of the gradient most; None if it is pure or none is possible.

    Returns the feature, the place in its order of the last row that goes left, and the decrease. Ties between
    features, such as duplicates, are broken at random.
    """
    g, count = gradient[order], order.shape[1]  # F, count
    total = g[0].sum()
    if count < 2 or (g[0] ** 2).mean() - (total / count) ** 2 <= np.finfo(float).eps:
        return None
    n = np.arange(1, count)  # rows that go left
    off = g.cumsum(axis=1)[:, :-1] - n * (total / count)  # F, count - 1
    gain = off**2 * (count / (n * (count - n)))

    def highest():
        most = gain.max(axis=1)
        ties = np.flatnonzero(most == most.max())
        feature = ties[0] if len(ties) == 1 else rng.choice(ties)
        return feature, gain[feature].argmax()

    feature, last = highest()
    # rare: the best place lies between equal values, so consider only places where they differ
    if not differ(x[feature, order[feature, last : last + 2]]):
        gain[~differ(np.take_along_axis(x, order, axis=1))] = -1
        feature, last = highest()
    return (feature, last, gain[feature, last]) if gain[feature, last] >= 0 else None


def differ(values):
    """Whether neighbours in sorted float32 values (.., n) differ, (.., n - 1)."""
    return values[..., 1:] > values[..., :-1] + np.float32(SAME)
