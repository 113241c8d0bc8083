"""TVNet inside what torch offers for modules: compilation, export, copies, workers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tvnet_cli import TVNet
from tvnet_cli.options import PRESETS

generator = torch.Generator().manual_seed(0)
LEVELS = torch.randint(0, 256, (2, 3, 24, 32), generator=generator).float()
MOVED = LEVELS.roll(1, -1)


def gradients(module: nn.Module, net: TVNet) -> tuple[Tensor, list[Tensor]]:
    """Return the flow, and gradients by the first frame and by all parameters."""
    first = LEVELS.clone().requires_grad_()
    flow = module(first, MOVED)
    return flow.detach(), list(torch.autograd.grad(flow.square().sum(), [first, *net.parameters()]))


@pytest.mark.parametrize(
    "net",
    [
        TVNet(num_iterations=4),
        TVNet(num_scales=2, num_warps=2, num_iterations=2, presmoothing=0),
        TVNet(num_scales=2, num_warps=2, num_iterations=2, sampler="exact", presmoothing=0.5, edge_weight=10.0),
        TVNet(num_iterations=3, solver="torch"),
    ],
    ids=["one scale", "two scales", "edges", "torch"],
)
def test_a_compiled_network_has_one_graph_and_the_same_flow_and_gradients(net: TVNet):
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    flow, by = gradients(net, net)
    flow_compiled, by_compiled = gradients(compiled, net)
    torch.testing.assert_close(flow_compiled, flow, rtol=0, atol=1e-3)
    for one, other in zip(by_compiled, by, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


def test_trained_numbers_have_gradients_in_a_compiled_network_too():
    torch.compiler.reset()
    net = TVNet(num_iterations=3)
    for name in ("tau", "lambda_", "theta"):
        value = getattr(net, name)
        delattr(net, name)
        setattr(net, name, nn.Parameter(torch.tensor(value)))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(compiled, net)[1], gradients(net, net)[1], strict=True):
        torch.testing.assert_close(one, other)


def test_the_preset_tv_l1_is_compiled_for_inference():
    torch.compiler.reset()
    options = dict(vars(PRESETS["tv-l1"]), num_scales=2, num_warps=2, num_iterations=2)
    net = TVNet(**options)
    with torch.no_grad():
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(LEVELS, MOVED)
        torch.testing.assert_close(found, net(LEVELS, MOVED), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor, about parts of torch itself
def test_a_network_compiled_with_inductor_has_the_same_flow():
    torch.compiler.reset()
    net = TVNet(num_iterations=5)
    torch.testing.assert_close(torch.compile(net)(LEVELS, MOVED), net(LEVELS, MOVED), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["torch", "numba"])
def test_an_exported_network_has_the_same_flow(solver: str):
    net = TVNet(num_iterations=3, solver=solver)
    program = torch.export.export(net, (LEVELS, MOVED))
    torch.testing.assert_close(program.module()(LEVELS, MOVED), net(LEVELS, MOVED), rtol=0, atol=1e-5)


def test_operators_agree_with_their_fake_kernels():
    from tvnet_cli.flow import solver_cpu

    grey, u, kernels = LEVELS[:, :1], torch.zeros(2, 2, 24, 32), torch.tensor([-1.0, 1.0]).expand(3, 2, 2, 2)
    numbers = [torch.tensor(number, dtype=torch.float64) for number in (0.25, 0.15, 0.3)]
    for p, last in (((None, None), True), ((u, u), False)):
        arguments = (grey, MOVED[:, :1], u, *p, None, kernels.clone(), kernels.clone(), *numbers, "exact", False, last)
        torch.library.opcheck(solver_cpu._solve_warp_operator, arguments)


def test_copies_and_pickles_compute_the_same():
    net = TVNet(num_iterations=3, input_range=1.0)
    with torch.no_grad():
        net.gradient_kernels.mul_(1.01)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(LEVELS / 255, MOVED / 255), net(LEVELS / 255, MOVED / 255))


class Pairs(torch.utils.data.Dataset[Tensor]):
    """Flow that workers of a loader compute."""

    net = TVNet(num_iterations=3)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Tensor:
        with torch.no_grad():
            return self.net(LEVELS[number : number + 1], MOVED[number : number + 1])[0]


def test_workers_of_a_data_loader_compute_the_same():
    expected = Pairs.net(LEVELS, MOVED).detach()  # its threads do not live on in the workers
    (found,) = DataLoader(Pairs(), batch_size=2, num_workers=2)
    assert torch.equal(found, expected)
