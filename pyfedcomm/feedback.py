"""Error feedback: what coding left out of one round is added to the next.

`ErrorFeedback` keeps the residuals of one bucket for one group: the sender's (its contribution
minus what the others decoded of it) and the owner's (the same for the sum that this member
encodes again). The group reads the old residuals and writes new ones while it encodes; they
replace the old ones only when the round is known to have succeeded, so a failed round loses
nothing. What is exchanged, and when, is decided in ``sync``.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD", arXiv 1901.09847; for both directions
Tang et al., "DoubleSqueeze", arXiv 1905.05957.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyfedcomm import _core
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Algorithm, Group

Floats = npt.NDArray[np.float32]


class ErrorFeedback:
    """The residuals of one bucket of ``n_elems`` elements, exchanged by one group."""

    def __init__(
        self, n_elems: int, group: Group, algorithm: Algorithm = "auto", codec: str = "fp32"
    ) -> None:
        owned = group.owned(n_elems, algorithm, codec)
        self._sender: tuple[Floats, Floats] = _pair(n_elems)
        self._owner: tuple[Floats, Floats] = _pair(owned.stop - owned.start)
        self._sent = False

    def begin(self, *, sent: bool = True) -> _core.Residual:
        """For one exchange: the old residuals to read and the memory for the new ones.

        sent: False where this member's weight is zero. Nothing of it will be used, so what it
        owes now it still owes after the round.
        """
        self._sent = sent
        return _core.Residual(
            sender_in=self._sender[0],
            sender_out=self._sender[1],
            owner_in=self._owner[0],
            owner_out=self._owner[1],
        )

    def commit(self) -> None:
        """The round succeeded: its residuals are the ones to add next time."""
        if self._sent:
            self._sender = (self._sender[1], self._sender[0])
        self._owner = (self._owner[1], self._owner[0])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the residuals: ``sender`` (n_elems,) and ``owner`` (owned part,), fp32."""
        return {
            "sender": torch.from_numpy(self._sender[0].copy()),
            "owner": torch.from_numpy(self._owner[0].copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over `state_dict`'s residuals. Raises `ConfigError` where sizes do not fit."""
        loaded: list[Floats] = []
        for name, own in (("sender", self._sender[0]), ("owner", self._owner[0])):
            tensor = state.get(name)
            if not isinstance(tensor, torch.Tensor) or tensor.numel() != own.size:
                raise ConfigError(
                    f"error feedback: the saved {name} residual does not have {own.size} elements; "
                    "the checkpoint is of another model or of another number of clouds"
                )
            loaded.append(tensor.detach().cpu().numpy().astype(np.float32).reshape(-1))
        for own, new in zip((self._sender[0], self._owner[0]), loaded, strict=True):
            own[:] = new


def _pair(n_elems: int) -> tuple[Floats, Floats]:
    return np.zeros(n_elems, np.float32), np.zeros(n_elems, np.float32)
