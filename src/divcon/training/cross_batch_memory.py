"""Cross-batch memory: a learner's loss compares a batch with the embeddings of past batches too."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses as pml_losses
from torch import Tensor, nn

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.training.instantiate import arguments, parameters_of
from divcon.training.miners import TripletMiner
from divcon.training.own import name_in_words

_REFUSED = {
    "NCALoss": "it would compare each image with its own copy in the memory",
    "IntraPairVarianceLoss": "divcon does not train it",
    "LiftedStructureLoss": "pytorch-metric-learning's takes positions in the memory for positions in the batch",
}


class CrossBatchMemory(pml_losses.CrossBatchMemory):
    """The last ``size`` embeddings of a learner's batches, the current one included (Wang et al., "Cross-Batch Memory
    for Embedding Learning", CVPR 2020), all of it in ``state_dict``.

    Args:
        loss: compares the batch with the memory.
        dim: dimensions of the embeddings.
        size: the number of embeddings in the memory.
        miner: picks pairs or triplets between batch and memory; None: all pairs.
    """

    def __init__(self, loss: nn.Module, dim: int, size: int, miner: nn.Module | None) -> None:
        super().__init__(loss=loss, embedding_size=dim, memory_size=size, miner=miner)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Do nothing: `check_cross_batch_memory` checks the loss before it is created, with a better message."""

    def reset(self) -> None:
        """Empty the memory."""
        self.embedding_memory.zero_()
        self.label_memory.zero_()
        self.queue_idx = 0
        self.has_been_filled = False

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        """The pairs or triplets that the miner picks; ours take the positions in the memory of the batch itself."""
        if isinstance(self.miner, TripletMiner):
            return self.miner(embeddings, labels, E_mem, L_mem, own=self.curr_batch_idx)
        return super().create_indices_tuple(
            embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.queue_idx = state["queue_idx"]
        self.has_been_filled = state["has_been_filled"]


def memory_losses() -> list[str]:
    """The losses of pytorch-metric-learning that can have a cross-batch memory."""
    return sorted(set(pml_losses.CrossBatchMemory.supported_losses()) - set(_REFUSED))


def check_cross_batch_memory(config: TrainConfig, loss: Any) -> None:
    """Check that the loss and the miner of ``config`` can have a memory of its size.

    Args:
        loss: the class, the module or the function that ``config.loss`` names.

    Raises:
        ConfigError: they cannot; the message says why and what can.
    """
    setting = f"`memory_size` is {config.memory_size}, and"
    kind = loss if isinstance(loss, type) else type(loss)
    if reason := _reason_against(loss, kind):
        raise ConfigError(
            f"{setting} {name_in_words(loss)} cannot have a memory ({reason}); use one of "
            f"{', '.join(memory_losses())}, or leave `memory_size` out",
            field=("memory_size", "loss"),
        )
    if config.memory_size < config.batch_size:
        raise ConfigError(
            f"{setting} the memory must hold at least a batch: `batch_size` is {config.batch_size}",
            field=("memory_size", "batch_size"),
        )
    swap = config.loss_options.get("swap") if isinstance(loss, type) else getattr(loss, "swap", False)
    if kind is pml_losses.TripletMarginLoss and swap:
        raise ConfigError(
            f"{setting} TripletMarginLoss with swap compares positives with negatives, and both are in the memory; "
            "leave out one of the two",
            field=("memory_size", "loss_options"),
        )
    if config.miner == "BatchEasyHardMiner" and config.miner_options.get("pos_strategy", "easy") == "easy":
        raise ConfigError(
            f"{setting} the easiest positive that BatchEasyHardMiner picks is an image's own copy in the memory; set "
            "pos_strategy in `miner_options` to hard or all, or use another `miner`",
            field=("miner_options", "memory_size"),
        )


def _reason_against(loss: Any, kind: type) -> str | None:
    name = kind.__name__
    if getattr(pml_losses, name, None) is kind or issubclass(kind, pml_losses.SmoothAPLoss):
        if name in memory_losses():
            return None
        return _REFUSED.get(name, "it compares the batch with itself, or with proxies")
    forward = getattr(kind, "forward", None) or (kind.__call__ if isinstance(loss, type) else loss)
    if not {"ref_emb", "ref_labels"} <= parameters_of(forward):
        return "it takes no `ref_emb` and `ref_labels`, the embeddings and labels to compare with"
    if isinstance(loss, type) and "num_classes" in arguments(kind):
        return "it has parameters for each class"
    return None
