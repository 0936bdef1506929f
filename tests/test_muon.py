"""Muon: against a truth in float64, of whole and sharded matrices, and beside AdamW in a run."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from torch import nn

from pyfedcomm.errors import InvalidArgument
from pyfedcomm.train import muon, optim
from pyfedcomm.train.config import TrainSteps, from_table
from pyfedcomm.train.muon import Muon

Matrix = npt.NDArray[np.float64]


def truth(momentum: Matrix) -> Matrix:
    """Five iterations on singular values, where they are odd polynomials of each."""
    u, s, vt = np.linalg.svd(momentum, full_matrices=False)
    s = s / (np.linalg.norm(momentum) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    result: Matrix = (u * s) @ vt
    return result


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (24, 7), (7, 24), (1, 9), (9, 1), (1, 1), (64, 200)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e12])
def test_singular_values_go_to_one(shape: tuple[int, int], scale: float) -> None:
    given = drawn(3, *shape) * scale
    before = given.clone()
    made = muon.orthogonalised(given)
    assert torch.equal(given, before)
    for each, matrix in zip(made, given, strict=True):
        np.testing.assert_allclose(each, truth(matrix.double().numpy()), atol=2e-4)
        singular = torch.linalg.svdvals(each)
        assert singular.min() > 0.5
        assert singular.max() < 1.3


def test_what_has_no_direction_stays_zero() -> None:
    assert torch.equal(muon.orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_sixteen_bits_suffice() -> None:
    given = drawn(2, 40, 96)
    exact, coarse = muon.orthogonalised(given), muon.orthogonalised(given.bfloat16())
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).norm() / exact.norm() < 0.05


def test_steps_are_those_of_the_paper() -> None:
    shapes = [(6, 10), (10, 6), (6, 10), (5, 5)]
    params = [nn.Parameter(drawn(*shape, seed=i)) for i, shape in enumerate(shapes)]
    expected = [p.detach().double().numpy() for p in params]
    buffers = [np.zeros_like(p) for p in expected]
    optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.3)
    for step in range(4):
        lr = optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        for i, p in enumerate(params):
            p.grad = drawn(*p.shape, seed=10 * step + i)
            gradient = p.grad.double().numpy()
            buffers[i] = 0.9 * buffers[i] + 0.1 * gradient
            direction = truth(0.1 * gradient + 0.9 * buffers[i])
            length = lr * 0.2 * math.sqrt(max(p.shape))
            expected[i] = (1 - lr * 0.3) * expected[i] - length * direction
        optimizer.step()
    for p, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach(), value, atol=2e-4)


def test_torchs_own_takes_the_same_steps() -> None:
    """In 16 bits, one matrix at a time; ours on the CPU in 32, those of a shape together."""
    ours = [nn.Parameter(drawn(12, 30, seed=i)) for i in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    make: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    steps = [Muon(ours, **make), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **make)]
    start = [p.detach().clone() for p in ours]
    for seed in range(5):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            for p in pair:
                p.grad = drawn(12, 30, seed=10 * seed + i)
        for optimizer in steps:
            optimizer.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (a - first).norm()


@pytest.mark.parametrize("n_at_once", [1, 2 * 30 * 12, 2**26])
def test_how_many_are_multiplied_together_does_not_matter(
    n_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [nn.Parameter(drawn(30, 12, seed=i)) for i in range(5)]
    for i, p in enumerate(params):
        p.grad = drawn(30, 12, seed=9 + i)
    expected = [
        p.detach()
        - 0.2
        * math.sqrt(30)
        * torch.from_numpy(truth((0.05 + 0.95 * 0.05) * drawn(30, 12, seed=9 + i).double().numpy()))
        for i, p in enumerate(params)
    ]
    monkeypatch.setattr(muon, "_AT_ONCE", n_at_once)
    Muon(params, lr=1.0, weight_decay=0.0).step()
    for p, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach(), value, atol=1e-3)


def test_without_a_gradient_nothing_moves_and_a_closure_is_called() -> None:
    moved, still = nn.Parameter(drawn(4, 4)), nn.Parameter(drawn(4, 4))
    optimizer = Muon([moved, still])
    before = still.detach().clone()

    def closure() -> float:
        loss = (moved**2).sum()
        torch.autograd.backward(loss)
        return loss.item()

    assert optimizer.step(closure) == pytest.approx((before**2).sum().item())
    assert torch.equal(still, before)
    assert not torch.equal(moved, before)
    assert list(optimizer.state) == [moved]


def test_empty_matrices_and_transposed_ones() -> None:
    empty = nn.Parameter(torch.empty(0, 5))
    empty.grad = torch.empty(0, 5)
    tall = nn.Parameter(drawn(4, 9).mT)
    tall.grad = drawn(9, 4, seed=1)
    straight = nn.Parameter(tall.detach().clone(memory_format=torch.contiguous_format))
    straight.grad = tall.grad.clone()
    Muon([empty, tall]).step()
    Muon([straight]).step()
    np.testing.assert_allclose(tall.detach(), straight.detach(), atol=1e-6)


def test_what_muon_cannot_step_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"shape \(3,\).*AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(InvalidArgument, match=r"momentum is 1.0"):
        Muon([nn.Parameter(torch.zeros(3, 3))], momentum=1.0)
    optimizer = Muon([nn.Parameter(torch.zeros(3, 3))])
    with pytest.raises(InvalidArgument, match=r"shape \(2, 3, 4\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 3, 4))]})
    assert len(optimizer.param_groups) == 1


# --- beside AdamW -------------------------------------------------------------------------------


def language_model(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    shared = {"gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 8}}
    shared["llama"] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=40, **shared[kind], **options)
    of: Any = transformers.AutoModelForCausalLM
    model: nn.Module = of.from_config(config)
    return model


@pytest.mark.parametrize(("kind", "tied"), [("gpt2", True), ("llama", True), ("llama", False)])
def test_muon_has_what_lies_between_embedding_and_head(kind: str, tied: bool) -> None:
    model = language_model(kind, tie_word_embeddings=tied)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optim.make(model, TrainSteps(), "muon").param_groups
    stepped = [sorted(names[id(p)] for p in group["params"]) for group in groups]
    assert sorted(name for group in stepped for name in group) == sorted(names.values())
    hidden, ends, vectors = stepped
    assert all(".layers." in name or ".h." in name for name in hidden)
    assert len(hidden) == 2 * (7 if kind == "llama" else 4)
    assert (
        set(ends)
        == {
            "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
            "llama": {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"}),
        }[kind]
    )
    assert all(model.get_parameter(name).dim() == 1 for name in vectors)


def test_frozen_matrices_are_nobodys() -> None:
    model = language_model("gpt2")
    for name, p in model.named_parameters():
        p.requires_grad_(".h." not in name)
    optimizer = optim.make(model, TrainSteps(), "muon")
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(p.requires_grad for group in optimizer.param_groups for p in group["params"])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for i, p in enumerate(model.parameters()):
        p.grad = drawn(*p.shape, seed=100 * seed + i)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 / (seed + 1)
    optimizer.step()
    optimizer.zero_grad()


def test_both_are_saved_and_go_on_as_one() -> None:
    straight, resumed = language_model("gpt2"), language_model("gpt2")
    one = optim.make(straight, TrainSteps(), "muon")
    for seed in range(3):
        step(straight, one, seed)
    resumed.load_state_dict(straight.state_dict())
    other = optim.make(resumed, TrainSteps(), "muon")
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for seed in range(3, 5):
        step(straight, one, seed)
        step(resumed, other, seed)
    kept = {name for state in one.state.values() for name in state}
    assert kept == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
    assert len(one.state) == len(list(straight.parameters()))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_both_forget_together() -> None:
    """As after a cloud was set back: the next step is a first one."""
    model, fresh = language_model("gpt2"), language_model("gpt2")
    optimizer = optim.make(model, TrainSteps(), "muon")
    step(model, optimizer, 0)
    model.load_state_dict(fresh.state_dict())
    optimizer.state.clear()
    step(model, optimizer, 1)
    step(fresh, optim.make(fresh, TrainSteps(), "muon"), 1)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_group_that_nobody_would_step_is_refused() -> None:
    optimizer = optim.make(language_model("gpt2"), TrainSteps(), "muon")
    with pytest.raises(InvalidArgument, match="no further parameter group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(optimizer.param_groups) == 3


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = language_model("gpt2")
    with pytest.raises(ValueError, match="parameter group"):
        optim.make(model, TrainSteps(), "muon").load_state_dict(
            optim.make(model, TrainSteps(), "adamw").state_dict()
        )


def test_random_weights_have_muon_and_given_ones_adamw() -> None:
    def chosen(model: dict[str, Any], **train: Any) -> str:
        return optim.chosen(from_table({"model": model, "train": train}))

    assert chosen({"type": "gpt2"}) == "muon"
    assert chosen({"path": "/models/x"}) == "adamw"
    assert chosen({"path": "/models/x"}, optimizer="muon") == "muon"
    assert chosen({"type": "gpt2"}, optimizer="adamw") == "adamw"
