"""Parsing captions into scene graphs with ``SceneGraphParser`` (imports as ``sng_parser``) on a spaCy pipeline.

The graph of a caption is that of ``sng_parser`` with the same pipeline; the rules of
:mod:`ernie_vil.scene_graph.completion` add to it unless ``complete=False``.
"""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence

from ernie_vil.scene_graph.conversion import ReadyDoc, draft_graph, to_graph
from ernie_vil.scene_graph.graph import SceneGraph
from ernie_vil.scene_graph.pipelines import import_sng_parser, load_pipeline, shared_pipeline
from ernie_vil.scene_graph.workers import map_in_order

__all__ = [
    "MAX_CHARACTERS",
    "Parsed",
    "graph_of_doc",
    "load_pipeline",
    "parse",
    "parse_all",
    "parse_batches",
    "parse_records",
]

BATCH_SIZE = 256
RULES_VERSION = 1
"""To be raised when completion or conversion change what they make of a tree: files of two versions do not mix."""
MAX_CHARACTERS = 10_000
"""Longest caption that is parsed, about 1,700 words. Memory grows with the length; spaCy alone stops at a million."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
Report = Callable[[int, str], None]


@dataclass(frozen=True)
class Parsed:
    """A caption's graph and how it came about."""

    graph: SceneGraph
    fault: Optional[str] = None
    """Why the graph is empty, where parsing failed."""
    added_attributes: int = 0
    """Nodes that the completion rules added; they are the last ones."""
    added_relations: int = 0


def parse(caption: str, pipeline: Any = None, complete: bool = True) -> SceneGraph:
    """The scene graph of one caption; for many, :func:`parse_all` is several times as fast.

    A caption of white space has an empty graph. So has one that cannot be parsed (longer than ``MAX_CHARACTERS``, or
    ``sng_parser`` fails on its tree), with a warning. Markup, emoji and other languages are words like any others.

    Args:
        caption: text. Spans are places in it exactly as it is given.
        pipeline: from :func:`load_pipeline`; by default the default one, loaded on first use.
        complete: add what ``sng_parser`` misses; ``False`` gives its graph and no more.
    """
    return next(parse_all([caption], pipeline, complete=complete))


def parse_all(
    captions: Iterable[str],
    pipeline: Any = None,
    processes: int = 1,
    batch_size: int = BATCH_SIZE,
    complete: bool = True,
    report: Optional[Report] = None,
) -> Iterator[SceneGraph]:
    """The graphs of captions, in order and in constant memory. Read :func:`parse` for what becomes of odd ones.

    Args:
        captions: any number of texts; they are drawn a few batches ahead.
        pipeline: as for :func:`parse`.
        processes: 1 parses in the calling process. More are started as workers; on platforms that spawn them, call this
            under ``if __name__ == "__main__"``.
        batch_size: captions that go through the pipeline together. The graphs do not depend on ``processes``.
        complete: as for :func:`parse`.
        report: called with the number of a caption, from 0, and why it could not be parsed; by default it is warned of.
    """
    report = report or _warn
    texts = iter(captions)
    batches = iter(lambda: list(itertools.islice(texts, batch_size)), [])
    number = 0
    for batch in parse_batches(batches, pipeline, processes, complete):
        for parsed in batch:
            if parsed.fault is not None:
                report(number, parsed.fault)
            number += 1
            yield parsed.graph


def parse_batches(
    batches: Iterable[Sequence[str]], pipeline: Any = None, processes: int = 1, complete: bool = True
) -> Iterator[list[Parsed]]:
    """Like :func:`parse_all`, for captions that come in batches: a list of :class:`Parsed` for each."""
    nlp = pipeline or shared_pipeline()
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    yield from map_in_order(functools.partial(parse_batch, complete=complete), batches, nlp, processes)


