"""Deal the images of batches from decks of cards: one deck of a cluster's classes, and one of the images of each class.

A deck deals each card once, in random order, before any comes twice: it is shuffled when it has run out, and cards that
are in the hand already go to its end. A hand repeats a card only if it is larger than the deck.

Random numbers are drawn deck by deck, in the order in which the decks run out batch after batch: a plan is the same for
a seed, however many batches are dealt at once. Only the shuffles are single calls; all else is done for up to `AT_ONCE`
classes together, so that ten million images are dealt in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

AT_ONCE = 1 << 15
"""Hands that are dealt at once, from decks of different classes."""
RUN = 8
"""Decks of one size in a row that are shuffled by one call, at least."""


@dataclass(frozen=True, eq=False)
class Cluster:
    """The images of a cluster whose classes have at least two there, class by class."""

    size: int
    """Number of all images of the cluster."""
    cards: np.ndarray
    """(n,) int64: the images of the first class, of the second, ..."""
    counts: np.ndarray
    """(C,) int64: the images of each class."""

    @classmethod
    def of(cls, indices: np.ndarray, labels: np.ndarray) -> Cluster:
        """Of the images at ``indices``, ascending, among (N,) labels."""
        own, size = labels[indices], len(indices)
        if (own[1:] < own[:-1]).any():
            order = _stable_order(own)
            indices, own = indices[order], own[order]
        new = np.ones(size, bool)
        np.not_equal(own[1:], own[:-1], out=new[1:])
        del own
        counts = np.diff(np.append(np.flatnonzero(new), size))
        in_pairs = counts >= 2
        if not in_pairs.all():
            indices = indices[np.repeat(in_pairs, counts)]
        return cls(size, indices, counts[in_pairs])

    @property
    def num_classes(self) -> int:
        return len(self.counts)


def deal(
    cluster: Cluster, number: int, take: np.ndarray, classes_per_batch: int, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Deal batches of a cluster: the classes of each, from the deck of classes, or all where these are fewer; then the
    images of each class. Places that are left are filled from a deck of all images, without those in the batch.

    Args:
        number: of batches.
        take: (C,) int64, the images that a batch has of each class.
        size: images in a batch.

    Yields:
        (n, size) int64, the images of the next n batches.
    """
    decks, filler = _Decks(cluster, rng), _Filler(cluster, rng)
    few = cluster.num_classes < classes_per_batch
    class_deck = _ClassDeck(cluster.num_classes, classes_per_batch, rng)
    at_once = max(1, AT_ONCE // max(1, min(classes_per_batch, cluster.num_classes)))
    done = 0
    while done < number:
        most = min(number - done, at_once)
        if few:
            chosen = np.arange(cluster.num_classes)[None].repeat(max(1, min(most, decks.hands(take))), axis=0)
        else:
            chosen = class_deck.next(most)
        hands = take[chosen]
        dealt = hands.sum(axis=1)
        # A deck must not run out before its time: where the filler may, batches come one at a time.
        count = max(1, min(len(chosen), filler.safe(size - dealt, dealt)))
        class_deck.give_back(len(chosen) - count)
        chosen, hands, dealt = chosen[:count], hands[:count], dealt[:count]
        images = decks.deal_again(take, count) if few and count > 1 else decks.deal(chosen.ravel(), hands.ravel())
        batches = images.reshape(count, size) if (dealt == size).all() else filler.fill(images, dealt, size)
        yield cluster.cards[batches]
        done += count


class _ClassDeck:
    """The deck of classes, which deals the classes of batches."""

    def __init__(self, num_classes: int, per_batch: int, rng: np.random.Generator) -> None:
        self._pile = np.empty(0, np.int64)
        self._num_classes, self._per_batch, self._rng = num_classes, per_batch, rng
        self._at = 0

    def next(self, most: int) -> np.ndarray:
        """The classes of the next batches, (n, P), all different: n is at least 1, and at most ``most``."""
        whole = (len(self._pile) - self._at) // self._per_batch
        if whole:
            stop = self._at + min(whole, most) * self._per_batch
            chosen = self._pile[self._at : stop]
            self._at = stop
            return chosen.reshape(-1, self._per_batch)
        hand = self._pile[self._at :]
        fresh = self._rng.permutation(self._num_classes)
        in_hand = np.zeros(self._num_classes, bool)
        in_hand[hand] = True
        last = in_hand[fresh]
        self._pile = np.concatenate([fresh[~last], fresh[last]])
        self._at = self._per_batch - len(hand)
        return np.concatenate([hand, self._pile[: self._at]])[None]

    def give_back(self, batches: int) -> None:
        """Take back the last batches of `next`."""
        self._at -= batches * self._per_batch


class _Decks:
    """The decks of the images of all classes. A card is a position among the cluster's cards."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        self._rng = rng
        self._counts = cluster.counts
        self._starts = np.cumsum(cluster.counts) - cluster.counts
        self._pile = np.arange(len(cluster.cards), dtype=_small(len(cluster.cards)))
        """The piles of the classes, one after the other."""
        self._dealt = cluster.counts.copy()
        """(C,): how many cards of each pile are dealt; all before the first shuffle."""
        self._marked = np.zeros(len(cluster.cards), bool)

    def hands(self, take: np.ndarray) -> int:
        """How many hands of so many cards each class can deal before a deck runs out."""
        return int(((self._counts - self._dealt) // take).min())

    def deal_again(self, take: np.ndarray, count: int) -> np.ndarray:
        """Deal each class ``count`` hands, without a shuffle: a hand of each class, and again."""
        hands = np.empty((count, int(take.sum())), np.int64)
        columns = np.cumsum(take) - take
        for start, column, each in zip(self._starts + self._dealt, columns, take, strict=True):
            cards = self._pile[start : start + count * each]
            hands[:, column : column + each] = cards.reshape(count, each)
        self._dealt += count * take
        return hands.ravel()

    def deal(self, classes: np.ndarray, take: np.ndarray) -> np.ndarray:
        """Deal hands of ``take`` cards, (m,), from decks of different ``classes``, (m,); the hands one after the
        other."""
        counts, dealt, starts = self._counts[classes], self._dealt[classes], self._starts[classes]
        left = counts - dealt
        columns = np.arange(take.max())
        wanted = columns < take[:, None]
        from_pile = columns < np.minimum(left, take)[:, None]
        hands = np.empty(wanted.shape, np.int64)
        hands[from_pile] = self._pile[((starts + dealt)[:, None] + columns)[from_pile]]
        self._dealt[classes] = dealt + take
        short = np.flatnonzero(left < take)
        if len(short):
            self._shuffle_and_deal(classes[short], left[short], (take - left)[short], hands, short, wanted & ~from_pile)
        return hands.ravel() if wanted.all() else hands[wanted]

    def _shuffle_and_deal(
        self,
        classes: np.ndarray,
        left: np.ndarray,
        missing: np.ndarray,
        hands: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
    ) -> None:
        """Shuffle the decks that have run out, in this order, and deal the missing cards into the places of their
        hands. A deck that is smaller than what is missing is shuffled several times."""
        counts, starts = self._counts[classes], self._starts[classes]
        times = -(-missing // counts)
        lengths = np.repeat(counts, times)
        first = np.cumsum(times) - times  # each deck's first shuffle
        begins = np.cumsum(lengths) - lengths
        fresh = (np.arange(lengths.sum()) + np.repeat(np.repeat(starts, times) - begins, lengths)).astype(
            self._pile.dtype
        )
        self._shuffle(fresh, begins, lengths)

        # Cards that are in the hand already go to the end of the first shuffle.
        some = np.flatnonzero((left > 0) & (left < counts))
        if len(some):
            in_hand = self._pile[_ranges((starts + counts - left)[some], left[some])]
            self._marked[in_hand] = True
            where = _ranges(begins[first[some]], counts[some])
            last = self._marked[fresh[where]]
            order = np.argsort(2 * np.repeat(np.arange(len(some)), counts[some]) + last, kind="stable")
            fresh[where] = fresh[where[order]]
            self._marked[in_hand] = False

        hands[places] = fresh[_ranges(begins[first], missing)]
        end = first + times - 1
        self._pile[_ranges(starts, counts)] = fresh[_ranges(begins[end], counts)]
        self._dealt[classes] = missing - (times - 1) * counts

    def _shuffle(self, cards: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> None:
        """Shuffle each deck, in order: decks of one size in a row by one call, which draws the same numbers."""
        changes = np.flatnonzero(lengths[1:] != lengths[:-1]) + 1
        runs = np.concatenate([[0], changes, [len(lengths)]])
        long = np.diff(runs) >= RUN
        shuffle, stops = self._rng.shuffle, begins + lengths
        done = 0
        for run in [*np.flatnonzero(long).tolist(), None]:
            single = len(lengths) if run is None else int(runs[run])
            for begin, stop in zip(begins[done:single].tolist(), stops[done:single].tolist(), strict=True):
                shuffle(cards[begin:stop])
            if run is not None:
                done = int(runs[run + 1])
                rows = cards[begins[single] : stops[done - 1]].reshape(done - single, -1)
                self._rng.permuted(rows, axis=1, out=rows)


class _Filler:
    """The deck of all images, which fills the places that small classes leave."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        self._rng = rng
        self._size = len(cluster.cards)
        self._pile = np.empty(0, np.int64)
        self._at = 0
        self._in_batch = np.empty(0, np.int64)
        """The number of the last batch that each card was in."""
        self._batch = 0

    def safe(self, places: np.ndarray, dealt: np.ndarray) -> int:
        """How many of the next batches the deck fills without running out, even if each skips all its images."""
        if not places.any():
            return len(places)
        most = np.cumsum(np.where(places > 0, places + dealt, 0))
        return int(np.searchsorted(most, len(self._pile) - self._at, side="right"))

    def fill(self, images: np.ndarray, dealt: np.ndarray, size: int) -> np.ndarray:
        """The batches, (n, size): the first ``dealt``, (n,), images of each are these, one batch after the other."""
        if not len(self._in_batch):
            self._in_batch = np.zeros(self._size, _small(1 << 40))
        batches, start = np.empty((len(dealt), size), np.int64), 0
        for row, count in enumerate(dealt.tolist()):
            batch = batches[row]
            batch[:count] = images[start : start + count]
            start += count
            if count < size:
                self._batch += 1
                self._in_batch[batch[:count]] = self._batch
                self._fill(batch[count:])
        return batches

    def _fill(self, places: np.ndarray) -> None:
        filled, number, in_batch = 0, len(places), self._in_batch
        while filled < number:
            if self._at == len(self._pile):
                self._pile, self._at = self._rng.permutation(self._size), 0
            missing = number - filled
            # Most cards are not in the batch: a few more than are missing will mostly do.
            cards = self._pile[self._at : self._at + missing + 8]
            free = np.flatnonzero(in_batch[cards] != self._batch)[:missing]
            places[filled : filled + len(free)] = cards[free]
            in_batch[cards[free]] = self._batch
            self._at += int(free[-1]) + 1 if len(free) == missing else len(cards)
            filled += len(free)


def _stable_order(labels: np.ndarray) -> np.ndarray:
    """What a stable argsort of (n,) labels from 0 returns, in half of the time: NumPy has a radix sort of 16 bits."""
    if not len(labels) or labels.max() >= 1 << 32:
        return np.argsort(labels, kind="stable")
    order = np.argsort((labels & 0xFFFF).astype(np.uint16), kind="stable")
    if labels.max() >= 1 << 16:
        order = order[np.argsort((labels >> 16).astype(np.uint16)[order], kind="stable")]
    return order


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start, as many as its count, one range after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def _small(count: int) -> type:
    """The integers that count so many."""
    return np.int32 if count < 2**31 else np.int64
