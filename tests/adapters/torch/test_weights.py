"""The drop-ins' weights, changed in any way: by optimizers, from outside, between a forward pass and its backward pass."""

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.adapters.torch.test_modules import error, twins


def changed_by(how, layer):
    """Change the recurrent weight in one of the ways that people have."""
    weight = layer.weight_hh_l0
    if how == "in place":
        with torch.no_grad():
            weight.add_(0.1)
    elif how == "data":
        weight.data.add_(0.1)
    elif how == "array":
        weight.detach().numpy()[...] += 0.1
    elif how == "new data":
        weight.data = weight.data + 0.1
    elif how == "new parameter":
        layer.weight_hh_l0 = nn.Parameter(weight.detach() + 0.1)
    elif how == "transposed data":
        weight.data = (weight.detach() + 0.1).t().contiguous().t()
    elif how == "state_dict":
        layer.load_state_dict(layer.state_dict() | {"weight_hh_l0": weight.detach() + 0.1})
    elif how == "assigned state_dict":
        layer.load_state_dict(layer.state_dict() | {"weight_hh_l0": weight.detach() + 0.1}, assign=True)
    elif how == "one element":
        weight.data.view(-1)[-1] += 0.1
    else:
        torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "how",
    [
        "in place",
        "data",
        "array",
        "new data",
        "new parameter",
        "transposed data",
        "state_dict",
        "assigned state_dict",
        "one element",
        "optimizer",
    ],
)
def test_weights_are_never_stale(how):
    ours, theirs = twins("GRU", 5, 5)
    x = torch.randn(4, 3, 5)
    for module in (ours, theirs):
        module(x)[0].sum().backward()
    before = ours(x)[0].detach()
    for module in (ours, theirs):
        changed_by(how, module)
        module.zero_grad()
    results = [
        (out, *torch.autograd.grad(out.sum(), module.weight_hh_l0)) for module in (ours, theirs) for out in [module(x)[0]]
    ]
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-6
    assert error(results[0][0], before) > 1e-4


def test_the_backward_pass_has_the_weights_of_its_forward_pass():
    """Between the two the same module may serve others: torch.func.functional_call, other threads."""
    ours, theirs = twins("LSTM", 5, 6)
    x, grads = torch.randn(4, 3, 5), []
    for module in (ours, theirs):
        out, _ = module(x)
        other = {name: parameter.detach() * 2 for name, parameter in module.named_parameters()}
        torch.func.functional_call(module, other, (x,))
        grads.append(torch.autograd.grad(out.square().sum(), [*module.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert error(a, b) < 1e-5


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_training_is_torchs(optimizer):
    ours, theirs = twins("LSTM", 5, 6, 2, bidirectional=True)
    x, losses = torch.randn(9, 4, 5), []
    for module in (ours, theirs):
        steps = optimizer(module.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(steps, 5, 0.5)
        losses.append([])
        for _ in range(12):
            steps.zero_grad()
            loss = (module(x)[0] - 0.3).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            steps.step(), schedule.step()
            losses[-1].append(loss.item())
    assert torch.allclose(*map(torch.tensor, losses), rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_parametrized_weights():
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    ours, theirs = twins("GRU", 5, 6)
    x, grads = torch.randn(4, 3, 5), []
    for module in (ours, theirs):
        parametrize.register_parametrization(module, "weight_hh_l0", Halved())
        out, _ = module(x)
        grads.append([out, *torch.autograd.grad(out.sum(), [*module.parameters()])])
    assert len(grads[0]) == 5
    for a, b in zip(*grads, strict=True):
        assert error(a, b) < 1e-5
