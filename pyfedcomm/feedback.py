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

import torch

from pyfedcomm import _core
from pyfedcomm._tensor import residual_view
from pyfedcomm.errors import ConfigError
from pyfedcomm.group import Algorithm, Group


class ErrorFeedback:
    """The residuals of one bucket of ``n_elems`` elements, exchanged by one group.

    device: the bucket's. A bucket on another device than its residuals goes through host memory.
    """

    def __init__(
        self,
        n_elems: int,
        group: Group,
        algorithm: Algorithm = "auto",
        codec: str = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        # What "auto" means may change when links are measured; who owns what must not.
        chosen = group.explain(n_elems, codec).algorithm if algorithm == "auto" else algorithm
        self._algorithm: Algorithm = chosen
        owned = group.owned(n_elems, self._algorithm, codec)
        if not _core.cuda.available():
            device = "cpu"
        self._sender = _pair(n_elems, device)
        self._owner = _pair(owned.stop - owned.start, device)
        self._sent = False
        self.owned = owned
        """The part of the bucket whose sum this member codes."""

    def begin(self, *, sent: bool = True) -> _core.Residual:
        """For one exchange: the old residuals to read and the memory for the new ones.

        sent: False where this member's weight is zero. Nothing of it will be used, so what it
        owes now it still owes after the round.
        """
        self._sent = sent
        return _core.Residual(
            sender_in=residual_view(self._sender[0]),
            sender_out=residual_view(self._sender[1]),
            owner_in=residual_view(self._owner[0]),
            owner_out=residual_view(self._owner[1]),
            algorithm=self._algorithm,
        )

    def commit(self) -> None:
        """The round succeeded: its residuals are the ones to add next time."""
        if self._sent:
            self._sender = (self._sender[1], self._sender[0])
        self._owner = (self._owner[1], self._owner[0])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the residuals: ``sender`` (n_elems,) and ``owner`` (owned part,), fp32."""
        return {"sender": self._sender[0].clone(), "owner": self._owner[0].clone()}

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `ConfigError` where the saved residuals do not fit."""
        for name, own in (("sender", self._sender[0]), ("owner", self._owner[0])):
            tensor = state.get(name)
            if not isinstance(tensor, torch.Tensor) or tensor.numel() != own.numel():
                raise ConfigError(
                    f"error feedback: the saved {name} residual does not have {own.numel()} "
                    "elements; the checkpoint is of another model or of another number of clouds"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over `state_dict`'s residuals. Raises `ConfigError` where sizes do not fit."""
        self.check_state_dict(state)
        for name, own in (("sender", self._sender[0]), ("owner", self._owner[0])):
            own.copy_(state[name].detach().reshape(-1))


def _pair(n_elems: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n_elems, device=device), torch.zeros(n_elems, device=device)
