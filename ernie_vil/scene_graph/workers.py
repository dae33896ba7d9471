"""Mapping batches over worker processes, in order, a bounded number ahead."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Callable, Iterable, Iterator

from ernie_vil.errors import UserError

BATCHES_AHEAD = 2
_state: dict[str, Any] = {}


def map_in_order(work: Callable[[Any, Any], Any], batches: Iterable[Any], tool: Any, processes: int) -> Iterator[Any]:
    """``work(tool, batch)`` for every batch, in order. The tool goes to each worker once.

    Raises:
        UserError: a worker was killed from outside, mostly for want of memory.
    """
    if processes == 1:
        for batch in batches:
            yield work(tool, batch)
        return
    source = iter(batches)
    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(work, tool)) as pool:
        # submit() keeps no bound of its own: what is under way is counted here.
        waiting: collections.deque[Future] = collections.deque()
        try:
            for batch in itertools.islice(source, processes * BATCHES_AHEAD):
                waiting.append(pool.submit(_work, batch))
            while waiting:
                done = waiting.popleft().result()
                for batch in itertools.islice(source, 1):
                    waiting.append(pool.submit(_work, batch))
                yield done
        except BrokenProcessPool:
            raise UserError("a worker process was killed; is there enough memory? Use fewer processes") from None
        finally:
            for future in waiting:
                future.cancel()


def _begin(work: Callable[[Any, Any], Any], tool: Any) -> None:
    _state.update(work=work, tool=tool)
    # Ctrl-C reaches the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _work(batch: Any) -> Any:
    return _state["work"](_state["tool"], batch)


def _leave_with_parent() -> None:
    """A parent that is killed cannot stop its workers, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
