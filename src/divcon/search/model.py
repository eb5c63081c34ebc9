"""The model of a store: given, or found where the store says it lies, when it is first needed."""

from __future__ import annotations

import threading

import torch

from divcon.errors import StoreError
from divcon.models import EmbeddingModel
from divcon.search.store import Store


class StoreModel:
    """Gives the model; several threads may ask."""

    def __init__(self, store: Store, model: EmbeddingModel | None, device: str | torch.device) -> None:
        self._store = store
        self._model = model
        self._device = device
        self._lock = threading.Lock()

    def __call__(self) -> EmbeddingModel:
        """The model, in evaluation mode where it is loaded here.

        Raises:
            StoreError: the store does not say where it lies, or another one lies there now.
            WeightsError: there is none there any more.
        """
        with self._lock:
            if self._model is None:
                about, uri = self._store.about(), self._store.uri
                if about.model is None:
                    raise StoreError(f"{uri}: does not say where its model lies; give the model, or its folder")
                model = EmbeddingModel.load(about.model, device=self._device)
                about.check_model(model, uri)
                self._model = model
            return self._model
