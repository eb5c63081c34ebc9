"""Heads: pooled features to the embedding that K learners share. A kind of subspace is a subclass of `SubspaceHead`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.errors import ConfigError, unknown
from divcon.models.names import check_method_name
from divcon.runtime.importing import load_part, name_of

_Derived = TypeVar("_Derived", bound="DerivedHead")


class SubspaceHead(nn.Module, ABC):
    """Pooled features (B, F) to embeddings of length one.

    ``head(features)`` is the full embedding, (B, D). ``head(features, learner=k)`` is learner k's, (B, d_k): the
    subspace that it trains (2019, section 3.2). ``with_full=True`` returns both, of the same features after dropout.
    Calling a head changes nothing in it.

    A subclass needs three methods: `full`, `subspace` and `subspace_dim`. The others have defaults that work for any
    head. Keyword-only arguments of the constructor are the head's options (``head_options``). The constructor here
    creates ``linear``, an ``nn.Linear(F, D)``, for the subclass to use or to replace.
    """

    method: ClassVar[str]
    """A short name for the setting ``method``, once the module of the class is imported. Without one, the name is
    ``module:Name``."""

    embedding: ClassVar[Literal["head", "features", "pca"]] = "head"
    """What the full embedding is computed from (see `divcon.models.with_embedding`)."""

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        super().__init__()
        self.name = _name_of(type(self))
        """The name of the head in a model's files: a method, or ``module:Name``."""
        self.options: dict[str, Any] = {}
        """The keyword arguments that it was created with."""
        self.num_features = num_features
        self.max_learners = num_learners
        self.embedding_dim = embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, embedding_dim)

    @property
    def num_learners(self) -> int:
        """The current number of learners: K, or fewer while a hierarchy grows."""
        return self.max_learners

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `create_head` that create a head like this one, without ``num_features`` and ``dropout``."""
        return {
            "embedding_dim": self.embedding_dim,
            "num_learners": self.max_learners,
            "method": self.name,
            "head_options": dict(self.options),
        }

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
        """d_k, the number of dimensions of learner k's embedding."""

    # Training.

    def subspace_parameters(self) -> list[nn.Parameter]:
        """The parameters that decide the subspaces: trained at ``mask_lr`` until the joint phase, then frozen."""
        return []

    def penalty(self) -> Float[Tensor, ""]:
        """A scalar that is added to the loss, times ``mask_penalty``, until the joint phase."""
        return next(self.parameters()).new_zeros(())

    def dead_learners(self) -> list[int]:
        """Learners whose embedding is zero for every image, so that they cannot learn any more."""
        return []

    @property
    def can_double(self) -> bool:
        """Whether the learners can double, as a hierarchy of divisions needs (2021)."""
        return type(self).double is not SubspaceHead.double

    def start_with_one(self) -> None:
        """Start a hierarchy with one learner, whose subspace is the full embedding.

        Raises:
            ConfigError: the head has no hierarchy.
        """
        raise self.no_hierarchy()

    def double(self, moments: Iterable[Tensor] = ()) -> None:
        """Split each learner k in two, 2k and 2k + 1, which start as copies of k.

        Args:
            moments: the optimiser's state of `subspace_parameters` that does not start afresh (see
                `divcon.training.setup.double_learners`), to be split in the same way.

        Raises:
            ConfigError: the head has no hierarchy.
        """
        raise self.no_hierarchy()

    def no_hierarchy(self) -> ConfigError:
        """The error for a head without hierarchy."""
        return ConfigError(
            f"`hierarchy`: the learners of method {self.name} cannot be split in two; use `method=masks`, a head of "
            "your own that defines `start_with_one` and `double`, or leave `hierarchy` out",
            field=("hierarchy", "method"),
        )

    @torch.no_grad()
    def start_from(self, weight: Float[Tensor, "D F"], bias: Float[Tensor, "D"]) -> None:
        """Start the linear layer from this weight and bias, as ``head_init=pca`` does.

        Raises:
            ConfigError: ``linear`` is no linear layer with a bias, from F features to D dimensions.
        """
        linear = getattr(self, "linear", None)
        fits = isinstance(linear, nn.Linear) and linear.weight.shape == weight.shape and linear.bias is not None
        if not isinstance(linear, nn.Linear) or not fits:
            raise ConfigError(
                f"`head_init`: the head of method {self.name} has no `linear` of {weight.shape[1]} features and "
                f"{len(weight)} dimensions to start from a PCA; use `head_init=random`, or a head of your own that "
                "defines `start_from`",
                field=("head_init", "method"),
            )
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)

    # Evaluation by subspace, search by learner, pruning and export.

    @property
    def trained(self) -> SubspaceHead:
        """The head that was trained: this one, or the one under `FeaturesHead` and `PcaHead`, which replace its full
        embedding and keep its learners."""
        return self

    def dimensions(self) -> list[list[int]]:
        """The dimensions of the full embedding that belong to one learner alone, K lists; empty where learners share
        dimensions. The full embedding, cut to a learner's dimensions and L2-normalised, is the learner's."""
        return []

    def subspace_weights(self, learner: int) -> Float[Tensor, "D"] | None:
        """Weights w such that learner k's embedding is the full one times w, L2-normalised (but for dimensions that are
        always zero); None where there are none. An index stores full embeddings, and searches by learner with these."""
        parts = self.dimensions()
        if not parts:
            return None
        weights = torch.zeros(self.embedding_dim)
        weights[parts[learner]] = 1
        return weights

    def as_linear(
        self, learner: int | None = None, features: Float[Tensor, "N F"] | None = None
    ) -> tuple[Float[Tensor, "d F"], Float[Tensor, "d"]] | None:
        """Weight and bias, float64 on the CPU, of a linear layer whose L2-normalised output is the embedding; None
        where there is none. A pruned model then has one linear layer as its head.

        Args:
            learner: k for its subspace; None for the full embedding.
            features: a sample to fit the layer to, if the embedding is linear up to the lengths of its parts.
        """
        return None

    def keep_learner(self, learner: int) -> SubspaceHead:
        """A head of one learner whose embedding is learner k's."""
        if (linear := self.as_linear(learner)) is not None:
            return linear_head(*linear, dropout=self.dropout.p)
        return self._derived(LearnerHead, self.subspace_dim(learner), 1, learner=learner)

    def keep_subspaces(self, learners: Sequence[int]) -> SubspaceHead:
        """A head of some learners, whose full embedding is this one's, cut to their dimensions and L2-normalised.

        Args:
            learners: ascending numbers of learners that have dimensions of their own (see `dimensions`).
        """
        parts = self.dimensions()
        return self._derived(CutHead, sum(len(parts[k]) for k in learners), len(learners), learners=list(learners))

    def projected(self, basis: Float[Tensor, "d D"]) -> SubspaceHead:
        """A head of one learner whose embedding is the full one, projected by ``basis`` and L2-normalised."""
        head = self._derived(ProjectedHead, len(basis), 1)
        with torch.no_grad():
            head.projection.weight.copy_(basis)
        return head

    def as_features(self) -> FeaturesHead:
        """A head whose full embedding is the L2-normalised features, and whose learners are this one's."""
        return self.trained._derived(FeaturesHead, self.num_features, self.max_learners)

    def as_pca(self, weight: Float[Tensor, "D F"], bias: Float[Tensor, "D"]) -> PcaHead:
        """A head whose full embedding is this linear layer of the L2-normalised features, L2-normalised again, and
        whose learners are this one's."""
        head = self.trained._derived(PcaHead, len(weight), self.max_learners)
        with torch.no_grad():
            head.projection.weight.copy_(weight)
            head.projection.bias.copy_(bias)
        return head

    def _derived(self, kind: type[_Derived], embedding_dim: int, num_learners: int, **options: Any) -> _Derived:
        options = {"of": self.config, **options}
        with torch.random.fork_rng(devices=[]):  # training may go on, and draws the same numbers without this head
            head = create_head(kind, self.num_features, embedding_dim, num_learners, self.dropout.p, options)
        assert isinstance(head, kind)
        head.of.load_state_dict(self.state_dict())
        return head


