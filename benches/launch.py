"""The worker of `fnet-launch benchmark launch --against torchrun`: one all-reduce, and the time at which it finished.

The time is from the monotonic clock, which all processes of a machine share.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

backend = sys.argv[1]
device = torch.device("cpu")
if backend == "nccl":
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
dist.init_process_group(backend)
value = torch.ones(1, device=device)
dist.all_reduce(value)
if backend == "nccl":
    torch.cuda.synchronize()
done = time.monotonic_ns()
assert value.item() == dist.get_world_size()
last = torch.tensor([done], dtype=torch.int64, device=device)
dist.all_reduce(last, op=dist.ReduceOp.MAX)
if dist.get_rank() == 0:
    print(json.dumps({"done_ns": last.item(), "world_size": dist.get_world_size()}), flush=True)
dist.destroy_process_group()