def parse_records(
    records: Mapping[str, Any], pipeline: Any = None, complete: bool = True, column: str = "caption"
) -> dict[str, Any]:
    """A batch in columns with the graphs added, for engines that map over batches, such as Ray Data's ``map_batches``.

    Args:
        records: columns of one length (lists or arrays); ``column`` holds the captions. Others are handed through.
        pipeline: as for :func:`parse`: the default one is loaded once in every worker process.

    Returns:
        the columns and ``objects``, ``attributes``, ``relations`` (JSON text, as in a parquet caption file) and
        ``fault`` (why a caption could not be parsed, else an empty text), as arrays of objects.
    """
    import json

    import numpy as np

    texts = list(records[column])
    parsed_texts = parse_batch(
        pipeline or shared_pipeline(), [text if isinstance(text, str) else "" for text in texts], complete
    )
    nodes = [
        {**parsed.graph.to_dict(), "fault": parsed.fault or ("" if isinstance(text, str) else "not a text")}
        for parsed, text in zip(parsed_texts, texts)
    ]
    added = {kind: [json.dumps(values[kind]) for values in nodes] for kind in ("objects", "attributes", "relations")}
    added["fault"] = [values["fault"] for values in nodes]
    return {**records, **{name: np.array(values, dtype=object) for name, values in added.items()}}


def parse_batch(nlp: Any, captions: Sequence[str], complete: bool = True) -> list[Parsed]:
    """Parse captions together in this process."""
    results: list[Parsed] = [Parsed(SceneGraph(caption)) for caption in captions]
    usable = []
    for place, caption in enumerate(captions):
        if len(caption) > MAX_CHARACTERS:
            fault = f"the caption has {len(caption)} characters; at most {MAX_CHARACTERS} are parsed"
            results[place] = Parsed(SceneGraph(caption), fault)
        elif caption.strip():
            usable.append(place)
    with _memory_zone(nlp):
        for place, doc in zip(usable, _docs(nlp, [_encodable(captions[place]) for place in usable])):
            try:
                if isinstance(doc, Exception):
                    raise doc
                results[place] = graph_of_doc(doc, captions[place], complete)
            except Exception as error:  # sng_parser is not proof against every tree, and a run must not end by one
                fault = f"{type(error).__name__}: {error}".split("\n")[0]
                results[place] = Parsed(SceneGraph(captions[place]), fault)
    return results


def graph_of_doc(doc: Any, caption: str, complete: bool = True) -> Parsed:
    """The graph of a caption that spaCy has parsed."""
    ready = ReadyDoc(doc)
    draft = draft_graph(ready, sng_graph(ready))
    if not complete:
        return Parsed(to_graph(doc, caption, draft))
    from ernie_vil.scene_graph import completion

    whole = completion.complete(doc, draft)
    return Parsed(
        to_graph(doc, caption, whole),
        added_attributes=len(whole.attributes) - len(draft.attributes),
        added_relations=len(whole.relations) - len(draft.relations),
    )


def sng_graph(ready: ReadyDoc) -> dict[str, Any]:
    """What ``sng_parser`` itself finds: its method ``parse``, on a caption that is parsed already."""
    # The method begins with `doc = self.nlp(sentence)`.
    return _backend().parse(ready)


@functools.lru_cache(maxsize=1)
def _backend() -> Any:
    parser = import_sng_parser()
    backend = parser.__new__(parser)  # its constructor would load a pipeline
    backend.nlp = _as_it_is
    return backend


def _as_it_is(doc: Any) -> Any:
    return doc


def _docs(nlp: Any, texts: list[str]) -> list[Any]:
    """A ``Doc`` or an exception for every text."""
    try:
        return list(nlp.pipe(texts, batch_size=len(texts) or 1))
    except Exception:  # one text of them; which?
        docs: list[Any] = []
        for text in texts:
            try:
                docs.append(nlp(text))
            except Exception as error:
                docs.append(error)
        return docs


def _encodable(caption: str) -> str:
    # spaCy keeps words in UTF-8, which has no half surrogate pairs. The same length keeps the spans.
    return LONE_SURROGATE.sub("\ufffd", caption)


def _memory_zone(nlp: Any) -> Any:
    """Free what the vocabulary learns from a batch: without it memory grows with every new word (spaCy 3.8)."""
    import contextlib

    if not hasattr(nlp, "memory_zone") or nlp.vocab.in_memory_zone:
        return contextlib.nullcontext()
    return nlp.memory_zone()


def _warn(number: int, fault: str) -> None:
    warnings.warn(f"caption {number} has no scene graph: {fault}", stacklevel=3)
