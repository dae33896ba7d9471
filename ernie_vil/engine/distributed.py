"""Data parallelism: one process per device, started by ``python -m paddle.distributed.launch``.

Every process takes its share of each global batch; gradients are *summed*, since losses are already divided by the
counts of the whole global batch. So a share may be of any size, even empty.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Iterable, Sequence

import paddle
import paddle.distributed
from paddle import Tensor

BUCKET_ELEMENTS = 32 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0


def start() -> Processes:
    """Join the processes of this launch (gloo on CPU, NCCL on GPU); without a launcher there is one process."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) == 1:
        return Processes()
    paddle.distributed.init_parallel_env()
    return Processes(paddle.distributed.get_rank(), paddle.distributed.get_world_size())


@paddle.no_grad()
def broadcast_parameters(tensors: Iterable[Tensor], processes: Processes) -> None:
    """Give every process the values of process 0."""
    if processes.world > 1:
        for tensor in tensors:
            paddle.distributed.broadcast(tensor, src=0)


@paddle.no_grad()
def sum_gradients(parameters: Sequence[Tensor], processes: Processes) -> None:
    """Sum the gradients over all processes in place, many small tensors in one exchange."""
    if processes.world == 1:
        return
    bucket: list[Tensor] = []
    for index, parameter in enumerate(parameters):
        bucket.append(parameter)
        if index + 1 == len(parameters) or sum(member.size for member in bucket) >= BUCKET_ELEMENTS:
            flat = paddle.concat([member.grad.flatten() for member in bucket])
            paddle.distributed.all_reduce(flat)
            for member, part in zip(bucket, paddle.split(flat, [member.size for member in bucket])):
                member.grad.set_value(part.reshape(member.shape))
            bucket = []


def gather_objects(value: Any, processes: Processes) -> list[Any]:
    """Every process's ``value`` in the order of the ranks, on every process."""
    if processes.world == 1:
        return [value]
    gathered: list[Any] = []
    paddle.distributed.all_gather_object(gathered, value)
    return gathered


def barrier(processes: Processes) -> None:
    if processes.world > 1:
        paddle.distributed.barrier()
