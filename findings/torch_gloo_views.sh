#!/usr/bin/env bash
# torch.distributed (gloo): all_reduce of a column adds up other numbers, and a transposed tensor is broadcast as another one.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    collectives work on a view's elements, or refuse a tensor that is not contiguous.
# Seen:     they take as many numbers as the tensor has, from its first on, as they lie in memory. all_reduce(x[:, 0]) on both ranks doubles
#           x[0, 0], x[0, 1] and x[1, 0]. A transposed tensor that rank 0 broadcasts into an empty one arrives in the same shape with its
#           numbers in other places. No error, no warning. all_gather and broadcast_object_list are right; DDP compares the layouts of
#           parameters, and refuses.
# Effect:   a loss column of a table of counts is summed wrongly, and weights that one rank converted (`.T`) arrive as another model. Reduce
#           x[:, 0].contiguous() and copy it back. Talaria's collectives work on whole tensors of their own.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
cat > run.py <<'PY'
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()


def say(*words):
    if rank == 1:
        print(*words, flush=True)


table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
dist.all_reduce(table[:, 0])
say("all_reduce of the first column of [[1, 10], [2, 20], [3, 30]], on two ranks:", table.tolist())
assert table.tolist() == [[2, 20], [4, 20], [3, 30]]
column = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])[:, 0].contiguous()
dist.all_reduce(column)
assert column.tolist() == [2, 4, 6]

sent = torch.arange(6.0).reshape(2, 3).T
received = sent.clone() if rank == 0 else torch.zeros(3, 2)
dist.broadcast(received, src=0)
say("broadcast of", sent.tolist(), "arrives as", received.tolist())
assert received.tolist() == (sent.tolist() if rank == 0 else [[0, 1], [2, 3], [4, 5]])
received = sent.contiguous() if rank == 0 else torch.zeros(3, 2)
dist.broadcast(received, src=0)
assert torch.equal(received, sent)
gathered = [torch.zeros(3, 2) for _ in range(2)]
dist.all_gather(gathered, sent)
assert all(torch.equal(one, sent) for one in gathered)
dist.barrier()  # a rank that ends while the other still receives would break its connection
dist.destroy_process_group()
PY
py -m torch.distributed.run --nproc-per-node 2 run.py 2>log.txt || { grep -A8 Error log.txt | head -20; exit 1; }
