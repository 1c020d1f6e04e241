"""More than one process: torchrun --nproc-per-node N train.py ... (torch's DistributedDataParallel).

Every rank reads the data and takes its share of each batch; gradients are averaged, so that a step is that of the
whole batch. BatchNorm sees the whole batch on CUDA; on the CPU, where the ranks would wait for each other in every
layer, it sees each rank's share, and the running statistics are rank 0's. Rank 0 alone validates and writes. When one
rank fails, torchrun ends the others.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import DomainBatchNorm2d


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; one process is rank 0 of 1 and none of the methods then does anything."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the ranks in each backward pass."""
        if self.world == 1:
            return module
        on_cuda = any(parameter.is_cuda for parameter in module.parameters())
        return DistributedDataParallel(synced(module) if on_cuda else module)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up on any rank; every rank must ask."""
        if self.world == 1:
            return flag
        raised = torch.tensor(int(flag), device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def from_main(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def synced(module: nn.Module) -> nn.Module:
    """The module, its BatchNorm layers set to normalise by the batch of all ranks. `published`: on CUDA alone."""
    for layer in module.modules():
        if isinstance(layer, DomainBatchNorm2d):
            layer.synced = True
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # those of torch: in the classifiers of `published`


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started, by what it put into the environment; alone without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
