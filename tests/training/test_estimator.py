"""The estimator of scikit-learn: its own checks, and the uses that people have for it."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import divcon as dc

CLASSES, EACH, DIM = 48, 8, 16

TOO_FEW = "two learners of two well separated classes have one class each, which has no negative pair: an error"
OF_BLOBS = ("data_not_an_array", "general", "preserve_dtypes")
FAILURES = dict.fromkeys((f"check_transformer_{name}" for name in OF_BLOBS), TOO_FEW)
Quick = partial(dc.DivideAndConquer, embedding_dim=4, epochs=1, device="cpu")


def expected_failures(estimator: Any) -> dict[str, str]:
    return FAILURES if estimator.num_learners == 2 else {}


@parametrize_with_checks([Quick(), Quick(num_learners=2)], expected_failed_checks=expected_failures)
def test_it_is_an_estimator(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ along four directions, in noise along all others."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    signal = rng.normal(size=(CLASSES, 4))[labels] + 0.15 * rng.normal(size=(len(labels), 4))
    return np.concatenate([signal, rng.normal(size=(len(labels), DIM - 4))], 1), labels


@pytest.fixture(scope="module")
def fitted(vectors: tuple[np.ndarray, np.ndarray]) -> dc.DivideAndConquer:
    """Trained on half of the classes."""
    X, y = vectors
    seen = y < CLASSES // 2
    estimator = dc.DivideAndConquer(8, 2, epochs=40, batch_size=24, head_lr=1e-2, device="cpu", random_state=0)
    return estimator.fit(X[seen], np.array([f"class {label}" for label in y[seen]]))


def test_it_learns_what_tells_classes_apart_that_it_has_not_seen(
    fitted: dc.DivideAndConquer, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    X, y = vectors[0][vectors[1] >= CLASSES // 2], vectors[1][vectors[1] >= CLASSES // 2]
    before = dc.retrieval_metrics(X, y, metric="cosine")["map_at_r"]
    assert fitted.score(X, y) > before + 0.15
    embedded = fitted.transform(X)
    assert fitted.score(X, y) == dc.retrieval_metrics(embedded, y)["map_at_r"]
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1)
    np.testing.assert_allclose(embedded, fitted.model_.encode(X.astype(np.float32)), atol=1e-5)
    assert fitted.division_ is not None and fitted.division_.num_learners == 2
    assert len(fitted.losses_) == 40 and fitted.losses_[-1] < fitted.losses_[0]


def test_a_seed_gives_the_same_and_the_callers_random_numbers_are_left_alone(
    vectors: tuple[np.ndarray, np.ndarray],
) -> None:
    X, y = vectors
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (Quick(random_state=seed).fit(X, y).transform(X[:5]) for seed in (3, 3, 4))
    torch.testing.assert_close(torch.rand(3), expected)
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3
    of_state = [Quick(random_state=np.random.RandomState(1)).fit(X, y).transform(X[:5]) for _ in range(2)]
    np.testing.assert_array_equal(*of_state)


def test_in_a_pipeline_with_a_grid_whose_folds_are_of_whole_classes(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = vectors
    pipeline = make_pipeline(StandardScaler(), Quick(random_state=0))
    grid = {"divideandconquer__embedding_dim": [2, 8], "divideandconquer__settings": [None, {"weight_decay": 0.0}]}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(3), error_score="raise").fit(X, y, groups=y)
    assert search.best_params_["divideandconquer__embedding_dim"] == 8
    scores = search.cv_results_["mean_test_score"]
    assert ((scores > 0) & (scores < 1)).all() and search.best_score_ == scores.max()
    classifier = make_pipeline(Quick(random_state=0), KNeighborsClassifier(1)).fit(X, y)
    assert classifier.score(X, y) == 1.0


def test_frames_names_pickles_and_clones(fitted: dc.DivideAndConquer, vectors: tuple[np.ndarray, np.ndarray]) -> None:
    X = vectors[0][:20]
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params() and not hasattr(fresh, "model_")
    with pytest.raises(NotFittedError):
        fresh.transform(X)
    frame = pd.DataFrame(vectors[0], columns=[f"f{i}" for i in range(DIM)], index=range(100, 100 + len(vectors[0])))
    estimator = Quick(random_state=0).set_output(transform="pandas").fit(frame, vectors[1])
    shown = estimator.transform(frame)
    assert list(shown.columns) == list(estimator.get_feature_names_out())
    assert list(shown.columns) == [f"divideandconquer{i}" for i in range(4)]
    assert list(shown.index) == list(frame.index)
    assert list(estimator.feature_names_in_) == list(frame.columns) and estimator.n_features_in_ == DIM
    assert fitted.transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"epochs": 3}}, "epochs is an argument of its own"),
        ({"settings": {"epoch": 3}}, "epoch is no setting of divcon.TrainConfig"),
        ({"loss": "MarginLos"}, "did you mean 'MarginLoss'"),
        ({"num_learners": 8}, "cannot be divided among `num_learners` 8"),
    ],
)
def test_what_cannot_be_is_a_value_error(
    change: dict[str, Any], said: str, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match=said):
        Quick(**change).fit(*vectors)


def test_classes_are_needed(vectors: tuple[np.ndarray, np.ndarray], fitted: dc.DivideAndConquer) -> None:
    X = vectors[0]
    with pytest.raises(ValueError, match="1 class"):
        Quick().fit(X, np.zeros(len(X), int))
    with pytest.raises(ValueError, match="no learner has two classes with two images"):
        Quick().fit(X[:3], [0, 1, 2])
    with pytest.raises(ValueError, match="continuous"):
        Quick().fit(X, X[:, 0])
    with pytest.raises(ValueError, match="has a match"):
        fitted.score(X[:3], [0, 1, 2])
