#!/usr/bin/env bash
# accelerate launch: --num_processes beside --cpu and --gradient_accumulation_steps are accepted and do nothing.
#
# Versions: accelerate 1.15.0, torch 2.13.0
# Guess:    `accelerate launch --cpu --num_processes 2` starts two processes over gloo, and --gradient_accumulation_steps sets the
#           Accelerator's value, as --mixed_precision does.
# Seen:     one process starts and the accumulation is 1; --mixed_precision bf16 does reach the script. Nothing is logged.
#           ACCELERATE_USE_CPU=true with --multi_gpu starts two CPU processes.
# Effect:   a test with "two ranks" runs on one, and the global batch is a fraction of what the command line says. Assert the world size;
#           Talaria's ranks compare it with what was asked for.
source "$(dirname "$0")/install.sh" accelerate==1.15.0 torch==2.13.0 numpy
cat > seen.py <<'PY'
from accelerate import Accelerator
seen = Accelerator()
found = f"{seen.num_processes} {seen.gradient_accumulation_steps} {seen.mixed_precision}"
open(f"rank-{seen.process_index}", "w").write(found)
PY
launch() {
    rm -f rank-*
    venv/bin/accelerate launch --num_machines 1 --dynamo_backend no --num_cpu_threads_per_process 1 "$@" seen.py 2>log.txt || tail log.txt
    for rank in rank-*; do echo "$rank: $(cat "$rank")"; done
}
alone=$(launch --cpu --num_processes 2 --gradient_accumulation_steps 4 --mixed_precision bf16)
pair=$(ACCELERATE_USE_CPU=true launch --multi_gpu --num_processes 2 --mixed_precision no)
echo "processes, accumulation and precision of each rank"
printf '%s\n' "--cpu --num_processes 2 --gradient_accumulation_steps 4 --mixed_precision bf16:" "$alone" "--multi_gpu --num_processes 2 on the CPU:" "$pair"
[ "$alone" = "rank-0: 1 1 bf16" ]
[ "$pair" = $'rank-0: 2 1 no\nrank-1: 2 1 no' ]
