#!/usr/bin/env bash
# torch: with one seed, 15 normal numbers and the first 15 of 16 have nothing in common.
#
# Versions: torch 2.13.0 (CPU), numpy 2.4.4
# Guess:    a generator is a stream: a larger tensor begins with the numbers of a smaller one, as torch.rand's and numpy's do.
# Seen:     below 16 elements torch.randn draws one by one, from 16 on in blocks of 16, with other numbers; and where the size is no multiple
#           of 16, the last 16 are drawn anew, over what the blocks had put there: randn(20) has 4 numbers in common with randn(40)[:20].
#           normal_ does the same, and so do the initialisations that use it.
# Effect:   adding a row to a small tensor (an embedding, an adapter of rank 8) changes the numbers of all rows, and a test that compares
#           sizes by one seed compares different draws. Draw the largest size and cut it, or seed each row.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy==2.4.4
py - <<'PY'
import numpy, torch


def alike(draw, few, many):
    """How many of the first `few` of `many` numbers are those of `few`."""
    return int((numpy.asarray(draw(few)) == numpy.asarray(draw(many))[:few]).sum())


def seeded(draw):
    return lambda count: draw(count, generator=torch.Generator().manual_seed(0))


def normal(count, generator):
    return torch.empty(count).normal_(generator=generator)


for few, many, common in ((15, 16, 0), (16, 32, 16), (20, 40, 4)):
    counts = [alike(seeded(draw), few, many) for draw in (torch.randn, normal, torch.rand)]
    counts.append(alike(lambda count: numpy.random.default_rng(0).standard_normal(count), few, many))
    print(f"{few} and the first {few} of {many}: torch.randn {counts[0]}, normal_ {counts[1]}, torch.rand {counts[2]}, numpy {counts[3]} in common")
    assert counts == [common, common, few, few], counts
PY
