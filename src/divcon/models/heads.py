"""The head: one linear layer whose embedding K learners share. A kind of subspace is a class here."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.errors import ConfigError, unknown


class SubspaceHead(nn.Module, ABC):
    """Pooled features (B, F) to embeddings of length one.

    ``head(features)`` is the full embedding, (B, D). ``head(features, learner=k)`` is learner k's, (B, d_k): the part
    of the embedding that it trains (2019, section 3.2); ``with_full=True`` gives both, of the same features after
    dropout. Calling it changes nothing.

    A subclass is found by its ``method``, wherever it is defined; keyword-only arguments of its constructor are the
    method's options (``head_options``).
    """

    method: ClassVar[str]
    """The name that `EmbeddingModel` and ``--method`` know the class by."""

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        super().__init__()
        self.max_learners = num_learners
        self.embedding_dim = embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, embedding_dim)

    @property
    def num_learners(self) -> int:
        """The learners that there are now: K, or fewer while a hierarchy grows."""
        return self.max_learners

    def forward(
        self, features: Float[Tensor, "B F"], learner: int | None = None, *, with_full: bool = False
    ) -> Float[Tensor, "B d"] | tuple[Float[Tensor, "B d"], Float[Tensor, "B D"]]:
        features = self.dropout(features)
        own = self.full(features) if learner is None else self.subspace(features, learner)
        return (own, own if learner is None else self.full(features)) if with_full else own

    @abstractmethod
    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """The full embedding, (B, D), each row of length one."""

    @abstractmethod
    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        """Learner k's embedding, (B, d_k), each row of length one."""

    @abstractmethod
    def subspace_dim(self, learner: int) -> int:
        """d_k: how many dimensions learner k's embedding has."""

    def dimensions(self) -> list[list[int]]:
        """The dimensions of the embedding that each learner has to itself, K lists; none where learners share them."""
        return []

    def subspace_parameters(self) -> list[nn.Parameter]:
        """What decides the subspaces and is learned: trained at ``mask_lr`` until the joint phase, then frozen."""
        return []

    def penalty(self) -> Float[Tensor, ""]:
        """What ``mask_penalty`` is multiplied with and added to the loss until the joint phase, a scalar."""
        return self.linear.weight.new_zeros(())

    def dead_learners(self) -> list[int]:
        """Learners whose embedding is zero whatever the image, and which therefore cannot learn any more."""
        return []


class GrowingHead(SubspaceHead, ABC):
    """A head whose learners can double, as a hierarchy of divisions needs (2021)."""

    @abstractmethod
    def start_with_one(self) -> None:
        """Begin a hierarchy: one learner that has the whole embedding."""

    @abstractmethod
    def double(self, moments: Iterable[Tensor] = ()) -> None:
        """Split each learner k in two, 2k and 2k + 1, which begin as k was.

        Args:
            moments: what an optimiser keeps for each value of `subspace_parameters`, split alike.
        """


class SliceHead(SubspaceHead):
    """D split into K consecutive slices whose sizes differ by at most one (2019). With K = 1 this is the ordinary head
    of one metric.

    The full embedding is the concatenation of the K normalised slices divided by the square root of K, so that it has
    length one as each slice has: margins and cutoffs mean the same in every phase.
    """

    method = "slices"

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        parts = _consecutive(embedding_dim, num_learners)
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        self._slices = parts
        self._sizes = [part.stop - part.start for part in self._slices]
        # Each slice on its own: Xavier's variance depends on the number of outputs, and a learner has d_k of them.
        for part in self._slices:
            nn.init.xavier_normal_(self.linear.weight.data[part])
        nn.init.zeros_(self.linear.bias)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        part = self._slices[learner]
        return F.normalize(F.linear(features, self.linear.weight[part], self.linear.bias[part]), dim=1)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        parts = self.linear(features).split(self._sizes, dim=1)
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1) / self.max_learners**0.5

    def subspace_dim(self, learner: int) -> int:
        return self._sizes[learner]

    def dimensions(self) -> list[list[int]]:
        return [list(range(part.start, part.stop)) for part in self._slices]


