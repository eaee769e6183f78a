#!/usr/bin/env bash
# tensorboard: metrics read back from an event file are a random sample of 10,000, and a count of tokens is rounded.
#
# Versions: tensorboard 2.21.0, torch 2.13.0 (CPU)
# Guess:    EventAccumulator(...).Scalars(name), which most scripts and trackers read, gives each value that was logged.
# Seen:     of 20,000 steps it gives 10,000, chosen at random but for the last one, without a word; size_guidance={"scalars": 0} gives all. A value
#           is a 32-bit number: 100,000,001 tokens are 100,000,000, and 1e-46 is 0. A step given as 2.7 is 2.
# Effect:   a lowest loss, or a sum over steps, that was read from the file is not the run's. Pass size_guidance, or keep metrics of one's own, as
#           Talaria's metrics.jsonl, which train.report_to only mirrors.
source "$(dirname "$0")/install.sh" tensorboard==2.21.0 torch==2.13.0 numpy "setuptools<81"
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

STEPS = 20_000
with SummaryWriter("run") as writer:
    for step in range(STEPS):
        writer.add_scalar("loss", 0.5 if step == 777 else 2.0, step)
    writer.add_scalar("tokens", 100_000_001, 2.7)
    writer.add_scalar("probability", 1e-46, 0)
seen, whole = EventAccumulator("run").Reload(), EventAccumulator("run", size_guidance={"scalars": 0}).Reload()
sampled, logged = seen.Scalars("loss"), whole.Scalars("loss")
print(f"{STEPS} steps: {len(sampled)} are read, with size_guidance {len(logged)}; the last is {sampled[-1].step}")
print("skipped at the beginning:", sorted(set(range(20)) - {event.step for event in sampled}))
assert len(sampled) == 10_000 and len(logged) == STEPS and sampled[-1].step == STEPS - 1
assert min(event.value for event in logged) == 0.5
(tokens,), (probability,) = whole.Scalars("tokens"), whole.Scalars("probability")
print(f"100,000,001 tokens at step 2.7: {tokens.value:,.0f} at {tokens.step}; 1e-46: {probability.value}")
assert (tokens.value, tokens.step, probability.value) == (100_000_000, 2, 0.0)
PY
