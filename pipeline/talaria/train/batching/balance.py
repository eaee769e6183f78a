"""Distribute a step's conversations over ranks and micro-batches: equal counts, a token limit, balanced cost.

Balance decides how long ranks wait for each other. Karmarkar and Karp's largest differencing method (1982, "The differencing
method of set partitioning") balances costs far better than greedy assignment; where the token limit rejects its answer, or there
are so many bins and conversations that it would take longer than a step, the greedy one (longest first into the cheapest bin that
has room) is taken, which balances well when every bin gets many.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
DIFFERENCED = 200_000
"""Most conversations x bins for the differencing method: about a quarter of a second."""


def balanced_bins(lengths: Ints, costs: npt.NDArray[np.float64], *, ranks: int, capacity: int) -> list[list[Ints]]:
    """Return `[round][rank]` -> ascending indices into `lengths`; as few rounds as fit, every rank in each round.

    No bin of several holds more than `capacity` tokens. In a round, ranks work and communicate together, so bins of like cost
    share one; over the rounds, cheap and expensive bins alternate between ranks, so that totals are even too.

    Lengths 9, 7, 6, 5, 3 on 2 ranks with room for 10 tokens: 30 tokens need 2 rounds, so 4 bins: 9 | 5 + 3 | 6 | 7, by
    falling cost 9, 8, 7, 6. Round 0 is (9 | 5 + 3), round 1 the next two reversed, (6 | 7): ranks work 15 and 15.
    """
    rounds = max(1, -(-int(lengths.sum()) // (ranks * capacity)))
    while True:
        small = len(costs) * rounds * ranks <= DIFFERENCED
        bins = differencing(costs, rounds * ranks) if small else []
        if not bins or any(len(bin) > 1 and lengths[bin].sum() > capacity for bin in bins):
            greedy = longest_first(lengths, costs, rounds * ranks, capacity)
            if greedy is None:
                rounds += 1
                continue
            bins = greedy
        break
    bins.sort(key=lambda bin: (-float(costs[bin].sum()), bin[:1].tolist()))
    grouped = [bins[k * ranks : (k + 1) * ranks] for k in range(rounds)]
    return [group if k % 2 == 0 else group[::-1] for k, group in enumerate(grouped)]


def differencing(costs: Sequence[float] | npt.NDArray[np.float64], bins: int) -> list[Ints]:
    """Partition indices into `bins` groups with nearly equal sums (Karmarkar-Karp).

    Each item starts as its own partition; the two most uneven partitions are merged, the heaviest part of one
    with the lightest of the other, until one is left.

    Costs 8, 7, 6, 5, 4 and 2 bins: 8 and 7 go apart (difference 1), then 6 and 5 (1), then 4 meets a difference of 1 (3),
    and so on; the result is 7 + 5 + 4 = 16 and 8 + 6 = 14. Largest-first would give 8 + 5 + 4 = 17 and 7 + 6 = 13.
    """
    if bins == 1:
        return [np.arange(len(costs), dtype=np.int64)]
    order = itertools.count()
    empty: list[tuple[float, list[int]]] = [(0.0, [])] * (bins - 1)
    heap = [(-float(cost), next(order), [(float(cost), [item]), *empty]) for item, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        _, _, one = heapq.heappop(heap)
        _, _, other = heapq.heappop(heap)
        merged = [(a + b, left + right) for (a, left), (b, right) in zip(one, reversed(other), strict=True)]
        merged.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], next(order), merged))
    parts = heap[0][2] if heap else [(0.0, [])] * bins
    return [np.array(sorted(items), dtype=np.int64) for _, items in parts]


def longest_first(lengths: Ints, costs: npt.NDArray[np.float64], bins: int, capacity: int) -> list[Ints] | None:
    """Assign the longest remaining conversation to the cheapest bin with room (greedy); None if one finds no room."""
    tokens = [0] * bins
    items: list[list[int]] = [[] for _ in range(bins)]
    cheapest = [(0.0, bin) for bin in range(bins)]
    for item in np.argsort(-lengths, kind="stable").tolist():
        length, full = int(lengths[item]), []
        while cheapest and (held := tokens[cheapest[0][1]]) and held + length > capacity:
            full.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        load, chosen = cheapest[0]
        heapq.heapreplace(cheapest, (load + float(costs[item]), chosen))
        tokens[chosen] += length
        items[chosen].append(item)
        for entry in full:
            heapq.heappush(cheapest, entry)
    return [np.array(sorted(bin), dtype=np.int64) for bin in items]
