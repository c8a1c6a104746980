"""Two processes as vLLM starts them for one model on a host: ranks of gloo, which add up a tensor.

Runs in the emulated host of test_kernel.py with the package's Python. Prints the address of the host's name, on which
gloo would listen by itself, and the sum.
"""

import datetime
import os
import socket

import torch
from torch import distributed

from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.settings import config

settings, _ = config.load("test")
os.environ["GLOO_SOCKET_IFNAME"] = launch.environment(settings, settings.model, {})["GLOO_SOCKET_IFNAME"]
rank = 0 if os.fork() else 1
distributed.init_process_group(
    "gloo",
    init_method="tcp://127.0.0.1:29511",
    rank=rank,
    world_size=2,
    timeout=datetime.timedelta(seconds=120),
)
total = torch.ones(1)
distributed.all_reduce(total)
if rank == 0:
    print(socket.gethostbyname(socket.gethostname()), int(total))
