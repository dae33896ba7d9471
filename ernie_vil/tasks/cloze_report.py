"""What comes of a cloze test: metrics, all records as JSON lines, and a page to look at (as in the paper's Table 5).

A record has ``key`` (kind, 0, number of the node), ``true`` (ids of the node's pieces), ``ranks`` (of the true piece at
each place) and ``best`` (for each place the likeliest tokens as (id, probability)).
"""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Callable, Iterable, Mapping, Optional, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from ernie_vil.data.cloze import KINDS

BEST = 5
SAMPLE = 50
IMAGE_SIDE = 320  # pixels; larger pictures are scaled down, or a page of real photographs has tens of megabytes
COLUMNS = ("kind", "nodes", "left out", "ACC@1", "ACC@5")


def ranks_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each label among its row of scores, from 1: ``[m, vocab]``, ``[m]`` -> ``[m]``.

    Of equal scores the lower id comes first, as in :func:`best_of`, so that a model that knows nothing finds nothing. A
    score that is no number stands before all others.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = ~(scores <= own)
    before |= (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return 1 + before.sum(axis=1)


def best_of(scores: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """For each row the k best ids with their share (softmax over the row); of equal scores the lower id first."""
    k = min(k, scores.shape[1])
    shares = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    lowest = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    rows = []
    for row, bound in enumerate(lowest):
        candidates = np.flatnonzero(scores[row] >= bound)
        order = candidates[np.lexsort((candidates, -scores[row, candidates]))][:k]
        rows.append([(int(index), float(shares[row, index])) for index in order])
    return rows


def is_right(record: Mapping, k: int) -> bool:
    """Whether each piece of the node has its true piece among the k best."""
    return max(record["ranks"]) <= k


def cloze_metrics(records: Sequence[Mapping]) -> dict[str, float]:
    """ACC@1 and ACC@5 in per cent per kind and over all nodes, and the number of nodes per kind.

    Without a node of a kind, its accuracies are left out.
    """
    by_kind = {name: [record for record in records if KINDS[record["key"][0]] == name] for name in KINDS}
    metrics = {f"acc{k}": _percent(is_right(record, k) for record in records) for k in (1, BEST)}
    for name, own in by_kind.items():
        if own:
            metrics |= {f"{name}_acc{k}": _percent(is_right(record, k) for record in own) for k in (1, BEST)}
    return {**metrics, **{f"{name}_nodes": len(own) for name, own in by_kind.items()}}


def _percent(values: Iterable[bool]) -> float:
    return 100.0 * float(np.mean(list(values)))


def choose_sample(records: Sequence[Mapping], size: int = SAMPLE) -> list[Mapping]:
    """A fair choice: of each kind the same number, half of it evenly spaced over the split, half of it misses (evenly
    spaced over the misses, where there are so many); in the split's order."""
    chosen: set[int] = set()
    for kind in range(len(KINDS)):
        own = [index for index, record in enumerate(records) if record["key"][0] == kind]
        share = size // len(KINDS) + (1 if kind < size % len(KINDS) else 0)
        taken = _spread(own, -(-share // 2))
        missed = [index for index in own if index not in taken and not is_right(records[index], 1)]
        taken |= _spread(missed, share - len(taken))
        taken |= _spread([index for index in own if index not in taken], share - len(taken))
        chosen |= taken
    return [records[index] for index in sorted(chosen)]


def _spread(items: Sequence[int], count: int) -> set[int]:
    if count <= 0:
        return set()
    return {items[i * len(items) // count] for i in range(count)} if count < len(items) else set(items)


def write_records(lines: Iterable[Mapping], path: Path) -> None:
    """All records as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


# ------------------------------------------------------------------------------------------------------------ the page
STYLE = """
body { font: 15px/1.4 sans-serif; color: #222; max-width: 1000px; margin: 1.5em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
section { display: flex; gap: 1.2em; border-top: 1px solid #ccc; padding: 1em 0 }
figure { margin: 0; flex: 0 0 260px } figure img { width: 100%; image-rendering: auto }
figure p { background: #f3f3f3; margin: 0; padding: 2em 1em; text-align: center; color: #666 }
mark { background: #ffe08a; padding: 0 .2em } .kind { color: #666 } .hit { color: #176f2c } .miss { color: #a3231f }
.places { display: flex; flex-wrap: wrap; gap: .4em 2em }
.word { display: grid; grid-template-columns: 8em 150px 4em; gap: .5em; align-items: center }
.bar { background: #b9c4d6; height: .8em } .right .bar { background: #3f9d57 } .right { font-weight: bold }
"""


def write_page(
    title: str,
    lines: Sequence[Mapping],
    metrics: Mapping[str, float],
    left_out: Mapping[str, int],
    picture: Callable[[str], Optional[Path]],
    path: Path,
) -> None:
    """A page of its own, without scripts: accuracies, then each node with its picture and the likeliest words.

    Args:
        title: says which weights and captions these are.
        lines: the nodes to show, as :meth:`ernie_vil.tasks.cloze.ClozeTask.lines` gives them.
        metrics: of :func:`cloze_metrics`, over all nodes.
        left_out: for each kind, the nodes that were not tested.
        picture: gives the file of an image id, or None where the run has no pictures. What is missing or unreadable
            is said in the picture's place.
    """
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _table(metrics, left_out),
        f"<p>{len(lines)} examples: of each kind, half evenly spaced over the captions, half misses. A node is found "
        "at k if each of its pieces is among the k likeliest.</p>",
        *(_section(line, picture) for line in lines),
    ]
    page = f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
    page += f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    path.write_text(page, encoding="utf-8", errors="replace")  # a caption may hold half a surrogate pair


def _table(metrics: Mapping[str, float], left_out: Mapping[str, int]) -> str:
    rows = [COLUMNS]
    for name in KINDS:
        figures = (metrics.get(f"{name}_acc1"), metrics.get(f"{name}_acc{BEST}"))
        rows.append((name, int(metrics[f"{name}_nodes"]), left_out.get(name, 0), *figures))
    total = sum(row[1] for row in rows[1:])
    rows.append(("all", total, sum(left_out.values()), metrics["acc1"], metrics[f"acc{BEST}"]))
    lines = [
        "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in row)
        for row, tag in zip(rows, ["th", *["td"] * len(rows)])
    ]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else html.escape(str(value))


def _section(line: Mapping, picture: Callable[[str], Optional[Path]]) -> str:
    rank = max(line["ranks"])
    verdict, style = ("found", "hit") if rank == 1 else (f"rank {rank}", "miss")
    places = "".join(f"<div>{_words(best, true)}</div>" for best, true in zip(line["best"], line["true"]))
    return (
        f"<section>{_figure(line['image_id'], picture(line['image_id']))}<div>"
        f"<p>{_marked(line['caption'], line['spans'])}<br><span class='kind'>{html.escape(line['kind'])}</span>: "
        f"{html.escape(line['words'])} <span class='{style}'>{verdict}</span></p>"
        f"<div class='places'>{places}</div></div></section>"
    )


def _words(best: Sequence[tuple[str, float]], true: str) -> str:
    """The likeliest tokens of one place with bars, the true one set off."""
    return "".join(
        f"<div class='word{' right' if token == true else ''}'><span>{html.escape(token)}</span>"
        f"<span class='bar' style='width:{max(100 * share, 0.5):.1f}%'></span><span>{100 * share:.1f} %</span></div>"
        for token, share in best
    )


def _marked(caption: str, spans: Sequence[Sequence[int]]) -> str:
    parts, end = [], 0
    for start, stop in spans:
        parts += [html.escape(caption[end:start]), f"<mark>{html.escape(caption[start:stop])}</mark>"]
        end = stop
    return "".join([*parts, html.escape(caption[end:])])


def _figure(image_id: str, path: Optional[Path]) -> str:
    name = html.escape(image_id)
    if path is None:
        return f"<figure><p>{name}<br>no picture: data.images is not set</p></figure>"
    try:
        with Image.open(path) as image:
            data = _embedded(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read as a picture"
        return f"<figure><p>{name}<br>{html.escape(str(path))}: {reason}</p></figure>"
    return f"<figure><img src='{data}' alt='{name}'></figure>"


def _embedded(image: Image.Image) -> str:
    """A picture as a data URI: small ones without loss, others scaled down as JPEG."""
    stream = io.BytesIO()
    if max(image.size) <= IMAGE_SIDE:
        image.convert("RGB").save(stream, "PNG")
        kind = "png"
    else:
        image = image.convert("RGB")
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        image.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
