"""The way of the samples into a run: in which order, in which pieces, through which processes, past which bad ones.

Everything here is a function of the step, so that a resumed run looks up where it was instead of replaying the past.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Protocol, Sequence, Union

import numpy as np
import paddle
from paddle.io import multiprocess_utils

from ernie_vil.errors import BadRecord, UserError

_CARRIER, _FAILURE = "_carrier", "_failure"

Key = tuple
"""``(part, epoch, index)``: which data set, which time it is walked, which of its samples."""
Batch = dict
Collate = Callable[[list], dict]


class Batches(Protocol):
    """The global batches of a run or an evaluation, one list of keys per step."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> list[Key]: ...


@dataclass(frozen=True)
class JointBatches:
    """The order in which training walks one or several data sets ("parts").

    Steps come in turns: ``turn`` batches of part 0, then as many of part 1, and so on. A batch never mixes parts. Every
    part walks its own epochs and starts the next one when it is through; since every part gives the same number of
    batches, a small part is walked more often than a large one. **An epoch of the whole is an epoch of part 0**, with
    the batches that the other parts give meanwhile. A batch does not run over the end of an epoch.

    Shuffling is that of the original: a list of indices is shuffled by a NumPy ``RandomState``, and shuffled again in
    place for every further epoch. All parts share the seed, so parts of the same size walk in the same order.

    Args:
        sizes: number of samples of every part.
        batch_size: samples of a global batch, over all devices and accumulated pieces.
        seed: of the shuffling.
        shuffle: ``False`` walks in the order of the data sets.
        epochs: give this or ``steps``. Each part gives ``ceil(epochs * batches per epoch of part 0)`` batches; at the
            end, where they do not fill a turn, the rest of part 0 is followed by the rest of part 1, and so on.
        steps: stop after so many steps, wherever in a turn that is.
        turn: batches of a part before the next one follows. The original has ``max(int(64 / batch_size), 1)``.
        drop_last: leave out the incomplete batch at the end of an epoch. The original keeps it.
        drop_incomplete_turns: with ``epochs``, leave out the last turn if it is incomplete, as the original does.

    Raises:
        UserError: a part has no sample, or with ``drop_last`` no full batch.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    epochs: Optional[float] = None
    steps: Optional[int] = None
    turn: int = 1
    drop_last: bool = False
    drop_incomplete_turns: bool = False
    _orders: dict[int, _EpochOrders] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if not self.sizes or min(self.batch_size, self.turn) < 1:
            raise ValueError("there must be a part, and batch_size and turn must be at least 1")
        for part, size in enumerate(self.sizes):
            if not self.batches_per_epoch(part):
                raise UserError(
                    f"part {part} of the training data has {size} samples, too few for a batch"
                    + (f" of {self.batch_size} (incomplete batches are dropped)" if self.drop_last else "")
                )
        for size in set(self.sizes):
            self._orders[size] = _EpochOrders(size, self.seed, self.shuffle)

    def batches_per_epoch(self, part: int) -> int:
        """Batches in which part ``part`` is walked once."""
        full, rest = divmod(self.sizes[part], self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of part 0, those of the other parts included."""
        return self.batches_per_epoch(0) * len(self.sizes)

    @property
    def total_steps(self) -> int:
        if self.steps is not None:
            return self.steps
        return self._batches_of_each_part() * len(self.sizes)

    def __len__(self) -> int:
        return self.total_steps

    def locate(self, step: int) -> tuple[int, int, int]:
        """Part, epoch of that part, and number of the batch within the epoch.

        Raises:
            IndexError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of {self.total_steps}")
        turn, within = divmod(step, self.turn * len(self.sizes))
        length = self.turn
        if self.steps is None:
            # only the last turn can be shorter
            length = min(self.turn, self._batches_of_each_part() - turn * self.turn)
        part, batch = divmod(within, length)
        epoch, number = divmod(turn * self.turn + batch, self.batches_per_epoch(part))
        return part, epoch, number

    def __getitem__(self, step: int) -> list[Key]:
        """The keys of the global batch of a step."""
        part, epoch, number = self.locate(step)
        order = self._orders[self.sizes[part]].order(epoch)
        indices = order[number * self.batch_size : (number + 1) * self.batch_size]
        return [(part, epoch, index) for index in indices.tolist()]

    def _batches_of_each_part(self) -> int:
        # The small term keeps 0.1 epochs of 30 batches at 3, not at 4.
        batches = math.ceil(self.epochs * self.batches_per_epoch(0) - 1e-9)
        return batches - batches % self.turn if self.drop_incomplete_turns else batches


class _EpochOrders:
    """The shuffled indices of every epoch; remembers the current and the previous one, since parts may be that far
    apart. Going back further starts again at epoch 0 (a few milliseconds per epoch for a quarter million samples)."""

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self._size, self._seed, self._shuffle = size, seed, shuffle
        # The loader of Paddle asks from a thread of its own.
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._random = np.random.RandomState(self._seed)
        self._epoch = -1
        self._current = self._previous = np.arange(self._size)

    def order(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return self._current
        with self._lock:
            if epoch < self._epoch - 1:
                self._restart()
            while self._epoch < epoch:
                self._previous, self._current = self._current, self._current.copy()
                self._random.shuffle(self._current)
                self._epoch += 1
            return self._current if epoch == self._epoch else self._previous


def slice_for(items: Sequence[Key], micro_batch: int, accumulate: int, rank: int, world: int) -> list[Key]:
    """The piece of a global batch for one device and one of the batches whose gradients are accumulated.

    The batch is cut into ``accumulate * world`` contiguous pieces whose sizes differ by at most one, larger ones first;
    piece ``micro_batch * world + rank`` is returned. It is empty when there are fewer items than pieces.
    """
    size, larger = divmod(len(items), accumulate * world)
    piece = micro_batch * world + rank
    first = piece * size + min(piece, larger)
    return list(items[first : first + size + (piece < larger)])


class StepSampler:
    """Batch sampler of a :class:`paddle.io.DataLoader`: for every step from ``start`` to before ``stop``, the pieces of
    this rank, one for each accumulated batch (see :func:`slice_for`). A piece may be empty."""

    def __init__(
        self, batches: Batches, start: int, stop: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.batches = batches
        self.start, self.stop = start, stop
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __len__(self) -> int:
        return max(self.stop - self.start, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.stop):
            keys = self.batches[step]
            for micro_batch in range(self.accumulate):
                yield slice_for(keys, micro_batch, self.accumulate, self.rank, self.world)


@dataclass(frozen=True)
class Skipped:
    """Stands in the place of a sample that could not be used."""

    message: str
    key: Key


class GuardedDataset(paddle.io.Dataset):
    """A data set that answers with :class:`Skipped` where the wrapped one raises :class:`BadRecord`.

    Other exceptions are passed on to the main process, which raises them; see :class:`GuardedLoader`.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        if isinstance(key, _Failure):
            return key
        try:
            return self.dataset[key]
        except BadRecord as error:
            return Skipped(str(error), key)
        except Exception as error:
            return _Failure.of(error)


