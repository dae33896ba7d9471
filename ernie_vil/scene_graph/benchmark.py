"""Speed of parsing captions, beside calling ``sng_parser.parse`` in a loop with the same pipeline."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, Callable, Optional

from ernie_vil.data.captions import read_captions
from ernie_vil.scene_graph.conversion import ReadyDoc
from ernie_vil.scene_graph.parser import BATCH_SIZE, load_pipeline, parse_batches, sng_graph
from ernie_vil.scene_graph.pipelines import default_pipeline, describe_pipeline, import_sng_parser

WARM_UP = 500


def benchmark(
    path: Path,
    format: str = "auto",
    name_or_path: Optional[str] = None,
    count: int = 2000,
    processes: int = 2,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Captions/s of the loop, of ours in this process and with workers, and the share of equal graphs.

    A graph is equal if ``sng_parser`` on the ``Doc`` from a batch gives the same entities and relations, every field of
    them, as its own ``parse`` of the caption. The completion rules run in the timed parts that are ours.

    Args:
        path: a file of captions (see :func:`read_captions`), of which the first ``count`` are taken.
        processes: workers of the third part, which includes starting them.
    """
    taken = [caption.text for caption in itertools.islice(read_captions(path, format), count + WARM_UP)]
    # Both keep what they learn of words; they do so first on captions that are not timed, where there are any.
    captions, others = taken[:count], taken[count:] or taken[:1]
    nlp = load_pipeline(name_or_path)
    say(describe_pipeline(nlp, name_or_path))
    loop = import_sng_parser()(model=str(name_or_path or default_pipeline()))
    for name in set(nlp.pipe_names) - set(loop.nlp.pipe_names):
        loop.nlp.add_pipe(name, last=True)  # what load_pipeline added

    batches = [captions[start : start + BATCH_SIZE] for start in range(0, len(captions), BATCH_SIZE)]
    for caption in others:
        loop.parse(caption)
    list(parse_batches([others], nlp))

    # By turns, so that other work on the machine slows both.
    expected, parsed = [], []
    seconds = took = 0.0
    for batch in batches:
        graphs, passed = _timed(lambda batch=batch: [loop.parse(caption) for caption in batch])
        expected += graphs
        seconds += passed
        results, passed = _timed(lambda batch=batch: list(parse_batches([batch], nlp)))
        parsed += results
        took += passed
    figures = {"captions": float(len(captions)), "loop_captions_per_second": len(captions) / seconds}
    say(f"sng_parser.parse in a loop: {len(captions) / seconds:.0f} captions/s")
    times = {1: took}
    if processes > 1:
        again, times[processes] = _timed(lambda: list(parse_batches(batches, nlp, processes)))
        if again != parsed:
            raise AssertionError("the graphs depend on the number of processes")
    for workers, took in times.items():
        figures[f"captions_per_second_{workers}"] = len(captions) / took
        figures[f"ratio_{workers}"] = seconds / took
        plural = "process" if workers == 1 else "processes"
        say(f"ours, {workers} {plural}: {len(captions) / took:.0f} captions/s, {seconds / took:.1f} times the loop")

    found = [sng_graph(ReadyDoc(doc)) for batch in batches for doc in nlp.pipe(batch, batch_size=BATCH_SIZE)]
    equal = sum(ours == theirs for ours, theirs in zip(found, expected))
    figures["equal_share"] = equal / len(captions)
    say(f"same entities and relations: {equal} of {len(captions)} captions ({100 * figures['equal_share']:.2f} %)")
    results = [result for batch in parsed for result in batch]
    figures["failed"] = float(sum(result.fault is not None for result in results))
    for kind in ("attributes", "relations"):
        total = sum(len(getattr(result.graph, kind)) for result in results)
        added = sum(getattr(result, f"added_{kind}") for result in results)
        figures[kind], figures[f"added_{kind}"] = float(total), float(added)
        say(f"{kind}: {total}, of which the completion rules added {added}")
    return figures


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
