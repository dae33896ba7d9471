"""Copying arrays into a layer with an account of every key: what was loaded, what was not, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import paddle

from ernie_vil.errors import UserError

_SHOWN = 8

Misshaped = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass
class KeyAccount:
    """Where every key of a model and of a weight file went.

    Attributes:
        loaded: names that the model took from the file.
        fresh: names that the file lacks and that were allowed to keep their initial values.
        missing: names that the file lacks and should have.
        unexpected: names in the file that the model does not know.
        misshaped: (name, shape in the file, shape in the model).
        ignored: name in the file -> why it was left out.
    """

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[Misshaped] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line per kind of key: its count and the first names. Kinds that did not occur are left out."""
        if self.fresh and not self.loaded:
            return f"none loaded; all {len(self.fresh)} keys are at their initial values"
        lines = [f"loaded: {len(self.loaded)} keys"]
        kinds = {"kept at initial values": self.fresh, **self._faults()}
        kinds["ignored"] = [f"{name} ({reason})" for name, reason in self.ignored.items()]
        for kind, names in kinds.items():
            if names:
                more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{kind}: {len(names)} keys: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)

    def raise_if_bad(self, where: str, strict: bool = True) -> None:
        """Raise :class:`UserError` that lists **all** missing, unexpected and misshaped keys, if ``strict``."""
        faults = {kind: names for kind, names in self._faults().items() if names}
        if not strict or not faults:
            return
        lines = [f"{where}: the weights do not fit the model."]
        for kind, names in faults.items():
            lines.append(f"{kind} ({len(names)}):")
            lines.extend(f"  {name}" for name in names)
        lines.append("Check that the weights and the model's configuration belong together.")
        raise UserError("\n".join(lines))

    def _faults(self) -> dict[str, list[str]]:
        misshaped = [
            f"{name}: {list(have)} in the file, {list(want)} in the model" for name, have, want in self.misshaped
        ]
        return {"missing": self.missing, "unexpected": self.unexpected, "misshaped": misshaped}


def account_for(
    wanted: Mapping[str, Sequence[int]],
    state: Mapping[str, np.ndarray],
    *,
    may_be_absent: tuple[str, ...] = (),
    may_be_extra: tuple[str, ...] = (),
) -> KeyAccount:
    """Hold the arrays of ``state`` against ``wanted`` (name -> shape) without copying anything.

    Keys that start with one of ``may_be_absent`` may be left out of the state, those that start with one of
    ``may_be_extra`` may be in it without being wanted.
    """
    account = KeyAccount()
    for name, shape in wanted.items():
        if name not in state:
            (account.fresh if name.startswith(may_be_absent) else account.missing).append(name)
        elif tuple(state[name].shape) != tuple(shape):
            account.misshaped.append((name, tuple(state[name].shape), tuple(shape)))
        else:
            account.loaded.append(name)
    for name in state:
        if name in wanted:
            continue
        if name.startswith(may_be_extra):
            account.ignored[name] = "not part of this model"
        else:
            account.unexpected.append(name)
    return account


def apply_state(
    layer: paddle.nn.Layer,
    state: Mapping[str, np.ndarray],
    *,
    may_be_absent: tuple[str, ...] = (),
    may_be_extra: tuple[str, ...] = (),
    where: str,
    strict: bool = True,
) -> KeyAccount:
    """Copy arrays into the parameters and buffers of ``layer`` under the names of its state dict.

    Values are cast to the parameter's type. ``uint16`` arrays for floating parameters are bfloat16 bits, the way Paddle
    saves them. If ``strict``, nothing is copied unless everything fits; otherwise whatever fits is copied.

    Args:
        may_be_absent, may_be_extra: prefixes; see :func:`account_for`.
        where: what the error names, usually the path of the file.

    Raises:
        UserError: missing, unexpected or misshaped keys, all listed, if ``strict``.
    """
    targets = layer.state_dict()
    wanted = {name: tensor.shape for name, tensor in targets.items()}
    account = account_for(wanted, state, may_be_absent=may_be_absent, may_be_extra=may_be_extra)
    account.raise_if_bad(where, strict)
    with paddle.no_grad():
        for name in account.loaded:
            copy_array(targets[name], state[name])
    return account


def copy_array(target: paddle.Tensor, array: np.ndarray) -> None:
    """Copy ``array`` into ``target`` (same shape), cast to the target's type; ``uint16`` may be bfloat16 bits."""
    if target.is_floating_point():
        array = decode_bfloat16(array)
    target.set_value(paddle.to_tensor(array, place=paddle.CPUPlace()).astype(target.dtype))


def decode_bfloat16(array: np.ndarray) -> np.ndarray:
    """The float32 values of a ``uint16`` array of bfloat16 bits; any other array as it is."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
