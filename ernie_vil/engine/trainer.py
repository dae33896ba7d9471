"""The training loop: steps, evaluation, checkpoints, logs. It knows neither the task nor the model."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Iterator

import paddle

from ernie_vil.engine import checkpoint, run_state
from ernie_vil.engine.config import RunConfig, to_yaml
from ernie_vil.engine.data import GuardedDataset, JointBatches, StepSampler, guarded_collate, make_loader
from ernie_vil.engine.distributed import (
    Processes,
    barrier,
    broadcast_parameters,
    gather_objects,
    sum_gradients,
)
from ernie_vil.engine.durations import Duration, to_steps
from ernie_vil.engine.evaluation import autocast, check_precision, evaluate, skip_log
from ernie_vil.engine.logging import RunLog
from ernie_vil.engine.optimizer import Adam, clip_by_global_norm, fill_absent_gradients
from ernie_vil.engine.schedules import Schedule
from ernie_vil.engine.seeding import derive_seed
from ernie_vil.engine.task import Task
from ernie_vil.engine.window import Window
from ernie_vil.errors import UserError


class Trainer:
    """Runs a task as its config says; see :meth:`fit`.

    Every random draw of a step follows from (seed, step, process), so a run that was killed and resumed computes what
    the run that was not would have computed, bit for bit, on the same device and number of processes.
    """

    def __init__(self, config: RunConfig, task: Task, processes: Processes) -> None:
        self.config, self.task, self.processes = config, task, processes
        self.output = Path(config.output)
        self.metric = config.train.best_metric or task.metric
        self.step, self.best, self.window = 0, None, Window()
        self.total_steps: int | None = None
        self.log = RunLog(self.output, 0, silent=True)
        check_precision(config)

    def fit(self, resume: str | None = None) -> dict[str, float]:
        """Train from the step the run is at to its end; returns the last evaluation's metrics.

        ``resume`` as in :func:`ernie_vil.engine.checkpoint.find`.
        """
        options = self.config.train
        start = checkpoint.find(self.output, resume)
        if start is None and checkpoint.follow(self.output, "latest") is not None:
            raise UserError(
                f"{self.output}: holds a run already; continue it with --resume auto, or give another -o output=FOLDER"
            )
        if start is None and self.processes.main:
            (self.output / "skipped.jsonl").unlink(missing_ok=True)
        self.plan()
        if start is not None:
            run_state.restore(self, start)
        broadcast_parameters(self.task.model.state_dict().values(), self.processes)
        self.log = RunLog(self.output, self.total_steps, silent=not self.processes.main, resumed_at=start and self.step)
        if self.processes.main:
            (self.output / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        self.log.say(
            f"{self.total_steps} steps of {options.batch_size} examples, {self.steps_per_epoch} steps an epoch, "
            f"{self.processes.world} process(es); " + (f"resumed from {start}" if start else "from the start")
        )
        changed = run_state.changed_keys(start, self.config.raw) if start else []
        if changed:
            self.log.say(f"the config differs from that of {start} in: {', '.join(changed)}")
        metrics: dict[str, float] = {}
        try:
            for loaded in self.micro_batches():
                self.train_step(loaded)
                due = self.step == self.total_steps
                if due or self._due(self.log_steps):
                    self._log_window()
                improved = False
                if due or self._due(self.eval_steps):
                    metrics = self._evaluate_and_log("val")
                    score = metrics[self.metric]
                    improved = math.isfinite(score) and (self.best is None or score > self.best)
                    self.best = score if improved else self.best
                if due or improved or self._due(self.save_steps):
                    self._save(improved)
            if not metrics:
                metrics, _ = evaluate(self.config, self.task, "val", self.processes)
        finally:
            self.log.close()
        return metrics

    def plan(self) -> None:
        """Turn durations into steps and build what needs them: batches, schedule, optimizer."""
        config, options = self.config, self.config.train
        if self.metric not in self.task.metric_names:
            raise UserError(f"train.best_metric: {self.metric} is not among {', '.join(self.task.metric_names)}")
        self.data = self.task.train_set()
        # Opened once now, so that a mistake in it is not found after an epoch of training.
        self.task.eval_set("val")
        shares = options.accumulate * self.processes.world
        if options.batch_size < shares:
            raise UserError(
                f"train.batch_size: {options.batch_size} examples cannot be shared out over {self.processes.world} "
                f"processes and train.accumulate {options.accumulate}"
            )
        one_epoch = self._joint_batches(epochs=1)
        self.steps_per_epoch = one_epoch.steps_per_epoch
        self.total_steps = self._steps(options.duration)
        self.batches = self._joint_batches(epochs=math.ceil(self.total_steps / self.steps_per_epoch))
        self.total_steps = min(self.total_steps, self.batches.total_steps)
        if self.total_steps == 0:
            raise UserError("train.duration: no step; see also data.turn and data.drop_incomplete_turns")
        self.log_steps, self.eval_steps, self.save_steps = (
            None if every is None else max(self._steps(every), 1)
            for every in (options.log_every, options.eval_every, options.save_every)
        )
        chosen = config.optimizer
        warmup = self._steps(chosen.warmup)
        if warmup > self.total_steps:
            raise UserError(f"optimizer.warmup: {warmup} steps are more than the {self.total_steps} of train.duration")
        self.schedule = Schedule(
            chosen.schedule,
            chosen.learning_rate,
            warmup,
            self.total_steps,
            [self._steps(border) for border in chosen.decay_steps],
            chosen.decay_ratio,
            chosen.final_ratio,
        )
        model = self.task.model
        model.recompute = options.recompute
        named = [(name, tensor) for name, tensor in model.named_parameters() if not tensor.stop_gradient]
        self.parameters = [tensor for _, tensor in named]
        self.optimizer = Adam(
            named,
            weight_decay=chosen.weight_decay,
            decay_excluded=model.decay_excluded(),
            layer_rates={
                name: chosen.layer_decay**exponent for name, exponent in model.learning_rate_exponents().items()
            }
            if chosen.layer_decay
            else None,
            multipliers=chosen.multipliers,
            beta1=chosen.beta1,
            beta2=chosen.beta2,
            epsilon=chosen.epsilon,
            epsilon_placement=chosen.epsilon_placement,
        )
        self.scaler = paddle.amp.GradScaler(enable=options.precision == "fp16")
        self.skips = skip_log(config, "train", self.data.records, self.processes)
        self.skips.add(self.data.unreadable)

    def _joint_batches(self, epochs: int) -> JointBatches:
        return JointBatches(
            sizes=self.data.sizes,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            epochs=epochs,
            turn=self.data.turn,
            drop_last=self.data.drop_last,
            drop_incomplete_turns=self.data.drop_incomplete_turns,
        )

    def _steps(self, duration: Duration) -> int:
        return to_steps(
            duration,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.train.batch_size,
            total_steps=self.total_steps,
        )

    def micro_batches(self) -> Iterator[list[dict]]:
        """The micro-batches of each remaining step, with the time spent waiting for them in ``self.waited``."""
        options = self.config.train
        sampler = StepSampler(
            self.batches, self.step, self.total_steps, options.accumulate, self.processes.rank, self.processes.world
        )
        loader = make_loader(
            GuardedDataset(self.data.dataset), guarded_collate(self.data.collate), sampler, options.workers
        )
        source = iter(loader)
        self.waited, self.since, self.timed_from = 0.0, time.perf_counter(), self.step
        for _ in range(self.step, self.total_steps):
            asked = time.perf_counter()
            loaded = [next(source) for _ in range(options.accumulate)]
            self.waited += time.perf_counter() - asked
            yield loaded

    def train_step(self, loaded: list[dict]) -> None:
        """One optimizer step from the micro-batches of this process."""
        # All draws of a step follow from this one seed; see the class's promise of exact resume.
        paddle.seed(derive_seed(self.config.seed, self.step, self.processes.rank))
        usable = [batch for batch in loaded if batch["size"]]
        counts: dict[str, float] = {}
        for batch in usable:
            for name, count in self.task.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        skipped = [message for batch in loaded for message in batch["skipped"]]
        everywhere = gather_objects((counts, skipped), self.processes)
        totals: dict[str, float] = {}
        for part, _ in everywhere:
            for name, count in part.items():
                totals[name] = totals.get(name, 0.0) + count
        self.skips.add([message for _, part in everywhere for message in part])
        for batch in usable:
            with autocast(self.config):
                losses = self.task.losses(batch)
                total = sum(loss.astype("float32") / totals[name] for name, loss in losses.items())
            self.scaler.scale(total).backward()
            for name, loss in losses.items():
                self.window.add(name, loss.detach(), 0.0)
        for name, count in counts.items():
            self.window.add(name, 0.0, count)
        # A step none of whose examples could be read changes nothing, in any process.
        if totals:
            self._update()
        self.step += 1
        self.log.advance()

    def _update(self) -> None:
        chosen = self.config.optimizer
        fill_absent_gradients(self.parameters)
        sum_gradients(self.parameters, self.processes)
        self.scaler.unscale_(self.optimizer)
        norm = clip_by_global_norm(self.parameters, chosen.clip_norm or 0.0)
        if self.config.train.precision == "fp16":
            # The scaler skips updates whose gradients overflow; the share of those is logged beside the norm.
            finite = paddle.isfinite(norm)
            self.window.add("overflows", 1.0 - finite.astype("float32"), 1.0)
            norm = paddle.where(finite, norm, paddle.zeros_like(norm))
        self.window.add("grad_norm", norm, 1.0)
        self.optimizer.set_lr(self.schedule(self.step))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad(set_to_zero=False)

    def _log_window(self) -> None:
        self.window.read(self.step)
        values = self.window.means(self.processes)
        passed = time.perf_counter() - self.since
        steps = self.step - max(self.window.start, self.timed_from)
        values["learning_rate"] = self.schedule(self.step - 1)
        values["examples_per_second"] = steps * self.config.train.batch_size / passed
        values["data_wait_share"] = self.waited / passed
        self.log.metrics("train", self.step, self.epoch(), values)
        self.window = Window(self.step)
        self.waited, self.since = 0.0, time.perf_counter()

    def _evaluate_and_log(self, split: str) -> dict[str, float]:
        self.window.read(self.step)
        started = time.perf_counter()
        try:
            metrics, _ = evaluate(self.config, self.task, split, self.processes)
        except UserError:
            # What is wrong with the evaluation's data shall not cost what was trained.
            self._save(improved=False)
            raise
        self.log.metrics(split, self.step, self.epoch(), metrics)
        self.since += time.perf_counter() - started
        return metrics

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.steps_per_epoch

    def _save(self, improved: bool) -> None:
        sums = self.window.read(self.step)
        # Each process has summed its own share; the checkpoint keeps them all.
        windows = gather_objects(sums, self.processes)
        if self.processes.main:
            folder = checkpoint.save(
                self.output, self.step, lambda temporary: run_state.write(self, temporary, windows)
            )
            # In this order: a run resumed from "latest" takes for granted that "best" was moved.
            if improved:
                checkpoint.point(self.output, "best", folder)
            checkpoint.point(self.output, "latest", folder)
            checkpoint.prune(self.output, self.config.train.keep)
        barrier(self.processes)
