"""The benchmark's figures on a few captions: equal graphs, counts that agree with the parser's."""

from __future__ import annotations

from pathlib import Path

from ernie_vil.data.captions import read_captions
from ernie_vil.scene_graph.benchmark import benchmark
from ernie_vil.scene_graph.parser import load_pipeline, parse
from ernie_vil.scene_graph.pipelines import SHIPPED

CAPTIONS = Path(__file__).parents[1] / "data" / "captions" / "captions_val2017_first60.json"


def test_figures() -> None:
    said: list[str] = []
    figures = benchmark(CAPTIONS, name_or_path=str(SHIPPED), count=40, processes=2, say=said.append)
    assert figures["captions"] == 40 and figures["equal_share"] == 1 and figures["failed"] == 0
    nlp = load_pipeline(SHIPPED)
    texts = [caption.text for caption in read_captions(CAPTIONS)][:40]
    whole, own = ([parse(text, nlp, complete) for text in texts] for complete in (True, False))
    for kind in ("attributes", "relations"):
        counts = [sum(len(getattr(graph, kind)) for graph in graphs) for graphs in (whole, own)]
        assert figures[kind] == counts[0] and figures[f"added_{kind}"] == counts[0] - counts[1]
    for workers in (1, 2):
        speeds = figures[f"captions_per_second_{workers}"] / figures["loop_captions_per_second"]
        assert abs(figures[f"ratio_{workers}"] - speeds) < 1e-6 * speeds
    assert "same entities and relations: 40 of 40 captions (100.00 %)" in said
