"""Losses with parameters for each class (proxies): a learner compares only with those of its cluster's classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call


class ClusterProxies(nn.Module):
    """A loss with parameters (proxies, centres, betas) for all C classes that computes with those of some classes.

    After `set_classes`, its value and gradients are those of a loss created for these c classes. The parameters of all
    other classes do not change, bit for bit, until their classes are set again: their gradient is zero, and changes
    that an optimiser makes without a gradient (momentum, weight decay) are undone before the parameters are used again,
    here or in ``state_dict``.

    Args:
        create: creates the loss for a number of classes.
        num_classes: C.
    """

    def __init__(self, create: Callable[[int], nn.Module], num_classes: int) -> None:
        super().__init__()
        self.loss = create(num_classes)
        self._create = create
        self._num_classes = num_classes
        self._blocks = _class_blocks(create)
        self._classes: Tensor | None = None
        self._present = torch.empty(0, dtype=torch.bool)
        """(C,) which classes are set, on the CPU."""
        self._local = torch.empty(0, dtype=torch.int64)
        """(C,) the position of each class among those that are set."""
        # In a dict, so that its parameters, which are never used, are not parameters of this module.
        self._for_present: dict[str, nn.Module] = {}
        self._absent: dict[str, tuple[Tensor, Tensor]] = {}
        """Of each parameter, the rows of the classes that are not set, and their values."""
        self.register_state_dict_pre_hook(lambda module, *_: module.restore())  # type: ignore[arg-type]
        self.register_load_state_dict_post_hook(lambda module, *_: module._save_absent())  # type: ignore[arg-type]

    @staticmethod
    def needed(create: Callable[[int], nn.Module]) -> bool:
        """Whether the loss that ``create`` returns has parameters for each class."""
        return bool(_class_blocks(create))

    def set_classes(self, classes: Int64[Tensor, "c"] | Int64[np.ndarray, "c"] | None) -> None:
        """Compute with these classes only; None: with all of them. Draws no random numbers."""
        device = next(self.loss.parameters()).device
        # What depends on the classes alone is computed on the CPU.
        on_cpu = None if classes is None else torch.as_tensor(classes).cpu()
        new = None if on_cpu is None else on_cpu.to(device)
        if new is None or self._classes is None:
            same = new is self._classes
        else:
            same = torch.equal(new, self._classes.to(device))
        if same:
            return
        self.restore()
        self._classes = new
        self._for_present.clear()
        if on_cpu is not None and new is not None:
            positions = torch.full((self._num_classes,), -1)
            positions[on_cpu] = torch.arange(len(on_cpu))
            self._present, self._local = positions >= 0, positions.to(device)
            if len(new):
                with torch.random.fork_rng(devices=[]):
                    self._for_present["loss"] = self._create(len(new)).to(device)
        self._save_absent()

    def check_labels(self, labels: Int64[Tensor, "B"]) -> None:
        """Check that all labels, (B,) on the CPU, are of the classes that are set.

        Raises:
            ValueError: some are not.
        """
        if self._classes is None:
            return
        present = self._present[labels]
        if not present.all():
            raise ValueError(
                f"labels {labels[~present].unique().tolist()} are not of the {len(self._classes)} classes that the "
                "learner's cluster has"
            )

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        indices_tuple: Any = None,
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
    ) -> Any:
        """The loss of the batch, whose labels have passed `check_labels`."""
        if self._classes is None:
            return self.loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        # In each step: otherwise their drift would enter the optimiser's moments by weight decay.
        self.restore()
        self._local = self._local.to(labels.device)
        labels = self._local[labels]
        ref_labels = None if ref_labels is None else self._local[ref_labels]
        parameters = {
            name: parameter.index_select(self._blocks[name][0], self._rows(name, self._classes))
            if name in self._blocks
            else parameter
            for name, parameter in self.loss.named_parameters()
        }
        storage = {name: parameters[name].data_ptr() for name in self._blocks}
        loss = self._for_present["loss"].to(embeddings.device)
        value = functional_call(loss, parameters, (embeddings, labels, indices_tuple, ref_emb, ref_labels))
        for name in self._blocks:
            # P2SGradLoss rescales its proxies to length one, and replaces their values.
            if parameters[name].data_ptr() != storage[name]:
                dim, rows = self._blocks[name][0], self._rows(name, self._classes)
                self.loss.get_parameter(name).data.index_copy_(dim, rows, parameters[name].data)
        return value

    def _rows(self, name: str, classes: Int64[Tensor, "c"]) -> Int64[Tensor, "r"]:
        """The rows of a parameter that belong to these classes: one class after the other, each with all its rows."""
        _, each = self._blocks[name]
        classes = classes.to(self.loss.get_parameter(name).device)
        return (classes[:, None] * each + torch.arange(each, device=classes.device)).flatten()

    @torch.no_grad()
    def _save_absent(self) -> None:
        self._absent = {}
        if self._classes is None:
            return
        for name, (dim, _) in self._blocks.items():
            rows = self._rows(name, (~self._present).nonzero().flatten())
            self._absent[name] = rows, self.loss.get_parameter(name).index_select(dim, rows)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo an optimiser's changes to the parameters of the classes that are not set."""
        for name, (rows, values) in self._absent.items():
            parameter = self.loss.get_parameter(name)
            parameter.index_copy_(self._blocks[name][0], rows.to(parameter.device), values.to(parameter.device))


def _class_blocks(create: Callable[[int], nn.Module]) -> dict[str, tuple[int, int]]:
    """For each parameter that grows with the number of classes: the dimension, and the rows of each class."""
    with torch.random.fork_rng(devices=[]):
        two, three = dict(create(2).named_parameters()), dict(create(3).named_parameters())
    blocks = {}
    for name, parameter in two.items():
        for dim, (small, large) in enumerate(zip(parameter.shape, three[name].shape, strict=True)):
            if large != small:
                blocks[name] = dim, large - small
    return blocks
