"""Scene graphs of captions: parsing, files, masking by node. Importing this package needs neither spaCy nor Paddle."""

from __future__ import annotations

from ernie_vil.scene_graph.graph import AttributeNode, ObjectNode, RelationNode, SceneGraph

__all__ = ["AttributeNode", "ObjectNode", "RelationNode", "SceneGraph"]
