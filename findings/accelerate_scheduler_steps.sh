#!/usr/bin/env bash
# accelerate: a prepared scheduler goes on by the number of processes at each step, so that on two the learning rate is spent halfway.
#
# Versions: accelerate 1.15.0, torch 2.13.0 (CPU, gloo)
# Guess:    scheduler.step() is one step, on any number of processes; with accumulation one for each update.
# Seen:     on two processes it is two (a LambdaLR of 1 - n/100 goes 1, 0.98, 0.96), on one process one. So a schedule that was made for the steps of
#           the prepared loader ends at half of the run and stays at 0. It is right for the length of the loader before prepare, which is
#           divided by the processes. step_scheduler_with_optimizer=False or split_batches=True make it one.
# Effect:   a script that was tried on one device trains its second half at a rate of 0 on two, on eight its last seven eighths. Do not prepare the
#           scheduler. Talaria's rate is a function of the step.
source "$(dirname "$0")/install.sh" accelerate==1.15.0 torch==2.13.0 numpy
cat > run.py <<'PY'
import sys

import torch
from accelerate import Accelerator

accelerator = Accelerator(**({"step_scheduler_with_optimizer": False} if "alone" in sys.argv else {}))
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
loader = torch.utils.data.DataLoader(torch.ones(16, 1), batch_size=1)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
steps = len(loader)
scheduler = accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps)))
rates = []
for batch in loader:
    rates.append(round(optimizer.param_groups[0]["lr"], 3))
    accelerator.backward(model(batch).sum())
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
if accelerator.is_main_process:
    print(*rates)
PY
launch() {
    ACCELERATE_USE_CPU=true venv/bin/accelerate launch --num_machines 1 --dynamo_backend no --num_cpu_threads_per_process 1 \
        --mixed_precision no "${@:2}" run.py $1 2>log.txt || tail log.txt
}
one=$(launch "" --num_processes 1)
two=$(launch "" --multi_gpu --num_processes 2)
alone=$(launch alone --multi_gpu --num_processes 2)
printf '%s\n' "learning rates of an epoch of 16 rows" "one process: $one" "two processes: $two" "two, step_scheduler_with_optimizer=False: $alone"
[ "$one" = "1.0 0.938 0.875 0.812 0.75 0.688 0.625 0.562 0.5 0.438 0.375 0.312 0.25 0.188 0.125 0.062" ]
[ "$two" = "1.0 0.75 0.5 0.25 0.0 0.0 0.0 0.0" ]
[ "$alone" = "1.0 0.875 0.75 0.625 0.5 0.375 0.25 0.125" ]