def guarded_collate(collate: Collate) -> Collate:
    """A collate function that can do with :class:`Skipped` samples and with none at all.

    The batch of ``collate`` gets ``size``, the number of its samples (int), and ``skipped``, the messages of those left
    out (list of str). Without a usable sample the batch is ``{"size": 0, "skipped": [...]}``.
    """
    return functools.partial(_collate_guarded, collate)


def make_loader(
    dataset: GuardedDataset, collate: Collate, sampler: Union[StepSampler, Sequence[list[Key]]], workers: int
) -> GuardedLoader:
    """A loader of guarded batches.

    Args:
        dataset: a deterministic function of its key, since workers are not seeded.
        collate: made by :func:`guarded_collate`. Its arrays become tensors; none of them may be empty.
        sampler: the keys of every batch, in order.
        workers: processes that load; 0 loads in a thread of this process.
    """
    loader = paddle.io.DataLoader(
        dataset,
        batch_sampler=_GuardedSampler(sampler),
        collate_fn=collate,
        num_workers=workers,
        # Through shared memory a worker takes locks of Paddle's allocator that another thread of the training process
        # may have held when the worker was forked; it then waits for ever (seen with Paddle 3.3). Pipes take none.
        use_shared_memory=False,
    )
    return GuardedLoader(loader)


