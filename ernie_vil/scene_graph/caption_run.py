"""Parsing a file of captions into a caption file, through kills and resumptions."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from tqdm import tqdm

from ernie_vil.data.captions import MAX_SKIP_RATIO, Caption, detect_format, read_captions
from ernie_vil.errors import BadRecord, UserError
from ernie_vil.scene_graph.files import NODE_COLUMNS, import_pyarrow, write_parquet
from ernie_vil.scene_graph.parser import BATCH_SIZE, RULES_VERSION, Parsed, load_pipeline, parse_batches
from ernie_vil.scene_graph.pipelines import describe_pipeline, pipeline_identity

SECONDS_BETWEEN_LINES = 30
LISTED = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """What is parsed and how; the arguments of :func:`read_captions` and of the parser."""

    captions: Path
    format: str = "auto"
    image_ids: Optional[Path] = None
    seed: int = 0
    max_skip_ratio: float = MAX_SKIP_RATIO
    spacy_model: Optional[str] = None
    complete: bool = True

    def read(self, report: Optional[Callable[[str], None]] = None) -> Iterator[Caption]:
        return read_captions(self.captions, self.format, self.image_ids, self.seed, self.max_skip_ratio, report)

    def identity(self, nlp: Any) -> dict[str, Any]:
        """What two runs must share for their captions to go into one file; paths may differ."""
        return {
            "captions": _hash(self.captions),
            "format": self.format,
            "image_ids": None if self.image_ids is None else _hash(self.image_ids),
            "seed": self.seed,
            "complete": self.complete,
            "batch_size": BATCH_SIZE,
            "pipeline": pipeline_identity(nlp),
            "rules": RULES_VERSION,
        }


class Summary:
    """Counts of a caption file."""

    def __init__(self) -> None:
        self.captions = 0
        self.nodes = dict.fromkeys(NODE_COLUMNS, 0)
        self.without_node = 0
        self.skipped: list[str] = []
        self.faults: list[str] = []

    def add(self, values: dict[str, Any]) -> None:
        self.captions += 1
        for kind in NODE_COLUMNS:
            self.nodes[kind] += len(values[kind])
        self.without_node += not any(values[kind] for kind in NODE_COLUMNS)
        if "fault" in values:
            self.faults.append(f"caption {values['id']}: {values['fault']}")

    def lines(self) -> Iterator[str]:
        kinds = ", ".join(
            f"{count} {kind} ({count / self.captions:.2f} a caption)" for kind, count in self.nodes.items()
        )
        yield f"{self.captions} captions: {kinds}"
        yield f"captions without a node: {self.without_node}, of which {len(self.faults)} could not be parsed"
        yield f"records skipped: {len(self.skipped)}"
        for message in (self.skipped + self.faults)[:LISTED]:
            yield f"  {message}"


def parse_file(source: Source, out: Path, processes: int = 1, resume: bool = False, say: Any = print) -> Summary:
    """Parse captions into ``out``, a caption file (JSON lines, or parquet by the suffix ``.parquet``).

    Lines are gathered in ``OUT.partial``, which takes the name ``out`` when all are there. ``OUT.meta.json`` holds what
    they come from; ``OUT.skipped.jsonl`` names the records that were skipped or could not be parsed. The bytes depend
    neither on ``processes`` nor on where a run was killed and resumed: batches begin at the same captions.

    Args:
        source: captions and pipeline.
        out: the file to write.
        processes: workers; 1 parses in the calling process.
        resume: go on with what an earlier run left, if it left something; a finished file is left as it is.
        say: takes each line for the user.

    Raises:
        UserError: bad captions or pipeline (see :func:`read_captions` and :func:`load_pipeline`), files of an earlier
            run without ``resume``, or with it, of another source.
    """
    partial, meta = _beside(out, ".partial"), _beside(out, ".meta.json")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if out.suffix == ".parquet":
        import_pyarrow()
    left = next((path for path in (out, partial) if path.exists()), None)
    if left is not None and not resume:
        raise UserError(f"{left}: left by an earlier run; go on with --resume or remove it")
    if not source.captions.is_file():
        raise UserError(f"{source.captions}: no such caption file")
    if source.format == "auto":
        source = dataclasses.replace(source, format=detect_format(source.captions))
    nlp = load_pipeline(source.spacy_model)
    say(describe_pipeline(nlp, source.spacy_model))

    summary = Summary()
    total = sum(1 for _ in source.read(summary.skipped.append))
    identity = source.identity(nlp)
    if left is not None:
        _check_same(meta, identity, left)
    if out.exists():
        say(f"{out}: complete already")
        return _summary_of(out, summary)
    _write_text(meta, json.dumps(identity, indent=1) + "\n")

    with partial.open("ab") as file:
        _keep_whole_batches(partial, source.read(), summary)
        if summary.captions:
            say(f"resumed after {summary.captions} captions")
        captions = itertools.islice(source.read(), summary.captions, None)
        for lines in _progress(_parsed_lines(captions, nlp, processes, source.complete, summary), summary, total, say):
            file.write(lines)
            file.flush()
        os.fsync(file.fileno())
    _finish(partial, out)
    _write_skipped(out, source.captions, summary)
    return summary


def _parsed_lines(
    captions: Iterator[Caption], nlp: Any, processes: int, complete: bool, summary: Summary
) -> Iterator[bytes]:
    """The lines of each batch."""
    under_way: list[list[Caption]] = []

    def texts() -> Iterator[list[str]]:
        while batch := list(itertools.islice(captions, BATCH_SIZE)):
            under_way.append(batch)
            yield [caption.text for caption in batch]

    for parsed in parse_batches(texts(), nlp, processes, complete):
        lines = []
        for caption, result in zip(under_way.pop(0), parsed):
            values = _values(caption, result)
            summary.add(values)
            lines.append(json.dumps(values) + "\n")
        yield "".join(lines).encode("ascii")


def _values(caption: Caption, parsed: Parsed) -> dict[str, Any]:
    values = {"id": caption.id, "image_id": caption.image_id, **parsed.graph.to_dict()}
    return values if parsed.fault is None else {**values, "fault": parsed.fault}


def _keep_whole_batches(partial: Path, captions: Iterator[Caption], summary: Summary) -> None:
    """Cut off the last line, if it is half, and the last batch, if it is; count what stays."""
    kept, end, pending = 0, 0, []
    with partial.open("rb") as file:
        for number, line in enumerate(file, start=1):
            caption = next(captions, None)
            values = _whole(line)
            if values is None or caption is None:
                break
            if (values.get("id"), values.get("image_id"), values.get("caption")) != dataclasses.astuple(caption):
                raise UserError(f"{partial}:{number}: is not caption {caption.id} of the source; remove the file")
            pending.append(values)
            end += len(line)
            if len(pending) == BATCH_SIZE:
                kept = end
                for whole in pending:
                    summary.add(whole)
                pending = []
    os.truncate(partial, kept)


def _whole(line: bytes) -> Optional[dict[str, Any]]:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # after a crash of the machine a file can end in zeros
        return None


def _check_same(meta: Path, identity: dict[str, Any], left: Path) -> None:
    try:
        before = json.loads(meta.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{meta}: missing or damaged, so {left} cannot be gone on with; remove it") from None
    for key in identity:
        if before.get(key) != identity[key]:
            said = f"{before.get(key)!r} then, {identity[key]!r} now"
            raise UserError(
                f"{left}: was made from another source or pipeline (`{key}`: {said}); write to another file"
            )


def _finish(partial: Path, out: Path) -> None:
    if out.suffix == ".parquet":
        converted = _beside(out, ".converted")
        write_parquet(partial, converted)
        converted.replace(out)
        partial.unlink()
    else:
        partial.replace(out)


def _summary_of(out: Path, summary: Summary) -> Summary:
    from ernie_vil.scene_graph.files import CaptionFile

    try:
        for record in CaptionFile(out):
            summary.add({"id": record.id, **record.graph.to_dict()})
    except BadRecord as error:
        raise UserError(f"{error}; {out} is finished but damaged: delete it and parse again") from None
    return summary


def _write_skipped(out: Path, data: Path, summary: Summary) -> None:
    if messages := summary.skipped + summary.faults:
        lines = [json.dumps({"data": str(data), "record": message}) + "\n" for message in messages]
        _write_text(_beside(out, ".skipped.jsonl"), "".join(lines))


def _progress(batches: Iterator[bytes], summary: Summary, total: int, say: Any) -> Iterator[bytes]:
    """A bar on a terminal, elsewhere a line now and then."""
    start, before, said = time.monotonic(), summary.captions, time.monotonic()
    with tqdm(total=total, initial=before, unit="caption", disable=not sys.stderr.isatty()) as bar:
        for lines in batches:
            yield lines
            bar.update(summary.captions - bar.n)
            now = time.monotonic()
            if bar.disable and now - said > SECONDS_BETWEEN_LINES:
                said, rate = now, (summary.captions - before) / (now - start)
                left = (total - summary.captions) / rate
                say(f"{summary.captions} of {total} captions, {rate:.0f} a second, {left / 60:.1f} minutes left")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _write_text(path: Path, text: str) -> None:
    temporary = _beside(path, ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