class MaskHead(GrowingHead):
    """K masks over all D dimensions (2021): learner k's embedding is the embedding times relu(mask k), L2-normalised.

    Learned masks start at one, and are kept apart by `penalty`. Fixed masks are zero or one: consecutive parts of the
    embedding; in a hierarchy, each child has half of its parent's ones.

    Args:
        kind: ``learned`` or ``fixed``.
        full: ``plain``: the full embedding is the embedding itself; ``masked``: times the sum of the relu'd masks.
    """

    method = "masks"

    def __init__(
        self,
        num_features: int,
        embedding_dim: int,
        num_learners: int,
        dropout: float,
        *,
        kind: str = "learned",
        full: str = "plain",
    ) -> None:
        for name, value, known in (("kind", kind, ("learned", "fixed")), ("full", full, ("plain", "masked"))):
            if value not in known:
                raise ConfigError(f"--head-options.{name} of method masks: {unknown('value', str(value), known)}")
        parts = _consecutive(embedding_dim, num_learners)
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        self._learned = kind == "learned"
        self._masked = full == "masked"
        self._num_learners = num_learners
        masks = torch.ones(num_learners, embedding_dim)
        if self._learned:
            self.masks = nn.Parameter(masks)
        else:
            for mask, part in zip(masks.zero_(), parts, strict=True):
                mask[part] = 1
            self.register_buffer("masks", masks)

    @property
    def num_learners(self) -> int:
        return self._num_learners

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._num_learners)

    def set_extra_state(self, state: Tensor) -> None:
        self._num_learners = int(state)

    def _relu(self) -> Float[Tensor, "K D"]:
        return F.relu(self.masks[: self._num_learners])

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        if not 0 <= learner < self._num_learners:
            raise IndexError(f"learner {learner}: there are {self._num_learners}")
        return F.normalize(self.linear(features) * F.relu(self.masks[learner]), dim=1)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        embeddings = self.linear(features)
        return F.normalize(embeddings * self._relu().sum(dim=0) if self._masked else embeddings, dim=1)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim

    def dimensions(self) -> list[list[int]]:
        return [] if self._learned else [torch.nonzero(mask).flatten().tolist() for mask in self._relu()]

    def subspace_parameters(self) -> list[nn.Parameter]:
        return [self.masks] if isinstance(self.masks, nn.Parameter) else []

    def penalty(self) -> Float[Tensor, ""]:
        """The mean cosine of two relu'd masks, over all pairs of learners (2021)."""
        count = self._num_learners
        if count < 2:
            return super().penalty()
        masks = F.normalize(self._relu(), dim=1)
        cosines = masks @ masks.T
        return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))

    def dead_learners(self) -> list[int]:
        return torch.nonzero((self._relu() == 0).all(dim=1)).flatten().tolist()

    @torch.no_grad()
    def start_with_one(self) -> None:
        self.masks.fill_(1)
        self._num_learners = 1

    @torch.no_grad()
    def double(self, moments: Iterable[Tensor] = ()) -> None:
        count = self._num_learners
        if 2 * count > self.max_learners:
            raise ValueError(f"{count} learners cannot double: the head has {self.max_learners} at most")
        for rows in (self.masks, *moments):
            rows[: 2 * count] = rows[:count].repeat_interleave(2, dim=0)
        if not self._learned:
            for parent in range(count):
                ones = torch.nonzero(self.masks[2 * parent]).flatten()
                half = -(-len(ones) // 2)
                self.masks[2 * parent, ones[half:]] = 0
                self.masks[2 * parent + 1, ones[:half]] = 0
        self._num_learners = 2 * count


def methods() -> dict[str, type[SubspaceHead]]:
    """The kinds of subspaces by name: those of this module, and every subclass of `SubspaceHead` made elsewhere."""
    found: dict[str, type[SubspaceHead]] = {"single": SliceHead}
    waiting = list(SubspaceHead.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if not inspect.isabstract(kind) and hasattr(kind, "method"):
            found[kind.method] = kind
    return found


def head_class(method: str, num_learners: int, options: Mapping[str, Any] | None = None) -> type[SubspaceHead]:
    """The class of a method, which can have so many learners and takes such options.

    Raises:
        ConfigError: no such method or option (the nearest names are suggested), or more than one learner under
            ``single``.
    """
    known = methods()
    if method not in known:
        raise ConfigError(
            f"{unknown('method', method, known)}; one of your own is known once the module that defines it is imported"
        )
    if method == "single" and num_learners != 1:
        raise ConfigError(f"method single has one learner, not {num_learners}")
    parameters = inspect.signature(known[method].__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options or {}:
        if option not in names:
            raise ConfigError(
                unknown(f"option of method {method}", option, names)
                if names
                else f"method {method} takes no options, and {option!r} is given (--head-options)"
            )
    return known[method]


def create_head(
    method: str,
    num_features: int,
    embedding_dim: int,
    num_learners: int,
    dropout: float = 0.01,
    options: Mapping[str, Any] | None = None,
) -> SubspaceHead:
    """The head of a method: ``single`` (one learner), ``slices``, ``masks``, or a subclass of your own by its name.

    Args:
        options: keyword-only arguments of the method's class.

    Raises:
        ConfigError: as `head_class`; more learners than dimensions, or an option's value that cannot be.
    """
    kind = head_class(method, num_learners, options)
    return kind(num_features, embedding_dim, num_learners, dropout, **(options or {}))


def _consecutive(dim: int, count: int) -> list[slice]:
    """``dim`` dimensions in ``count`` consecutive parts whose sizes differ by at most one."""
    if not 1 <= count <= dim:
        raise ConfigError(f"an embedding of {dim} dimensions cannot be divided among {count} learners")
    small, larger = divmod(dim, count)
    sizes = [small + (k < larger) for k in range(count)]
    return [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(count)]
