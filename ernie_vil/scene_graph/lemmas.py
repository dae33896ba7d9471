"""Lemma tables of the small English pipeline, for spaCy's rule lemmatizer.

That lemmatizer tries every rule on a word ("-es" to "-e", "-es" to "") and takes a form that stands in WordNet's index.
Where several do ("rides": ride, rid), the choice depends on spaCy's version. Here it is made beforehand: all words that
the first matching rule would get wrong are exceptions, and no index is needed.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from typing import Any, Iterable, Mapping

from ernie_vil.errors import UserError
from ernie_vil.scene_graph.parsed import ParsedCaption

PRONOUN = "-PRON-"
"""Lemma of personal pronouns, as in spaCy 2: ``sng_parser`` leaves out noun chunks whose head has it."""
PERSONAL_PRONOUNS = (
    *("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"),
    *("you", "your", "yours", "yourself", "yourselves"),
    *("he", "him", "his", "himself", "she", "her", "hers", "herself", "it", "its", "itself"),
    *("they", "them", "their", "theirs", "themselves"),
)
SEEN_OFTEN = 5
"""So often must a word be seen before the parses overrule WordNet."""
# Parts of speech with rules in spaCy's tables (these hash their keys), and those whose words are their own lemmas.
RULED = ("noun", "verb", "adj", "adv", "punct")
UNRULED = ("propn", "x", "space")
# Before spaCy's own rules, so that fewer words need an exception.
FIRST_RULES = {
    "noun": [["ies", "y"], ["ches", "ch"], ["shes", "sh"], ["xes", "x"], ["sses", "ss"]],
    "verb": [["ies", "y"], ["ches", "ch"], ["shes", "sh"], ["xes", "x"], ["sses", "ss"]],
}
SIBILANTS = ("s", "x", "z", "ch", "sh", "o")
"""Verbs that take "-es"; "walkes" is no word."""
AUXILIARIES = {
    **dict.fromkeys(("'m", "'re", "'s", "am", "are", "is", "was", "were", "been", "being"), "be"),
    **dict.fromkeys(("'ve", "has", "had", "having"), "have"),
    **dict.fromkeys(("does", "did", "doing", "done"), "do"),
}
LONGEST_COMPARED = 8
"""Letters of the longest adjective that has a form in "-er"; longer ones have "more"."""

Rules = dict[str, list[list[str]]]
Exceptions = dict[str, dict[str, list[str]]]


def lemma_tables(captions: Iterable[ParsedCaption]) -> tuple[Rules, Exceptions]:
    """Rules and exceptions by part of speech, from WordNet and, for words that they hold often, from parses.

    Raises:
        UserError: spaCy's tables are not installed.
    """
    inflected, spacy_rules = wordnet_lemmas()
    usual = usual_lemmas(captions)
    # Without a rule the lemmatizer would keep the capital of "A".
    closed = {part for part, _ in usual if part not in (*RULED, *UNRULED)} | {"det", "pron"}
    rules: Rules = {part: [["", ""]] for part in closed}
    rules.update({part: [*FIRST_RULES.get(part, []), *spacy_rules[part]] for part in RULED})
    exceptions: Exceptions = {}
    for part in sorted(rules):
        lemmas = {**inflected.get(part, {}), **(AUXILIARIES if part == "aux" else {})}
        lemmas.update({word: lemma for (other, word), lemma in usual.items() if other == part})
        if part in ("det", "pron"):  # "her" is both
            lemmas.update(dict.fromkeys(PERSONAL_PRONOUNS, PRONOUN))
        exceptions[part] = {
            word: [lemma] for word, lemma in sorted(lemmas.items()) if lemma != by_first_rule(word, rules[part])
        }
    return rules, exceptions


@functools.lru_cache(maxsize=1)
def wordnet_lemmas() -> tuple[dict[str, dict[str, str]], Rules]:
    """Inflected forms and their lemmas by part of speech, and spaCy's rules, from the tables of spacy-lookups-data."""
    from spacy.lookups import load_lookups

    try:
        tables = load_lookups("en", ["lemma_rules", "lemma_exc", "lemma_index", "lemma_lookup"])
    except ValueError:
        raise UserError("training needs WordNet's lemma tables: pip install spacy-lookups-data") from None
    rules = {part: tables.get_table("lemma_rules")[part] for part in RULED}
    lookup = tables.get_table("lemma_lookup")
    lemmas = {}
    for part in RULED:
        index = [word for word in tables.get_table("lemma_index").get(part, []) if _is_inflected(word, part)]
        lemmas[part] = dict(_inflect(rules[part], tables.get_table("lemma_exc").get(part, {}), index, lookup))
    return lemmas, rules


def usual_lemmas(captions: Iterable[ParsedCaption]) -> dict[tuple[str, str], str]:
    """(part of speech, word) to the lemma that most of its occurrences have, of words that occur often."""
    seen: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for caption in captions:
        for part, token, lemma in zip(caption.pos, caption.tokens, caption.lemmas):
            seen[part.lower(), token.lower()][lemma if lemma == PRONOUN else lemma.lower()] += 1
    usual = {}
    for key, lemmas in seen.items():
        lemma, times = lemmas.most_common(1)[0]
        if 2 * times > sum(lemmas.values()) >= SEEN_OFTEN:
            usual[key] = lemma
    return usual


def by_first_rule(word: str, rules: Iterable[Any]) -> str:
    """What spaCy's lemmatizer makes of a lower-case word without an index and exceptions."""
    for old, new in rules:
        if word.endswith(old) and len(word) + len(new) > len(old):
            return word[: len(word) - len(old)] + new
    return word


def _is_inflected(word: str, part: str) -> bool:
    return word.isalpha() and (part != "adj" or len(word) <= LONGEST_COMPARED)


def _inflect(
    rules: Iterable[Any], exceptions: Mapping[str, Any], index: Iterable[str], lookup: Mapping[str, str]
) -> Iterable[tuple[str, str]]:
    """Inflected forms and their lemmas: by the rules from the index's words, and WordNet's exceptions."""
    candidates: dict[str, list[str]] = defaultdict(list)
    words = sorted(index)
    for old, new in rules:
        for word in words:
            if old and word.endswith(new) and ((old, new) != ("es", "") or word.endswith(SIBILANTS)):
                candidates[word[: len(word) - len(new)] + old].append(word)
    for form, lemmas in candidates.items():
        yield form, lookup[form] if lookup.get(form) in lemmas else lemmas[0]
    for form, lemmas in exceptions.items():
        # Of several, the last has priority; a regular form keeps it ("axes": ax by the rules, axis by exception).
        irregular = [lemma for lemma in lemmas if lemma not in candidates.get(form, [])]
        if irregular:
            yield form, lookup[form] if lookup.get(form) in lemmas else irregular[-1]
