"""Weights of foreign formats. :data:`FORMATS` names the readers that ``tools/convert_weights.py`` offers."""

from __future__ import annotations

from typing import Callable

from ernie_vil.weights.fluid import Converted, convert_fluid, write_model_folder

# Each takes the source path and, where the format keeps it apart, the path of the configuration (or None).
FORMATS: dict[str, Callable[..., Converted]] = {"ernie-vil-fluid": convert_fluid}

__all__ = ["FORMATS", "Converted", "convert_fluid", "write_model_folder"]
