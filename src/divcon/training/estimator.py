"""Training on vectors as an estimator of scikit-learn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from divcon.config.from_data import fit
from divcon.config.settings import ModelConfig, RunConfig, TrainConfig
from divcon.data.inputs import as_labeled_set
from divcon.errors import ConfigError, DivconError
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.models import EmbeddingModel, can_start_as_pca, start_as_pca
from divcon.training.loop import train


@contextmanager
def _value_errors() -> Iterator[None]:
    """Raise errors of the input as scikit-learn's estimators do."""
    try:
        yield
    except DivconError as error:
        raise ValueError(str(error)) from error


# The order of the mixins is scikit-learn's rule: from the special to the general, BaseEstimator last.
class DivideAndConquer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Train an embedding of vectors by divide and conquer, as a transformer of scikit-learn: ``fit(X, y)`` trains a
    head on vectors with classes, ``transform(X)`` embeds vectors, also of classes that were not in ``y``.

    It works in a ``Pipeline``, in ``GridSearchCV`` and with ``set_output``. To choose settings, divide the classes and
    not the rows: ``GridSearchCV(estimator, grid, cv=GroupKFold(5)).fit(X, y, groups=y)``; `score` is MAP@R.

    All arguments but the first four are those of `divcon.TrainConfig`.

    Args:
        embedding_dim: D, dimensions of the embedding.
        num_learners: K; None: chosen from the data, as `divcon.run` does (one, unless there is much).
        method: ``slices``, ``masks``, or one of your own; with one learner it is ``single``.
        backbone: ``none``: a linear head on the vectors; ``mlp``: a small residual network before it.
        epochs, batch_size, images_per_class: None: chosen from the data.
        redivide_every: epochs between divisions.
        divide_by: ``image``, ``class``, ``random``, ``random-class`` or ``none``.
        loss, loss_options, miner, miner_options: by name, as in `divcon.TrainConfig`; options None: none.
        lr: learning rate of ``mlp``.
        head_lr: learning rate of the head.
        settings: any other settings of `divcon.TrainConfig`, by name; None: none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``: where to train. `transform` computes on the CPU.
        random_state: an int, a ``RandomState``, or None for other random numbers each time.

    Attributes:
        model_: the trained `divcon.EmbeddingModel`, which `divcon.evaluate` and `divcon.Index` take.
        division_: the last `divcon.Division` of the rows of ``X`` among the learners.
        losses_: the mean loss of each epoch.
        n_features_in_: F, the number of columns of ``X``.
        feature_names_in_: their names, where ``X`` has any.
    """

    model_: EmbeddingModel
    n_features_in_: int

    def __init__(
        self,
        embedding_dim: int = 128,
        num_learners: int | None = None,
        method: str = "slices",
        backbone: str = "none",
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        images_per_class: int | None = None,
        redivide_every: int = 2,
        divide_by: str = "image",
        loss: Any = "MarginLoss",
        loss_options: Mapping[str, Any] | None = None,
        miner: Any = "auto",
        miner_options: Mapping[str, Any] | None = None,
        lr: float = 1e-4,
        head_lr: float = 1e-3,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.num_learners = num_learners
        self.method = method
        self.backbone = backbone
        self.epochs = epochs
        self.batch_size = batch_size
        self.images_per_class = images_per_class
        self.redivide_every = redivide_every
        self.divide_by = divide_by
        self.loss = loss
        self.loss_options = loss_options
        self.miner = miner
        self.miner_options = miner_options
        self.lr = lr
        self.head_lr = head_lr
        self.settings = settings
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> DivideAndConquer:
        """Train.

        Args:
            X: (N, F) numbers: an array or a frame.
            y: (N,) classes: ints or strings; at least two of two rows each.

        Raises:
            ValueError: ``X`` is sparse, not finite or of another shape; ``y`` is missing or no classes; there are too
                few classes or rows; or settings do not go together (`divcon.errors.ConfigError`).
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"n_samples={len(X)}, of 1 class: fit needs two classes with two samples each at least")
        if X.shape[1] == 1 and (self.num_learners or 1) > 1:
            raise ValueError("n_features=1: vectors of one number have one direction, and cannot be divided")
        state = self.random_state
        seed = int(state) if isinstance(state, Integral) else int(check_random_state(state).randint(2**31 - 1))
        with _value_errors():
            self._train(X, labels, seed)
        return self

    def _train(self, X: np.ndarray, labels: np.ndarray, seed: int) -> None:
        vectors = as_labeled_set((X.astype(np.float32), labels))
        config, _ = fit(self._config(seed), vectors.labels)
        options = {**config.model.network, "vector_dim": X.shape[1]}
        cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=cuda):  # training must not change what the caller draws
            torch.manual_seed(seed)
            model = EmbeddingModel(**options)
            if can_start_as_pca(model, vectors):
                start_as_pca(model, vectors, seed=seed)
            self.losses_, self.division_ = [], None
            for report in train(model, vectors, config.train):
                self.losses_.append(report.loss)
                self.division_ = report.division if report.division.num_learners > 1 else self.division_
        self.model_ = model.cpu().eval()

    def _config(self, seed: int) -> RunConfig:
        more = dict(self.settings or {})
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        own = sorted(known & set(self.get_params(deep=False)) | {"seed"})
        for name in more:
            if name in own or name not in known:
                why = "is an argument of its own" if name in own else "is no setting of divcon.TrainConfig"
                raise ConfigError(f"`settings`: {name} {why}", field="settings")
        network: dict[str, Any] = {"backbone": self.backbone, "embedding_dim": self.embedding_dim}
        network |= {"method": self.method, "num_learners": self.num_learners or 0}
        chosen = {name: getattr(self, name) or 0 for name in ("epochs", "batch_size", "images_per_class")}
        given = {
            name: getattr(self, name) for name in ("redivide_every", "divide_by", "loss", "miner", "lr", "head_lr")
        }
        options = {name: dict(getattr(self, name) or {}) for name in ("loss_options", "miner_options")}
        running = {"device": self.device, "seed": seed, "workers": 0}
        return RunConfig(ModelConfig(**network), TrainConfig(**{**chosen, **given, **options, **running, **more}))

    def transform(self, X: Any) -> Any:
        """The embeddings, (N, D) of length one, in the precision of ``X`` (float32, or else float64).

        Args:
            X: (N, F) numbers: an array or a frame.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: ``X`` is sparse, not finite, or has another number of columns.
        """
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        # In double precision, a row's embedding does not depend on the rows beside it.
        model = copy.deepcopy(self.model_).double().eval()
        with torch.inference_mode():
            rows = [model(torch.from_numpy(X[i : i + 8192].astype(np.float64))) for i in range(0, len(X), 8192)]
        return torch.cat(rows).numpy().astype(X.dtype)

    def score(self, X: Any, y: Any) -> float:
        """MAP@R of the embeddings: each row searches among all others, and those of its class are matches. Of classes
        that were not in `fit`, it is the score that counts.

        Args:
            X: (N, F) numbers.
            y: (N,) classes.

        Raises:
            NotFittedError, ValueError: as of `transform`; or no class has two rows.
        """
        embeddings = np.asarray(self.transform(X))
        with _value_errors():
            return float(retrieval_metrics(embeddings, np.asarray(y), recall_at=(1,))["map_at_r"])

    @property
    def _n_features_out(self) -> int:
        """For `get_feature_names_out`."""
        return self.model_.embedding_dim

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