class SliceHead(SubspaceHead):
    """D split into K consecutive slices whose sizes differ by at most one (2019). With K = 1 this is the ordinary head
    of one metric.

    The full embedding is the concatenation of the K normalised slices divided by the square root of K: it has length
    one, as each slice has, so that margins and cutoffs mean the same in every phase.
    """

    method = "slices"

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        slices = _consecutive(embedding_dim, num_learners)
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        self._slices = slices
        self._sizes = [dims.stop - dims.start for dims in slices]
        # Slice by slice: Xavier's variance depends on the number of outputs, and a learner has d_k.
        for dims in slices:
            nn.init.xavier_normal_(self.linear.weight.data[dims])
        nn.init.zeros_(self.linear.bias)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        dims = self._slices[learner]
        return F.normalize(F.linear(features, self.linear.weight[dims], self.linear.bias[dims]), dim=1)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        slices = self.linear(features).split(self._sizes, dim=1)
        return torch.cat([F.normalize(one, dim=1) for one in slices], dim=1) / self.max_learners**0.5

    def subspace_dim(self, learner: int) -> int:
        return self._sizes[learner]

    def dimensions(self) -> list[list[int]]:
        return [list(range(dims.start, dims.stop)) for dims in self._slices]

    @torch.no_grad()
    def as_linear(
        self, learner: int | None = None, features: Float[Tensor, "N F"] | None = None
    ) -> tuple[Float[Tensor, "d F"], Float[Tensor, "d"]] | None:
        """As in `SubspaceHead`. The full embedding of several slices is not linear: each slice is divided by its mean
        length over ``features`` in place of its own."""
        weight, bias = self.linear.weight.cpu().double(), self.linear.bias.cpu().double()
        if learner is not None:
            return weight[self._slices[learner]], bias[self._slices[learner]]
        if self.num_learners == 1:
            return weight, bias
        if features is None:
            return None
        outputs = features.cpu().double() @ weight.T + bias
        scale = torch.ones_like(bias)
        for dims in self._slices:
            scale[dims] = 1 / outputs[:, dims].norm(dim=1).mean().clamp_min(1e-12)
        return weight * scale[:, None], bias * scale

    @torch.no_grad()
    def keep_subspaces(self, learners: Sequence[int]) -> SubspaceHead:
        rows = [d for k in learners for d in self.dimensions()[k]]
        return _like(self, rows, len(learners))


