"""Adam with decoupled weight decay, layer-wise rates and the original's place of epsilon."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from typing import Any, Mapping, Sequence

import numpy as np
import paddle
from paddle import Tensor

from ernie_vil.errors import UserError

ACCUMULATORS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")


class Adam(paddle.optimizer.AdamW):
    """``paddle.optimizer.AdamW`` over named parameters, each with its own rate factor and decay.

    * ``layer_rates[name]`` scales the Adam step but not the weight decay; ``multipliers`` (name pattern -> factor)
      scales both, as in the original. The first pattern that matches a name counts.
    * Parameters named in ``decay_excluded`` are not decayed.
    * ``epsilon_placement="original"``: ``p -= rate * sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + epsilon)``, as Fluid 1.8;
      ``"modern"``: epsilon is added to the bias-corrected ``sqrt(v)``. Paddle's kernel computes the modern form, which
      becomes the original one with ``epsilon / sqrt(1 - b2^t)`` in the place of ``epsilon``.
    """

    def __init__(
        self,
        named_parameters: Sequence[tuple[str, Tensor]],
        *,
        weight_decay: float = 0.01,
        decay_excluded: frozenset[str] | set[str] = frozenset(),
        layer_rates: Mapping[str, float] | None = None,
        multipliers: Mapping[str, float] | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        epsilon_placement: str = "original",
    ) -> None:
        self.updates = 0
        self.base_epsilon, self.second_beta = epsilon, beta2
        self.epsilon_placement = epsilon_placement
        self.names = {parameter.name: name for name, parameter in named_parameters}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in named_parameters}
        self._check_patterns(multipliers or {})
        groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for name, parameter in named_parameters:
            layer_rate = (layer_rates or {}).get(name, 1.0)
            factor = next(
                (value for pattern, value in (multipliers or {}).items() if fnmatch.fnmatch(name, pattern)), 1.0
            )
            decay = 0.0 if name in decay_excluded else weight_decay
            # Paddle multiplies the decay by the group's rate too; dividing keeps the layer's rate out of it.
            groups[layer_rate * factor, decay / layer_rate if layer_rate else 0.0].append(parameter)
        super().__init__(
            learning_rate=0.0,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=0.0,
            parameters=[
                {"params": members, "learning_rate": rate, "weight_decay": decay}
                for (rate, decay), members in groups.items()
            ],
        )

    def _check_patterns(self, multipliers: Mapping[str, float]) -> None:
        for pattern in multipliers:
            if not any(fnmatch.fnmatch(name, pattern) for name in self.names.values()):
                raise UserError(f"optimizer.multipliers: {pattern!r} matches no parameter of the model")

    @paddle.no_grad()
    def step(self) -> None:
        self.updates += 1
        epsilon = self.base_epsilon
        if self.epsilon_placement == "original":
            epsilon /= (1.0 - self.second_beta**self.updates) ** 0.5
        for group in self._param_groups:
            group["epsilon"] = epsilon
        super().step()

    def named_state(self) -> dict[str, Any]:
        """The moments by the model's parameter names (Paddle's own names depend on what was built before)."""
        state = {}
        for key, value in self.state_dict().items():
            for accumulator in ACCUMULATORS:
                suffix = f"_{accumulator}_0"
                if key.endswith(suffix) and key[: -len(suffix)] in self.names:
                    state[f"{self.names[key[: -len(suffix)]]}/{accumulator}"] = value
        return state

    def load_named_state(self, state: Mapping[str, np.ndarray], updates: int, where: str) -> None:
        """Put back what :meth:`named_state` gave. Raises :class:`UserError` listing keys that do not fit the model."""
        wanted = {
            f"{name}/{accumulator}": paddle_name
            for paddle_name, name in self.names.items()
            for accumulator in ACCUMULATORS
        }
        missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
        if updates and (missing or extra):
            raise UserError(
                f"{where}: the optimizer state does not belong to this model: {len(missing)} keys missing "
                f"{missing[:3]}, {len(extra)} unexpected {extra[:3]}"
            )
        wrong = [
            key
            for key, value in state.items()
            if key.rsplit("/", 1)[1] in ("moment1", "moment2") and value.shape != self.shapes[key.rsplit("/", 1)[0]]
        ]
        if updates and wrong:
            raise UserError(f"{where}: the optimizer state has other shapes than this model: {', '.join(wrong[:3])}")
        self.updates = updates
        self.set_state_dict(
            {f"{wanted[key]}_{key.rsplit('/', 1)[1]}_0": paddle.to_tensor(value) for key, value in state.items()}
        )


@paddle.no_grad()
def clip_by_global_norm(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients by ``1 / max(norm / limit, 1)`` in place and return the norm before; 0 only measures."""
    norm = paddle.sqrt(paddle.add_n([parameter.grad.astype("float32").square().sum() for parameter in parameters]))
    if limit > 0:
        factor = limit / paddle.maximum(norm, paddle.full([], limit))
        for parameter in parameters:
            parameter.grad.set_value(parameter.grad * factor.astype(parameter.grad.dtype))
    return norm


def fill_absent_gradients(parameters: Sequence[Tensor]) -> None:
    """A parameter that took no part in a step gets a zero gradient, not none.

    So its moments decay, it keeps moving by momentum and it is weight-decayed, as the head of the other task is in the
    original's joint training.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
