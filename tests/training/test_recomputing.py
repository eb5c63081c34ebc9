"""Gradient checkpointing: the same training, with fewer activations in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError

CONFIG = dc.TrainConfig(epochs=2, batch_size=8, images_per_class=2, workers=0, redivide_every=1, finetune_epoch=1)


def network(**options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    options = {"backbone": "test_vit", "pretrained": False, "image_size": 64, **options}
    return dc.EmbeddingModel(embedding_dim=8, num_learners=2, **options)


@pytest.mark.parametrize(("backbone", "precision"), [("test_vit", "fp32"), ("test_convnext", "bf16")])
def test_training_is_the_same(backbone: str, precision: str, few: Benchmark) -> None:
    config = replace(CONFIG, precision=precision)
    plain, saving = network(backbone=backbone), network(backbone=backbone)
    some = few.train.subset(np.arange(48))
    losses = [epoch.loss for epoch in dc.train(plain, some, config)]
    assert [epoch.loss for epoch in dc.train(saving, some, replace(config, grad_checkpointing=True))] == losses
    for name, value in plain.state_dict().items():
        assert torch.equal(saving.state_dict()[name], value), name


def saved_bytes(model: dc.EmbeddingModel) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the weights."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(16, 3, 64, 64))
    size = sum(kept.values())
    output.sum().backward()
    return size


def test_it_keeps_fewer_activations_in_training_and_nothing_else_changes() -> None:
    model = network().train()
    plain = saved_bytes(model)
    model.recompute_activations(True)
    assert saved_bytes(model) < plain / 3
    backbone: Any = model.backbone
    assert backbone.grad_checkpointing and not model.eval().backbone.grad_checkpointing  # type: ignore[union-attr]
    assert model.train().backbone.grad_checkpointing  # type: ignore[union-attr]
    model.recompute_activations(False)
    assert not backbone.grad_checkpointing and not model.train().backbone.grad_checkpointing  # type: ignore[union-attr]
    assert saved_bytes(model) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "test_resnet", "image_size": 32}, "trains BatchNorm, whose running statistics would count"),
        ({"backbone": "mlp", "vector_dim": 4}, "this backbone cannot .*it has no method set_grad_checkpointing"),
    ],
)
def test_what_cannot_is_refused(options: dict[str, Any], message: str, few: Benchmark) -> None:
    data: Any = few.train
    if "vector_dim" in options:
        data = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 5
    with pytest.raises(ConfigError, match=f"`grad_checkpointing`: .*{message}"):
        dc.train(network(**options), data, replace(CONFIG, grad_checkpointing=True))
    frozen = network(backbone="test_resnet", image_size=32)
    frozen.freeze_batch_norm = True  # as where weights are pretrained
    frozen.recompute_activations(True)