class GuardedLoader:
    """Iterates over a :class:`paddle.io.DataLoader` and makes up for four of its habits (as of Paddle 3.3).

    * A batch without any array ends the iteration as if the data were through; so every batch carries a small array.
    * An exception in the sampler, the data set or the collate function ends it too, or leaves the main process waiting
      for ever; at best it arrives as a fault of the queue. So exceptions travel as data and are raised here.
    * As a last resort, an iteration that ends before its sampler does is an error.
    * Starting workers draws from NumPy's global generator, whose state would thus depend on the number of workers and
      of restarts; the state is put back.

    Workers live for one iteration. Paddle can keep them for the next one, but starting over then takes half a second,
    ten times longer than to fork anew, and they would hold their memory in between.
    """

    def __init__(self, loader: paddle.io.DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: the sampler, the data set or the collate function raised it.
            RuntimeError: they raised something else (its traceback is in the message), or Paddle's loader broke down.
        """
        # Paddle would raise from a signal handler, that is anywhere in the program, when a worker dies; here that is
        # seen when the next batch is asked for.
        multiprocess_utils._SIGCHLD_handler_set = True
        state = np.random.get_state()
        iterator = iter(self._loader)
        np.random.set_state(state)
        batches = 0
        try:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    break
                except SystemError as error:
                    raise RuntimeError(
                        f"a process that loads data died, perhaps killed for want of memory, after {batches} of "
                        f"{len(self)} batches"
                    ) from error
                del batch[_CARRIER]
                if _FAILURE in batch:
                    batch[_FAILURE].reraise()
                batches += 1
                yield batch
        finally:
            _kill_bereaved(getattr(iterator, "_workers", ()))
        if batches < len(self):
            raise RuntimeError(f"the data loader ended after {batches} of {len(self)} batches; see the messages above")


def _kill_bereaved(workers: Sequence[Any]) -> None:
    """Kill what is left of the workers if one of them was killed: it may have died holding the lock that the others
    wait for, and Paddle would wait for them without end."""
    if any(worker.exitcode not in (None, 0) for worker in workers):
        for worker in workers:
            worker.kill()


@dataclass(frozen=True)
class _Failure:
    """An exception on its way from the process that loads to the main process."""

    is_user_error: bool
    message: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        if isinstance(error, UserError):
            return cls(True, str(error))
        return cls(
            False,
            "while loading data:\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )

    def reraise(self) -> None:
        raise UserError(self.message) if self.is_user_error else RuntimeError(self.message)


class _GuardedSampler:
    """Yields a failure for the key of a batch that the sampler could not make."""

    def __init__(self, sampler: Union[StepSampler, Sequence[list[Key]]]) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list]:
        try:
            yield from self._sampler
        except Exception as error:
            yield [_Failure.of(error)]


def _collate_guarded(collate: Collate, samples: list) -> Batch:
    failures = [sample for sample in samples if isinstance(sample, _Failure)]
    usable = [sample for sample in samples if not isinstance(sample, (Skipped, _Failure))]
    batch: Batch = {}
    if usable and not failures:
        try:
            batch = dict(collate(usable))
        except Exception as error:
            failures.append(_Failure.of(error))
    batch["size"] = len(usable)
    batch["skipped"] = [sample.message for sample in samples if isinstance(sample, Skipped)]
    batch[_CARRIER] = np.zeros([1], dtype=np.uint8)
    if failures:
        batch[_FAILURE] = failures[0]
    return batch


class SkipLog:
    """Counts the records that a run could not use, names them in a file, and stops the run when they are too many.

    Every line of the file is ``{"data": what, "record": message}``. Lines of an earlier start of the same run are
    read back, so a record counts once however often it is met.

    Args:
        path: ``skipped.jsonl`` of the run; ``None`` keeps no file.
        budget_ratio: share of the records that may be skipped.
        size: number of records.
        what: name of the data set, for messages and to tell its lines from those of others in the same file.
        recount: whether the lines of an earlier start count again; an evaluation looks at all records anew.
    """

    def __init__(
        self, path: Union[str, Path, None], budget_ratio: float, size: int, what: str, recount: bool = True
    ) -> None:
        self.path = None if path is None else Path(path)
        self.budget_ratio = budget_ratio
        self.size = size
        self.what = what
        self._written = set(self._read())
        self._messages: dict[str, None] = dict.fromkeys(sorted(self._written) if recount else ())

    @property
    def count(self) -> int:
        """Number of different records skipped so far."""
        return len(self._messages)

    def add(self, messages: Sequence[str]) -> None:
        """Note skipped records.

        Raises:
            UserError: more than ``budget_ratio * size`` records have been skipped; up to 20 are listed.
        """
        self._messages.update(dict.fromkeys(messages))
        new = [message for message in dict.fromkeys(messages) if message not in self._written]
        self._written.update(new)
        if new and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"data": self.what, "record": message}) + "\n" for message in new)
        if self.count > self.budget_ratio * self.size:
            listed = "".join(f"\n  {message}" for message in list(self._messages)[:20])
            rest = f"\n  and {self.count - 20} more" if self.count > 20 else ""
            raise UserError(
                f"{self.what}: {self.count} of {self.size} records cannot be used, more than the share of "
                f"{self.budget_ratio:g} that may be skipped (`data.max_skip_ratio`):{listed}{rest}"
            )

    def _read(self) -> list[str]:
        if self.path is None or not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            # An earlier start was killed while it wrote: drop the torn line, its record will be met again.
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text, encoding="utf-8")
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entry = json.loads(line)
                found += [entry["record"]] if entry["data"] == self.what else []
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}:{number}: not a line that a run wrote; mend or delete the file") from None
        return found
