"""The scene graph of a caption w: objects O(w), attributes K(w), relations E(w) (paper, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from ernie_vil.errors import BadRecord

Spans = tuple[tuple[int, int], ...]
KINDS = ("object", "attribute", "relation")


@dataclass(frozen=True)
class ObjectNode:
    """An object, such as "cat" or "tennis racket"; its determiners and attributes do not belong to it.

    Attributes:
        words: the node's text as it stands in the caption; pieces that are apart are joined by blanks.
        lemma: its dictionary form.
        spans: (start, end) of each piece in characters of the caption, in order and apart; mostly there is one.
    """

    words: str
    lemma: str
    spans: Spans


@dataclass(frozen=True)
class AttributeNode(ObjectNode):
    """An attribute; ``object`` is the index of the object it is tied to."""

    object: int


@dataclass(frozen=True)
class RelationNode(ObjectNode):
    """The words of a relation between the objects of indices ``subject`` and ``object``.

    Where one relation word joins several objects ("a cat and a dog on a mat"), there is a node for each pair.
    """

    subject: int
    object: int


@dataclass(frozen=True)
class SceneGraph:
    """The graph of one caption."""

    caption: str
    objects: tuple[ObjectNode, ...] = ()
    attributes: tuple[AttributeNode, ...] = ()
    relations: tuple[RelationNode, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: ``caption`` and a list of nodes for each kind."""
        return {
            "caption": self.caption,
            "objects": [_values(node) for node in self.objects],
            "attributes": [_values(node) for node in self.attributes],
            "relations": [_values(node) for node in self.relations],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "scene graph") -> SceneGraph:
        """Read what :meth:`to_dict` gave; other keys are passed over.

        Raises:
            BadRecord: naming ``where`` and the fault: a key is missing or of the wrong kind, a span lies outside the
                caption or does not have the node's words, or a node is tied to an object that there is not.
        """
        try:
            caption = values["caption"]
            objects = tuple(_node(ObjectNode, node) for node in values["objects"])
            attributes = tuple(_node(AttributeNode, node) for node in values["attributes"])
            relations = tuple(_node(RelationNode, node) for node in values["relations"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord(f"{where}: not a scene graph ({type(error).__name__}: {error})") from None
        graph = cls(caption, objects, attributes, relations)
        graph.check(where)
        return graph

    def check(self, where: str = "scene graph") -> None:
        """Raise :class:`BadRecord` unless spans and indices are those of this caption and these objects."""
        if not isinstance(self.caption, str):
            raise BadRecord(f"{where}: the caption is not text")
        for node in (*self.objects, *self.attributes, *self.relations):
            ends = [place for span in node.spans for place in span]
            apart = all(ends[i] < ends[i + 1] for i in range(len(ends) - 1))
            if not ends or not apart or ends[0] < 0 or ends[-1] > len(self.caption):
                raise BadRecord(
                    f"{where}: node {node.words!r} has spans {node.spans} in {len(self.caption)} characters"
                )
            words = " ".join(self.caption[start:end] for start, end in node.spans)
            if words != node.words:
                raise BadRecord(f"{where}: node {node.words!r} has spans that read {words!r}; is it another caption's?")
        for node in (*self.attributes, *self.relations):
            ties = (node.object, node.subject) if isinstance(node, RelationNode) else (node.object,)
            if not all(0 <= tie < len(self.objects) for tie in ties):
                raise BadRecord(f"{where}: node {node.words!r} is tied to object {max(ties)} of {len(self.objects)}")


def _values(node: ObjectNode) -> dict[str, Any]:
    return {**vars(node), "spans": [list(span) for span in node.spans]}


def _node(kind: type, values: Mapping[str, Any]) -> Any:
    fields = {name: values[name] for name in kind.__dataclass_fields__}
    fields["spans"] = tuple((int(start), int(end)) for start, end in fields["spans"])
    for name in ("words", "lemma"):
        if not isinstance(fields[name], str):
            raise TypeError(f"{name} is {fields[name]!r}")
    for name in ("object", "subject"):
        if name in fields and (not isinstance(fields[name], int) or isinstance(fields[name], bool)):
            raise TypeError(f"{name} is {fields[name]!r}")
    return kind(**fields)
