"""What rank 0 alone knows reaches the other ranks as it is; what differs is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from divcon.errors import DataError
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.exchange import check_alike, from_main
from divcon.runtime.launch import current_group, join, launch

pytestmark = pytest.mark.heavy


@dataclass
class Division:
    """Any object that can be pickled."""

    learner: np.ndarray


def known(group: ProcessGroup) -> Any:
    """A checkpoint, as rank 0 knows it; the others know nothing of it."""
    assert group.is_main, "called by rank 0 alone"
    weights = {"a": torch.arange(6.0).reshape(2, 3).t(), "empty": torch.empty(0, 4, dtype=torch.int64)}
    more = [torch.tensor(True), torch.ones(3, dtype=torch.bfloat16), None, "text", weights["a"]]
    return {"weights": weights, "more": more, "division": Division(np.arange(4)), 7: (1.5, 1)}


def exchange(group: ProcessGroup) -> None:
    assert current_group() is group
    with join() as joined:
        assert joined is group
    value = from_main(group, lambda: known(group))
    assert list(value) == ["weights", "more", "division", 7]
    assert torch.equal(value["weights"]["a"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert value["weights"]["empty"].shape == (0, 4)
    assert value["more"][0].item() is True
    assert value["more"][1].dtype == torch.bfloat16
    assert value["more"][2:4] == [None, "text"]
    assert value["division"].learner.tolist() == [0, 1, 2, 3]
    check_alike(group, "the images", "same", "copy it")
    with pytest.raises(DataError, match=r"^the images: rank 1 on .* \(of 1\) read other data than rank 0 on") as error:
        check_alike(group, "the images", f"of {group.rank}", "copy it")
    assert error.value.elsewhere == (group.rank == 1)  # rank 0 reports it


def test_all_ranks_have_what_rank_0_knows() -> None:
    with launch(2, "learners", "cpu", exchange) as group:
        exchange(group)
    assert current_group() is ALONE


def test_alone_nothing_is_sent() -> None:
    value = object()
    assert from_main(ALONE, lambda: value) is value
    check_alike(ALONE, "the images", "any", "")
