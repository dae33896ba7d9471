"""What a run says: lines (or a progress bar) for people, one JSONL and VisualDL scalars for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Mapping

from tqdm import tqdm
from visualdl import LogWriter

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """The log of one run. Only the main process of a launch writes; the others keep silent.

    ``metrics.jsonl`` has one object per entry: ``split``, ``step``, ``epoch`` and numbers. On resuming at a step,
    entries of later steps are dropped, so that the file reads as if the run had never stopped.
    """

    def __init__(self, output: Path, total_steps: int, *, silent: bool, resumed_at: int | None = None) -> None:
        self.silent = silent
        if silent:
            return
        output.mkdir(parents=True, exist_ok=True)
        self.path = output / METRICS_FILE
        if resumed_at is None:
            self.path.write_text("")
        elif self.path.exists():
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= resumed_at
            ]
            self.path.write_text("".join(line + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1, encoding="utf-8")
        self.writer = LogWriter(str(output / "visualdl"))
        self.bar = tqdm(
            total=total_steps, initial=resumed_at or 0, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.silent:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, steps: int = 1) -> None:
        if not self.silent:
            self.bar.update(steps)

    def metrics(self, split: str, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Record numbers of a split at a step, and show them."""
        if self.silent:
            return
        self.file.write(json.dumps({"split": split, "step": step, "epoch": round(epoch, 4), **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{split}/{name}", value, step)
        shown = "  ".join(f"{name} {show(value)}" for name, value in values.items())
        self.say(f"[{split}] step {step}  epoch {epoch:.2f}  {shown}")

    def close(self) -> None:
        if not self.silent:
            self.bar.close()
            self.writer.close()
            self.file.close()


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _step_of(line: str) -> float:
    # A killed run can leave half a line; it belongs to no step.
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
