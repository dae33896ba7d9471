"""The spaCy pipeline that reads captions: which one, loading it, and how it must treat pronouns."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

from ernie_vil.errors import UserError

OFFICIAL = "en_core_web_sm"
SHIPPED = Path(__file__).with_name("pipeline")
DOWNLOAD = f"python -m spacy download {OFFICIAL}"
# What sng_parser never reads. Leaving it out saves time and changes no graph.
UNREAD = ("ner", "entity_linker", "entity_ruler", "textcat", "textcat_multilabel")
PRONOUN = "-PRON-"
PRONOUN_TAGS = ("PRP", "PRP$")
PROBE = "She sees a small dog on the grass."


def load_pipeline(name_or_path: Union[str, Path, None] = None) -> Any:
    """A spaCy ``Language`` fit for :func:`ernie_vil.scene_graph.parser.parse`.

    ``sng_parser`` leaves out noun chunks whose head has the lemma ``-PRON-`` ("she"). Only spaCy 2's pipelines give
    that lemma. A pipeline that does not gets a last component that does, so that its graphs have no pronouns either;
    ``sng_parser`` gives the same graphs with the same ``Language``.

    Args:
        name_or_path: an installed pipeline or a folder; by default :func:`default_pipeline`.

    Raises:
        UserError: spaCy or SceneGraphParser is not installed, there is no such pipeline, or it lacks tags, dependencies
            or lemmas.
    """
    spacy = import_spacy()
    import_sng_parser()
    name = str(name_or_path or default_pipeline())
    try:
        nlp = spacy.load(name, exclude=list(UNREAD))
    except Exception as error:  # it runs the pipeline's own code: anything can come out of it
        first = str(error).strip().split("\n")[0][:300]
        raise UserError(
            f"spaCy pipeline {name}: cannot be loaded ({first}). Give the name of an installed pipeline or its folder; "
            f"the official English one comes with: {DOWNLOAD}"
        ) from None
    probe = nlp(PROBE)
    missing = [layer for layer in ("TAG", "POS", "DEP", "LEMMA") if not probe.has_annotation(layer)]
    if missing:
        raise UserError(f"spaCy pipeline {name}: does not annotate {', '.join(missing)}; scene graphs need a parser")
    try:
        list(probe.noun_chunks)
    except NotImplementedError:
        raise UserError(f"spaCy pipeline {name}: spaCy finds no noun chunks in the language {nlp.lang!r}") from None
    if not any(token.lemma_ == PRONOUN for token in probe):
        from ernie_vil.scene_graph import pronouns

        nlp.add_pipe(pronouns.NAME, last=True)
    _look_tags_up(nlp)
    _multiply_with_numpy(nlp)
    return nlp


def default_pipeline() -> str:
    """``en_core_web_sm`` where it is installed, else the folder of the pipeline that comes with this package."""
    return OFFICIAL if import_spacy().util.is_package(OFFICIAL) else str(SHIPPED)


@functools.lru_cache(maxsize=1)
def shared_pipeline() -> Any:
    """The default pipeline, loaded once a process."""
    return load_pipeline()


def describe_pipeline(nlp: Any, name_or_path: Optional[str] = None) -> str:
    """One line: which pipeline this is and, of a default, how to get the other one."""
    text = f"spaCy pipeline {nlp.meta.get('lang')}_{nlp.meta.get('name')} {nlp.meta.get('version')}"
    if name_or_path:
        return text
    if default_pipeline() == OFFICIAL:
        return f"{text} (installed; the one that comes with this package: --spacy-model {SHIPPED})"
    return f"{text} (comes with this package; for the official {OFFICIAL}: {DOWNLOAD})"


def pipeline_identity(nlp: Any) -> dict[str, str]:
    """What decides a caption's graph: names, versions and a hash of the pipeline's files."""
    digest = hashlib.sha256()
    if nlp.path is not None:
        for file in sorted(path for path in Path(nlp.path).rglob("*") if path.is_file()):
            if file.suffix != ".pyc":
                digest.update(f"{file.relative_to(nlp.path).as_posix()}\n{file.stat().st_size}\n".encode())
                digest.update(file.read_bytes())
    return {
        "name": f"{nlp.meta.get('lang')}_{nlp.meta.get('name')}",
        "version": str(nlp.meta.get("version")),
        "files": digest.hexdigest(),
        "spacy": metadata.version("spacy"),
        "SceneGraphParser": metadata.version("SceneGraphParser"),
    }


def import_spacy() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise UserError(_missing(error)) from None
    return spacy


def import_sng_parser() -> Any:
    """SceneGraphParser's class for spaCy."""
    try:
        from sng_parser import Parser, backends  # noqa: F401 (importing the backends registers them)
    except ImportError as error:
        raise UserError(_missing(error)) from None
    # Its decorator leaves nothing under the class's own name.
    return Parser._backend_registry["spacy"]


def _look_tags_up(nlp: Any) -> None:
    """Put a faster component in the place of the attribute ruler where its rules are simple enough."""
    from ernie_vil.scene_graph import tags

    if "attribute_ruler" in nlp.pipe_names:
        patterns = getattr(nlp.get_pipe("attribute_ruler"), "patterns", None)
        if patterns is not None and tags.fits(patterns):
            nlp.replace_pipe("attribute_ruler", tags.NAME, config={"patterns": patterns})


def _multiply_with_numpy(nlp: Any) -> None:
    """NumPy's matrix product is twice as fast on batches as that of the library that spaCy brings along (BLIS)."""
    from thinc.api import NumpyOps

    ops = NumpyOps(use_blis=False)
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)
        for layer in model.walk() if hasattr(model, "walk") else ():
            if type(layer.ops) is NumpyOps:  # on a GPU or a Mac it is another
                layer.ops = ops


def _missing(error: ImportError) -> str:
    return (
        f'parsing captions needs spaCy and SceneGraphParser: pip install "ernie-vil-paddle[scene-graph]" ({error}). '
        "The package called sng_parser on PyPI is another one."
    )
