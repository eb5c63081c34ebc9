"""Cross-batch memory: a learner's loss compares a batch with embeddings of past batches too."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor, nn

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.training.miners import TripletMiner

_REFUSED = {
    "NCALoss": "it would compare each image with its own copy in the memory",
    "IntraPairVarianceLoss": "it is no loss that divcon trains",
    "LiftedStructureLoss": "pytorch-metric-learning's takes places in the memory for places in the batch",
}


class Memory(CrossBatchMemory):
    """The last ``memory_size`` embeddings of a learner's batches, the present one included (Wang et al., "Cross-Batch
    Memory for Embedding Learning", CVPR 2020), all of it in ``state_dict``.

    Args:
        loss: what compares the batch with the memory.
        dim: how many dimensions the embeddings have.
        size: how many it holds.
        miner: picks pairs or triplets between batch and memory; None: all pairs.
    """

    def __init__(self, loss: nn.Module, dim: int, size: int, miner: nn.Module | None) -> None:
        super().__init__(loss=loss, embedding_size=dim, memory_size=size, miner=miner)

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Done by `check_memory`, which knows the loss before it is made and says why not."""

    def forget(self) -> None:
        """Empty it."""
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
        """What the miner picks; ours are told which embeddings of the memory are the batch itself."""
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
    """The losses that can have a memory."""
    return sorted(set(CrossBatchMemory.supported_losses()) - set(_REFUSED))


def check_memory(config: TrainConfig) -> None:
    """Whether loss and miner of ``config`` can have a memory of its size.

    Raises:
        ConfigError: they cannot; the message says why and what can.
    """
    loss, what = config.loss, f"--memory-size {config.memory_size}"
    if loss not in memory_losses():
        reason = _REFUSED.get(loss, "it compares the batch with itself, or with proxies")
        raise ConfigError(
            f"{what}: {loss} cannot have a memory ({reason}); use one of {', '.join(memory_losses())}, or leave "
            "--memory-size out"
        )
    if config.memory_size < config.batch_size:
        raise ConfigError(f"{what}: the memory must hold a batch at least, and --batch-size is {config.batch_size}")
    if loss == "TripletMarginLoss" and config.loss_options.get("swap"):
        raise ConfigError(
            f"{what}: TripletMarginLoss with swap compares positives with negatives, and both are in the memory; leave "
            "out one of the two"
        )
    if config.miner == "BatchEasyHardMiner" and config.miner_options.get("pos_strategy", "easy") == "easy":
        raise ConfigError(
            f"{what}: the easiest positive that BatchEasyHardMiner finds is an image's own copy in the memory; give "
            "--miner-options.pos_strategy hard or all, or another --miner"
        )
