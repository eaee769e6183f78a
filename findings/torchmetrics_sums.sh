#!/usr/bin/env bash
# torchmetrics: a count of tokens stands still at 16,777,216, and a NaN leaves the mean.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0 (CPU)
# Guess:    SumMetric of whole numbers is a whole number, and MeanMetric of a batch with a NaN is NaN, as torch's mean.
# Seen:     both keep their sums in float32, whatever they are given (int, int64, float64): added one by one 16,777,216 is the end.
#           metric.double() does nothing; set_dtype(torch.float64) mends it. NaN is left out with its weight, with a warning, unless
#           nan_strategy="error".
# Effect:   counters of tokens, rows or steps are too small in a long run, and a diverged part of an evaluation makes its mean better. Call
#           set_dtype(torch.float64). Talaria adds up in Python's and float64 numbers, and stops at NaN.
source "$(dirname "$0")/install.sh" torchmetrics==1.9.0 torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import math

import torch
from torchmetrics import MeanMetric, SumMetric


def counted(metric):
    metric.update(2**24)
    for _ in range(100):
        metric.update(torch.tensor(1))
    return int(metric.compute())


print("16,777,216 and a hundred times 1:", counted(SumMetric()), "- in double():", counted(SumMetric().double()))
assert counted(SumMetric()) == counted(SumMetric().double()) == 2**24
assert counted(SumMetric().set_dtype(torch.float64)) == 2**24 + 100
diverged = MeanMetric()
diverged.update(torch.tensor([1.0, math.nan, 2.0]))
print("mean of 1, NaN and 2:", float(diverged.compute()))
assert float(diverged.compute()) == 1.5
PY