class MaskHead(SubspaceHead):
    """K masks over all D dimensions (2021): learner k's embedding is the embedding times relu(mask k), L2-normalised.

    Learned masks start at one, and are kept apart by `penalty`. Fixed masks are zero or one: consecutive ranges of
    dimensions; in a hierarchy, each child has half of its parent's ones.

    Args:
        kind: ``learned`` or ``fixed``.
        full: ``plain``: the full embedding is the embedding itself; ``masked``: times the sum of the relu'd masks.
        relu: False: the embedding times the learned mask itself, which may be negative. The penalty is on relu'd masks
            all the same, as in the released code.
        start: learned masks start at ``ones``, or, all alike, from one draw of a ``normal`` distribution (mean 0.9,
            standard deviation 0.7); learners of a hierarchy then start as copies of it. As in the released code.
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
        relu: Any = True,
        start: str = "ones",
    ) -> None:
        for name, value, known in (
            ("kind", kind, ("learned", "fixed")),
            ("full", full, ("plain", "masked")),
            ("relu", relu, (True, False)),
            ("start", start, ("ones", "normal")),
        ):
            if value not in known:
                message = f"`head_options.{name}` of method masks: {unknown('value', str(value), map(str, known))}"
                raise ConfigError(message, field="head_options")
        for name, changed in (("relu", not relu), ("start", start != "ones")):
            if kind == "fixed" and changed:
                raise ConfigError(
                    f"`head_options.{name}` of method masks: fixed masks are zeros and ones; leave it out, or use "
                    "`head_options.kind=learned`",
                    field="head_options",
                )
        slices = _consecutive(embedding_dim, num_learners)
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        self._learned = kind == "learned"
        self._masked = full == "masked"
        self._num_learners = num_learners
        self._positive = relu
        self._from_ones = start == "ones"
        masks = torch.ones(num_learners, embedding_dim)
        if not self._from_ones:
            masks.copy_(torch.empty(embedding_dim).normal_(0.9, 0.7))
        if self._learned:
            self.masks = nn.Parameter(masks)
        else:
            for mask, dims in zip(masks.zero_(), slices, strict=True):
                mask[dims] = 1
            self.register_buffer("masks", masks)

    @property
    def num_learners(self) -> int:
        return self._num_learners

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._num_learners)

    def set_extra_state(self, state: Tensor) -> None:
        self._num_learners = int(state)

    def _weights(self) -> Float[Tensor, "K D"]:
        """What the embedding is multiplied by."""
        masks = self.masks[: self._num_learners]
        return F.relu(masks) if self._positive else masks

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        if not 0 <= learner < self._num_learners:
            raise IndexError(f"learner {learner}: there are {self._num_learners}")
        mask = self.masks[learner]
        return F.normalize(self.linear(features) * (F.relu(mask) if self._positive else mask), dim=1)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        embeddings = self.linear(features)
        return F.normalize(embeddings * self._weights().sum(dim=0) if self._masked else embeddings, dim=1)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim

    def subspace_parameters(self) -> list[nn.Parameter]:
        return [self.masks] if isinstance(self.masks, nn.Parameter) else []

    def penalty(self) -> Float[Tensor, ""]:
        """The mean cosine of two relu'd masks, over all pairs of learners (2021)."""
        count = self._num_learners
        if count < 2:
            return super().penalty()
        masks = F.normalize(F.relu(self.masks[:count]), dim=1)
        cosines = masks @ masks.T
        return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))

    def dead_learners(self) -> list[int]:
        return torch.nonzero((self._weights() == 0).all(dim=1)).flatten().tolist()

    @torch.no_grad()
    def start_with_one(self) -> None:
        # Of a normal start all masks are one draw.
        self.masks.copy_(torch.ones_like(self.masks) if self._from_ones else self.masks[:1].expand_as(self.masks))
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

    def dimensions(self) -> list[list[int]]:
        return [] if self._learned else [torch.nonzero(mask).flatten().tolist() for mask in self._weights()]

    @torch.no_grad()
    def subspace_weights(self, learner: int) -> Float[Tensor, "D"] | None:
        """relu(mask k), or mask k; divided by the sum of all masks if the full embedding is ``masked``, that is,
        multiplied by that sum."""
        masks = self._weights().cpu()
        if not self._masked:
            return masks[learner]
        total = masks.sum(dim=0)
        return torch.where(total != 0, masks[learner] / torch.where(total != 0, total, 1), 0)

    @torch.no_grad()
    def as_linear(
        self, learner: int | None = None, features: Float[Tensor, "N F"] | None = None
    ) -> tuple[Float[Tensor, "d F"], Float[Tensor, "d"]] | None:
        weight, bias, masks = (v.cpu().double() for v in (self.linear.weight, self.linear.bias, self._weights()))
        full = masks.sum(dim=0) if self._masked else torch.ones_like(bias)
        scale = full if learner is None else masks[learner]
        return weight * scale[:, None], bias * scale

    @torch.no_grad()
    def keep_subspaces(self, learners: Sequence[int]) -> SubspaceHead:
        rows = sorted(d for k in learners for d in self.dimensions()[k])
        head = _like(self, rows, len(learners))
        assert isinstance(head, MaskHead)
        # The masks of a hierarchy differ from those of a new head.
        head.masks.copy_(self.masks[list(learners)][:, rows])
        return head


