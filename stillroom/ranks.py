"""Several processes at one training, as a launcher started them: torchrun, `accelerate launch`, mpirun.

The first of them, rank 0, goes the whole way. The others wait until it comes to a stage that trains, run that stage beside
it, and wait again. What only one of them may do in such a stage, such as writing a file, it does in `once`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from stillroom.contracts.launchers import local_rank, place

_Result = TypeVar("_Result")
_PATIENCE = timedelta(days=30)
"""A stage that one process does alone may take days; the launcher ends them all when one of them fails."""


class _State:
    waiting: Any = None
    """The group over which the others wait for the first."""
    alone = False
    """Whether this is the first process, in the middle of what it does alone."""


def once(work: Callable[[], _Result]) -> _Result:
    """What only one process does while the others wait; each of them gets what came of it.

    Args:
        work: its result can be pickled. `once` within it is done there and then.
    """
    if _State.waiting is None or _State.alone:
        return work()
    import torch.distributed as dist

    box: list[Any] = [None]
    if dist.get_rank() == 0:
        with alone():
            box[0] = work()
    dist.broadcast_object_list(box, 0, group=_State.waiting)
    result: _Result = box[0]
    return result


def meet() -> None:
    """Go on when all have come here."""
    if _State.waiting is not None and not _State.alone:
        import torch.distributed as dist

        dist.barrier(group=_State.waiting)


@contextmanager
def together() -> Iterator[bool]:
    """The processes of a launcher find each other; gives whether this is the first of them.

    The first leaves when its work is done, which sends the others home; when it fails, its exit code has the launcher end
    them. Without a launcher nothing happens.
    """
    rank, ranks = place()
    if ranks == 1:
        yield True
        return
    import torch
    import torch.distributed as dist

    local = local_rank()
    # As torch and accelerate look for it, whoever has launched us.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(local)}
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    dist.init_process_group()
    _State.waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield rank == 0
    if rank == 0:
        tell(None)
    _State.waiting = None
    dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """The first process does something that the others have not been told of; what it does `once` is done there and then."""
    before, _State.alone = _State.alone, True
    try:
        yield
    finally:
        _State.alone = before


def tell(order: Any) -> None:
    """In the first process: what the others are to do beside it; None sends them home."""
    if _State.waiting is not None:
        once(lambda: order)


def orders() -> Iterator[Any]:
    """In the others: what they are told, until they are sent home."""
    while (order := once(lambda: None)) is not None:
        yield order
