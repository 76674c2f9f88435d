"""Steps in what ``torch.compile`` compiles: they run as they are, between two graphs."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Net, on_device  # noqa: E402
from torch_state import assert_equal_tensors, params_and_state  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_method(opt):
    return torch.compile(opt.step, backend="eager")


def compiled_function(opt):
    return torch.compile(lambda: opt.step(), backend="eager")


@pytest.mark.parametrize("compiled", [compiled_method, compiled_function])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.05}, {"state_dtype": "8bit"}], ids=str)
@pytest.mark.parametrize("with_module", [False, True])
def test_the_bits_of_a_step_that_is_not_compiled(compiled, options, with_module):
    def trained(made):
        torch.manual_seed(0)
        net = Net()
        modules = {"module": net} if with_module else {}
        opt = on_device(net.parameters(), lr=1e-2, **options, **modules)
        step = made(opt)
        for seed in range(3):
            net.loss(seed).backward()
            step()
            opt.zero_grad()
        opt.synchronize()
        return params_and_state(opt)

    assert_equal_tensors(trained(compiled), trained(lambda opt: opt.step))


@pytest.mark.parametrize("compiles_module", [True, False])
def test_what_was_compiled_before_waits_for_the_updates(compiles_module):
    """PyTorch does not notice that a module which it has compiled gets hooks."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Linear(300, 1))
    x = torch.ones(2, 4)
    run = torch.compile(net if compiles_module else lambda x: net(x), backend="eager")
    with torch.no_grad():
        run(x)
    run(x)
    opt = on_device(net.parameters(), lr=1e-1, module=net, delay=0.02)
    for _ in range(2):
        run(x).sum().backward()
        opt.step()
        with torch.no_grad():
            found = run(x)
        opt.synchronize()
        assert torch.equal(found, net(x))


@pytest.mark.parametrize("with_module", [False, True])
def test_a_compiled_step_does_not_compile_the_updates(with_module):
    def trained(compiled):
        torch.manual_seed(0)
        net = Net()
        modules = {"module": net} if with_module else {}
        opt = on_device(net.parameters(), lr=1e-2, **modules)

        def step(seed):
            with opt.overlapped():
                net.loss(seed).backward()
            opt.step()
            opt.zero_grad()

        step = torch.compile(step, backend="eager") if compiled else step
        for seed in range(3):
            step(seed)
        opt.synchronize()
        return params_and_state(opt)

    expected = trained(compiled=False)
    torch._dynamo.utils.counters.clear()
    assert_equal_tensors(trained(compiled=True), expected)
    assert torch._dynamo.utils.counters["frames"]["total"] < 50  # those of an update are more


def test_a_forward_that_waits_is_no_whole_graph():
    net = torch.nn.Linear(2, 2)
    opt = on_device(net.parameters(), lr=1e-2, module=net)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="construct the optimizer without mod"):
        torch.compile(net, backend="eager", fullgraph=True)(torch.ones(2))
    assert not opt.state


def test_a_whole_graph_is_refused_with_nothing_changed():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    net.loss(0).backward()
    before = [p.detach().clone() for p in net.parameters()]
    step = torch.compile(opt.step, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        step()
    assert_equal_tensors([p.detach() for p in net.parameters()], before)
    assert not opt.state
