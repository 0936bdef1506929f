"""fp32 masters of parameters in bf16 or fp16: what the optimizer steps, and what clouds exchange.

A step smaller than half of a parameter's last bit is lost when the parameter itself is stepped; a
local training of hundreds of small steps then stands still. Masters keep it:

    masters = sync.MasterWeights(model.named_parameters())
    optimizer = torch.optim.AdamW(masters.parameters())
    rule = sync.make(config, masters.named_parameters(), hierarchy)

    loss.backward(); masters.take_gradients()     # after every backward pass of a step
    rule.after_backward(n_tokens)
    optimizer.step(); optimizer.zero_grad()
    rule.after_step(n_tokens); masters.write_back()

Not needed where parameters are fp32 and bf16 is for computing only: under ``torch.autocast``, as in
`pyfedcomm.train`, or with FSDP2's ``MixedPrecisionPolicy``. Memory: 4 bytes for each element in
bf16 or fp16.

Source: Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pyfedcomm.buckets import NamedParameters, trainable
from pyfedcomm.errors import InvalidArgument


class MasterWeights:
    """Stands for a model's parameters: fp32 and frozen ones as they are, the others in fp32."""

    def __init__(self, parameters: NamedParameters) -> None:
        """parameters: ``model.named_parameters()``, whole or sharded, on their final device.

        Raises InvalidArgument where two parameters of lower precision share memory without being
        one, and for what `buckets.trainable` refuses.
        """
        named = list(parameters)
        low = [(name, p) for name, p in trainable(named) if p.dtype != torch.float32]
        alone = {id(p) for _, p in trainable(named, once_per="storage")}
        for name, p in low:
            if id(p) not in alone:
                raise InvalidArgument(
                    f"parameter {name!r} shares its memory with another one, and would have a "
                    "master of its own; make them one parameter (model.tie_weights())"
                )
        self._pairs = [(p, torch.nn.Parameter(p.detach().float())) for _, p in low]
        masters = {id(p): master for p, master in self._pairs}
        self._named = [(name, masters.get(id(p), p)) for name, p in named]

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Under the model's names, in its order."""
        yield from self._named

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Each once."""
        yield from {id(p): p for _, p in self._named}.values()

    def take_gradients(self) -> None:
        """Moves the parameters' gradients to their masters: added, in fp32, to what is there."""
        for parameter, master in self._pairs:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def write_back(self) -> None:
        """The parameters become their masters, rounded."""
        with torch.no_grad():
            for parameter, master in self._pairs:
                parameter.copy_(master)