class DerivedHead(SubspaceHead):
    """Base class of pruned heads that are not linear: wraps another head and changes its output.

    Args:
        of: the `SubspaceHead.config` of the other head.
    """

    def __init__(
        self, num_features: int, embedding_dim: int, num_learners: int, dropout: float, *, of: Mapping[str, Any]
    ) -> None:
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        del self.linear
        options = of["head_options"]
        self.of = create_head(of["method"], num_features, of["embedding_dim"], of["num_learners"], 0.0, options)

    def penalty(self) -> Float[Tensor, ""]:
        return self.of.penalty()


class LearnerHead(DerivedHead):
    """One learner of another head.

    Args:
        learner: its number in that head.
    """

    def __init__(self, *sizes: Any, of: Mapping[str, Any], learner: int) -> None:
        super().__init__(*sizes, of=of)
        self._learner = learner

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        return self.of.subspace(features, self._learner)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        return self.full(features)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim


class CutHead(DerivedHead):
    """Some learners of another head, with their dimensions of its embedding.

    Args:
        learners: their numbers in that head, ascending.
    """

    def __init__(self, *sizes: Any, of: Mapping[str, Any], learners: Sequence[int]) -> None:
        super().__init__(*sizes, of=of)
        self._learners = list(learners)

    def _rows(self) -> list[int]:
        parts = self.of.dimensions()
        return sorted(d for k in self._learners for d in parts[k])

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        return F.normalize(self.of.full(features)[:, self._rows()], dim=1)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        return self.of.subspace(features, self._learners[learner])

    def subspace_dim(self, learner: int) -> int:
        return self.of.subspace_dim(self._learners[learner])

    def dimensions(self) -> list[list[int]]:
        parts, place = self.of.dimensions(), {row: i for i, row in enumerate(self._rows())}
        return [[place[d] for d in parts[k]] for k in self._learners]


