"""Training of the small English pipeline that comes with the package (``pipeline/``) on parsed captions.

It learns a larger pipeline's parses: one small convolutional encoder (hash embeddings of word, prefix, suffix and
shape) feeds a tagger and a transition-based dependency parser; parts of speech follow from tag and word, lemmas from
rules and WordNet's exceptions. All are spaCy's own components, so ``spacy.load(FOLDER)`` opens the result.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from typing import Any, Callable, Iterable, Optional, Sequence

from ernie_vil.scene_graph.lemmas import Exceptions, Rules, lemma_tables
from ernie_vil.scene_graph.parsed import ParsedCaption, part_of, to_doc

WIDTH = 64
DEPTH = 4
BATCH_SIZE = 64
EPOCHS = 5
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
DROPOUT = 0.1
CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec","tagger","attribute_ruler","parser","lemmatizer"]
batch_size = 256

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"

[components.tok2vec.model.embed]
@architectures = "spacy.MultiHashEmbed.v2"
width = {width}
attrs = ["NORM","PREFIX","SUFFIX","SHAPE"]
rows = [4000,500,1500,500]
include_static_vectors = false

[components.tok2vec.model.encode]
@architectures = "spacy.MaxoutWindowEncoder.v2"
width = {width}
depth = {depth}
window_size = 1
maxout_pieces = 2

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = {width}
upstream = "tok2vec"

[components.attribute_ruler]
factory = "attribute_ruler"

[components.parser]
factory = "parser"
min_action_freq = 5

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 64
maxout_pieces = 2
use_upper = true

[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = {width}
upstream = "tok2vec"

[components.lemmatizer]
factory = "lemmatizer"
mode = "rule"

[training]

[training.optimizer]
@optimizers = "Adam.v1"
use_averages = true
"""
META = {
    "lang": "en",
    "name": "scene_graph_captions",
    "description": "Tags, dependencies and lemmas of image captions, learned from en_core_web_sm's parses.",
    "license": "CC-BY-4.0",
    "spacy_version": ">=3.7.0,<3.9.0",
}
# By these features the rule lemmatizer knows a form that is in no need of a rule ("bus", "glass").
BASE_FORMS = {
    "NN": "Number=Sing",
    "JJ": "Degree=Pos",
    "VB": "VerbForm=Inf",
    "VBP": "Tense=Pres|VerbForm=Fin",
}
SEEN_OFTEN = 5
"""So often must a word be seen with a part of speech before an exception is made for it."""


def training_part(captions: Iterable[ParsedCaption], left_out: Iterable[tuple[str, str]] = ()) -> list[ParsedCaption]:
    """The captions to train on: images of the training part, less those that are evaluated on elsewhere.

    Args:
        left_out: (image id, caption) of such an evaluation; neither its images nor its texts are trained on.
    """
    images, texts = set(), set()
    for image, text in left_out:
        images.add(image)
        texts.add(_letters(text))
    return [
        caption
        for caption in captions
        if part_of(caption.image_id) == "train"
        and caption.image_id not in images
        and _letters(caption.text) not in texts
    ]


def _letters(text: str) -> str:
    # However it is cut into tokens and cased.
    return "".join(character for character in text.lower() if character.isalnum())


def train(
    captions: Sequence[ParsedCaption],
    epochs: int = EPOCHS,
    seed: int = 0,
    version: str = "1.0.0",
    report: Optional[Callable[[int, int, dict[str, float]], None]] = None,
    width: int = WIDTH,
    depth: int = DEPTH,
) -> Any:
    """Train a pipeline; on one machine the same captions and seed give the same weights.

    Args:
        captions: of the training part. Every epoch sees each once, in one of the forms of :func:`vary`.
        report: called after every hundredth step with step, number of steps and the losses since the last call.

    Returns:
        a spaCy ``Language`` whose weights are the average over the training.

    Raises:
        UserError: spaCy's tables are not installed.
    """
    from spacy.training import Example
    from spacy.util import fix_random_seed, load_model_from_config, minibatch
    from thinc.api import Config

    tables = lemma_tables(captions)
    fix_random_seed(seed)
    generator = random.Random(seed)
    config = Config().from_str(CONFIG.format(width=width, depth=depth))
    nlp = load_model_from_config(config, auto_fill=True)

    def example(caption: ParsedCaption) -> Any:
        reference = to_doc(nlp.vocab, caption)
        return Example(type(reference)(nlp.vocab, words=list(caption.tokens)), reference)

    optimizer = nlp.initialize(lambda: [example(caption) for caption in captions])
    steps = epochs * -(-len(captions) // BATCH_SIZE)
    step, losses = 0, {}
    order = list(captions)
    for _ in range(epochs):
        generator.shuffle(order)
        for batch in minibatch(order, BATCH_SIZE):
            optimizer.learn_rate = LEARNING_RATE * min((step + 1) / WARMUP_STEPS, 1 - step / steps)
            examples = [example(vary(caption, generator)) for caption in batch]
            nlp.update(examples, sgd=optimizer, drop=DROPOUT, losses=losses)
            step += 1
            if report is not None and step % 100 == 0:
                report(step, steps, losses)
                losses = {}
    _keep_averages(nlp, optimizer)
    add_parts_of_speech(nlp, captions)
    add_lemmas(nlp, *tables)
    nlp.meta.update(META, version=version)
    return nlp


def _keep_averages(nlp: Any, optimizer: Any) -> None:
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)
        for node in model.walk() if model is not None else ():
            for name in node.param_names:
                if node.has_param(name) and (node.id, name) in optimizer.averages:
                    node.set_param(name, optimizer.averages[(node.id, name)])


