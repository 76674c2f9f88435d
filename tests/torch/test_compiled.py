"""Steps in what ``torch.compile`` compiles: the kernels, between two graphs."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import draw_grads, params_of  # noqa: E402

from fused_adamw._torch import dispatch  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    # Dynamo looks at it itself, and only in the first test that compiles.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

OPTIONS = [
    {},
    {"fused": True, "amsgrad": True},
    {"fused": False},
    {"state_dtype": "8bit"},
    {"ema_decay": 0.5},
]


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def made(kind=AdamW, **options):
    random = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, generator=random)) for n in (3, 300, 5)]
    return kind([{"params": params[:2]}, {"params": params[2:], "lr": 0.05}], lr=0.1, **options)


def compiled(opt, backend="eager"):
    def step():
        opt.step()

    return torch.compile(step, backend=backend)


def train(opt, step, steps=4):
    for seed in range(steps):
        draw_grads(opt, seed)
        step()


def contents(opt):
    state = [x for p in params_of(opt) for x in opt.state[p].values()]
    return [*(p.detach() for p in params_of(opt)), *state]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_bits_of_a_step_that_is_not_compiled(options):
    opt, plain = made(**options), made(**options)
    train(opt, compiled(opt))
    train(plain, plain.step)
    assert all(map(torch.equal, contents(opt), contents(plain)))


def test_every_step_is_one_of_the_kernels(monkeypatch):
    monkeypatch.setattr(dispatch, "step_with_torch", None)
    opt = made()
    train(opt, compiled(opt))
    train(opt, torch.compile(opt.step, backend="eager"))
    assert {opt.state[p]["step"].item() for p in params_of(opt)} == {8}


def frames_of(kind, **options):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    opt = made(kind, **options)
    train(opt, compiled(opt))
    return torch._dynamo.utils.counters["frames"]["total"]


@pytest.mark.parametrize("fused", [None, True])
def test_no_more_is_compiled_than_with_pytorch_s_class(fused):
    frames = frames_of(AdamW, fused=fused)
    assert frames <= frames_of(torch.optim.AdamW, fused=fused)
    assert frames <= 4


def test_what_is_around_a_step_is_compiled():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    p = torch.nn.Parameter(torch.ones(3))
    opt = AdamW([p], lr=0.1)

    def train_once(x):
        loss = (p * x).sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return x * 2 + p

    once = torch.compile(train_once, backend=backend)
    for k in range(3):
        once(torch.full((3,), 1.0 + k))
    assert len(graphs) >= 2
    assert opt.state[p]["step"] == 3


def test_closures_and_hooks():
    opt, seen = made(), []
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    train(opt, compiled(opt), steps=2)
    assert seen == ["before", "after"] * 2

    def closure():
        opt.zero_grad()
        loss = sum((p**2).sum() for p in params_of(opt))
        loss.backward()
        return loss

    losses = [torch.compile(lambda: opt.step(closure), backend="eager")().item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert seen == ["before", "after"] * 5
    assert opt.state[params_of(opt)[0]]["step"] == 5


def test_fullgraph_is_refused():
    opt = made()
    draw_grads(opt, 0)
    before = [p.detach().clone() for p in params_of(opt)]
    step = torch.compile(opt.step, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        step()
    assert all(map(torch.equal, params_of(opt), before))