class ProjectedHead(DerivedHead):
    """The embedding of another head after a projection."""

    def __init__(self, *sizes: Any, of: Mapping[str, Any]) -> None:
        super().__init__(*sizes, of=of)
        self.projection = nn.Linear(self.of.embedding_dim, self.embedding_dim, bias=False)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        return F.normalize(self.projection(self.of.full(features)), dim=1)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        return self.full(features)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim


class FeaturesHead(DerivedHead):
    """The pooled features, L2-normalised, in place of another head's full embedding (D = F); that head's learners stay.

    An index of these embeddings cannot be searched by learner: a learner's embedding is computed from the features by
    the other head, not from the full embedding.
    """

    embedding = "features"

    @property
    def num_learners(self) -> int:
        return self.of.num_learners

    @property
    def trained(self) -> SubspaceHead:
        return self.of

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        return F.normalize(features, dim=1)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        return self.of.subspace(features, learner)

    def subspace_dim(self, learner: int) -> int:
        return self.of.subspace_dim(learner)

    def as_linear(
        self, learner: int | None = None, features: Float[Tensor, "N F"] | None = None
    ) -> tuple[Float[Tensor, "d F"], Float[Tensor, "d"]] | None:
        if learner is not None:
            return self.of.as_linear(learner)
        return torch.eye(self.num_features, dtype=torch.float64), torch.zeros(self.num_features, dtype=torch.float64)

    def keep_learner(self, learner: int) -> SubspaceHead:
        return self.of.keep_learner(learner)


class PcaHead(FeaturesHead):
    """As `FeaturesHead`, with the L2-normalised features after a linear layer, L2-normalised again: their principal
    components with whitening."""

    embedding = "pca"

    def __init__(self, *sizes: Any, of: Mapping[str, Any]) -> None:
        super().__init__(*sizes, of=of)
        self.projection = nn.Linear(self.num_features, self.embedding_dim)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        return F.normalize(self.projection(super().full(features)), dim=1)

    def as_linear(
        self, learner: int | None = None, features: Float[Tensor, "N F"] | None = None
    ) -> tuple[Float[Tensor, "d F"], Float[Tensor, "d"]] | None:
        """As in `SubspaceHead`. The full embedding is not linear in the features: they are L2-normalised first."""
        return None if learner is None else self.of.as_linear(learner)


def methods() -> dict[str, type[SubspaceHead]]:
    """The heads with a short name: those of this module, and every imported subclass of `SubspaceHead` with a
    ``method``."""
    return {"single": SliceHead, **{kind.method: kind for kind in _kinds() if hasattr(kind, "method")}}


def is_imported(method: str) -> bool:
    """Whether the head of that name is defined already, so that using it imports nothing."""
    return method in methods() or any(method == name_of(kind) for kind in _kinds())


