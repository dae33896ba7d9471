"""ERNIE-ViL on today's PaddlePaddle: models, training, evaluation, conversion.

Importing this package is cheap: Paddle is imported when a model is asked for.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["create_model", "list_models"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ernie_vil import zoo

        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