def vary(caption: ParsedCaption, generator: random.Random) -> ParsedCaption:
    """The same caption in another usual form: without its full stop or with one, in lower case or with a capital."""
    if caption.tokens[-1] == "." and len(caption.tokens) - 1 not in caption.heads[:-1]:
        if caption.heads[-1] != len(caption.tokens) - 1 and generator.random() < 0.4:
            caption = _without_last(caption)
    elif caption.tokens[-1] not in (".", "!", "?") and generator.random() < 0.3:
        caption = _with_full_stop(caption)
    draw = generator.random()
    if draw < 0.3:
        return dataclasses.replace(caption, tokens=tuple(token.lower() for token in caption.tokens))
    if draw < 0.6:
        first = caption.tokens[0]
        return dataclasses.replace(caption, tokens=(first[:1].upper() + first[1:], *caption.tokens[1:]))
    return caption


def _without_last(caption: ParsedCaption) -> ParsedCaption:
    layers = ("tokens", "lemmas", "pos", "tags", "deps", "heads")
    return dataclasses.replace(caption, **{name: getattr(caption, name)[:-1] for name in layers})


def _with_full_stop(caption: ParsedCaption) -> ParsedCaption:
    root = max(place for place, head in enumerate(caption.heads) if place == head)
    return dataclasses.replace(
        caption,
        tokens=(*caption.tokens, "."),
        lemmas=(*caption.lemmas, "."),
        pos=(*caption.pos, "PUNCT"),
        tags=(*caption.tags, "."),
        deps=(*caption.deps, "punct"),
        heads=(*caption.heads, root),
    )


def add_parts_of_speech(nlp: Any, captions: Iterable[ParsedCaption]) -> None:
    """Rules from tag to part of speech: the one that most words of a tag have, and exceptions by word ("is": AUX)."""
    words: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for caption in captions:
        for tag, part, token in zip(caption.tags, caption.pos, caption.tokens):
            words[tag, token.lower()][part] += 1
    votes: dict[str, Counter] = defaultdict(Counter)
    for (tag, _), parts in words.items():
        votes[tag][parts.most_common(1)[0][0]] += 1
    usual = {tag: parts.most_common(1)[0][0] for tag, parts in votes.items()}
    exceptions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (tag, word), parts in sorted(words.items()):
        part, times = parts.most_common(1)[0]
        if part != usual[tag] and times >= SEEN_OFTEN:
            exceptions[tag, part].append(word)
    ruler = nlp.get_pipe("attribute_ruler")
    for tag, part in sorted(usual.items()):
        morph = {"MORPH": BASE_FORMS[tag]} if tag in BASE_FORMS else {}
        ruler.add([[{"TAG": tag}]], {"POS": part, **morph})
    for (tag, part), forms in sorted(exceptions.items()):
        ruler.add([[{"TAG": tag, "LOWER": {"IN": forms}}]], {"POS": part})


def add_lemmas(nlp: Any, rules: Rules, exceptions: Exceptions) -> None:
    """Give the lemmatizer the tables of :func:`ernie_vil.scene_graph.lemmas.lemma_tables`."""
    from spacy.lookups import Lookups

    lookups = Lookups()
    lookups.add_table("lemma_rules", rules)
    lookups.add_table("lemma_exc", exceptions)
    nlp.get_pipe("lemmatizer").initialize(nlp=nlp, lookups=lookups)