def _kinds() -> Iterator[type[SubspaceHead]]:
    """The subclasses of `SubspaceHead` that can be created."""
    waiting = SubspaceHead.__subclasses__()
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if not inspect.isabstract(kind):
            yield kind


def _name_of(kind: type[SubspaceHead]) -> str:
    own = not kind.__module__.startswith("divcon.")
    return name_of(kind) if own or not hasattr(kind, "method") else kind.method


def head_class(
    method: str | type[SubspaceHead], num_learners: int, options: Mapping[str, Any] | None = None
) -> type[SubspaceHead]:
    """The class of a method; checks the number of learners and the options.

    Args:
        method: a short name (see `methods`), ``module:Name``, or the class itself.

    Raises:
        ConfigError: there is no such method or option (the message suggests the nearest names), or ``single`` has more
            than one learner.
    """
    kind = _resolve(method)
    if method == "single" and num_learners != 1:
        raise ConfigError(f"method single has one learner, not {num_learners}", field=("num_learners", "method"))
    name = method if isinstance(method, str) else _name_of(kind)
    parameters = inspect.signature(kind.__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options or {}:
        if option not in names:
            raise ConfigError(
                unknown(f"option of method {name}", option, names)
                if names
                else f"method {name} takes no options; leave {option!r} out of `head_options`",
                field="head_options",
            )
    return kind


def _resolve(method: str | type[SubspaceHead]) -> type[SubspaceHead]:
    known = methods()
    kind: Any = method
    if isinstance(method, str):
        check_method_name(method, known)
        # Also by the names of defined classes: a class inside a function is not an attribute of its module.
        kind = known.get(method) or next((k for k in _kinds() if name_of(k) == method), None)
        kind = kind or load_part(method, "method")
    if not (isinstance(kind, type) and issubclass(kind, SubspaceHead)) or inspect.isabstract(kind):
        message = "must be a subclass of divcon.models.SubspaceHead that defines full, subspace and subspace_dim"
        raise ConfigError(f"method {method}: {message}", field="method")
    return kind


def create_head(
    method: str | type[SubspaceHead],
    num_features: int,
    embedding_dim: int,
    num_learners: int,
    dropout: float = 0.01,
    options: Mapping[str, Any] | None = None,
) -> SubspaceHead:
    """The head of a method: ``single`` (one learner), ``slices``, ``masks``, or your own subclass of `SubspaceHead`, by
    its name or itself.

    Args:
        options: keyword-only arguments of the class.

    Raises:
        ConfigError: as `head_class`; or there are more learners than dimensions, or an option has an invalid value.
    """
    kind = head_class(method, num_learners, options)
    head = kind(num_features, embedding_dim, num_learners, dropout, **(options or {}))
    head.name = "single" if method == "single" else _name_of(kind)
    head.options = dict(options or {})
    return head


@torch.no_grad()
def linear_head(weight: Float[Tensor, "d F"], bias: Float[Tensor, "d"], *, dropout: float) -> SubspaceHead:
    """The head of method ``single`` with this weight and bias."""
    head = create_head("single", weight.shape[1], len(weight), 1, dropout)
    head.linear.weight.copy_(weight)
    head.linear.bias.copy_(bias)
    return head


@torch.no_grad()
def _like(head: SubspaceHead, rows: list[int], num_learners: int) -> SubspaceHead:
    """A head of the same kind with some rows of the linear layer."""
    small = create_head(head.name, head.num_features, len(rows), num_learners, head.dropout.p, head.options)
    small.linear.weight.copy_(head.linear.weight[rows])
    small.linear.bias.copy_(head.linear.bias[rows])
    return small


def _consecutive(dim: int, count: int) -> list[slice]:
    """``dim`` dimensions in ``count`` consecutive slices whose sizes differ by at most one."""
    if not 1 <= count <= dim:
        raise ConfigError(
            f"an embedding of {dim} dimensions cannot be divided among {count} learners",
            field=("embedding_dim", "num_learners"),
        )
    small, larger = divmod(dim, count)
    sizes = [small + (k < larger) for k in range(count)]
    return [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(count)]
