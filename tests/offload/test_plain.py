"""Steps without overlap: the bits of the class for NumPy, whatever the order and time of copies."""

from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import SMALLEST, Beside, Net, on_device  # noqa: E402

SHAPES = [(40, 7), (300,), (), (0, 3), (190, 257), (2, 3, 4, 5), (33000,)]
MIXES = [
    ("float32", True),
    ("bfloat16", True),
    ("8bit", True),
    (None, True),
    ("float32", False),
    ("8bit", False),
    ("bfloat16", False),
]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def parameters(dtype, shapes=SHAPES):
    numbers = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=numbers).to(dtype)) for s in shapes]


def set_gradients(params, seed, missing=()):
    numbers = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=numbers).to(p.dtype)
        p.grad = None if i in missing else torch.empty_like(p).copy_(grad)


def train_beside(groups, params, *, steps=3, missing=(), **options):
    ring = {k: options.pop(k) for k in ("lane_seed", "slots", "slot_bytes") if k in options}
    other = Beside(groups, lr=1e-2, **options)
    opt = on_device(groups, lr=1e-2, **ring, **options)
    for step in range(1, steps + 1):
        set_gradients(params, step, missing if step == 2 else ())
        other.step()
        opt.step()
    other.assert_equal(opt)
    return opt


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize(("state_dtype", "master_weights"), MIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_class_for_numpy(dtype, state_dtype, master_weights, slots):
    if dtype == "float32" and state_dtype is None:
        pytest.skip("the same as float32")
    params = parameters(DTYPES[dtype])
    options = {"state_dtype": state_dtype, "master_weights": master_weights}
    train_beside(params, params, missing={1, 4}, slots=slots, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True},
        {"amsgrad": True},
        {"ema_decay": 0.9},
        {"weight_decay": 0.0, "betas": (0.5, 0.9), "eps": 1e-3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(options):
    params = parameters(torch.bfloat16)
    train_beside(params, params, **options)


@pytest.mark.parametrize("master_weights", [True, False])
def test_rounding_to_nearest(master_weights):
    params = parameters(torch.bfloat16)
    options = {"seed": None, "state_dtype": "8bit", "master_weights": master_weights}
    train_beside(params, params, **options)


def test_without_a_format_and_master_weights_all_is_rounded_to_the_nearest():
    params = parameters(torch.bfloat16)
    options = {"state_dtype": None, "master_weights": False, "lr": 1e-2}
    other, opt = Beside(params, seed=None, **options), on_device(params, seed=0, **options)
    for step in range(3):
        set_gradients(params, step)
        other.step()
        opt.step()
    other.assert_equal(opt)


def test_float64():
    params = parameters(torch.float64)
    opt = train_beside(params, params, state_dtype=None)
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float64


def test_groups_with_options_of_their_own():
    params = parameters(torch.bfloat16)
    groups = [
        {"params": params[:3], "lr": 1e-3, "weight_decay": 0.0},
        {"params": params[3:], "betas": (0.8, 0.9)},
    ]
    train_beside(groups, params)


@pytest.mark.parametrize("state_dtype", ["float32", "8bit", None])
def test_a_parameter_without_elements(state_dtype):
    """Whatever its strides, as on the host."""
    p = torch.nn.Parameter(torch.empty(4, 6)[:0, ::2])
    opt = on_device([p], state_dtype=state_dtype)
    for _ in range(2):
        p.grad = torch.empty_like(p)
        opt.step()
    assert opt.state[p]["step"] == 2


def test_the_order_of_dimensions_in_memory():
    """A gradient in another order is brought into the parameter's."""
    params = [
        torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last).bfloat16())
        for p in parameters(torch.float32, [(4, 3, 50, 60), (2, 5, 3, 3)])
    ]
    params.append(torch.nn.Parameter(torch.randn(300, 170).t()))
    flat = [torch.nn.Parameter(p.detach().contiguous().clone()) for p in params]
    opt, same = on_device(params, lr=1e-2), on_device(flat, lr=1e-2)
    for step in range(2):
        set_gradients(flat, step)
        for p, q in zip(params, flat, strict=True):
            p.grad = q.grad.clone()
        opt.step()
        same.step()
    for p, q in zip(params, flat, strict=True):
        assert torch.equal(p, q)
        assert opt.state[p]["exp_avg"].stride() == p.stride()
        assert torch.equal(opt.state[p]["exp_avg"], same.state[q]["exp_avg"])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**30),
    slots=st.sampled_from([1, 2, 4]),
    slot_bytes=st.sampled_from([SMALLEST, 2 * SMALLEST, 1 << 20]),
    threads=st.integers(1, 3),
    sizes=st.lists(st.integers(0, 150_000), min_size=1, max_size=6),
)
def test_any_delays_slots_and_sizes(seed, slots, slot_bytes, threads, sizes):
    params = parameters(torch.bfloat16, [(size,) for size in sizes])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ring = {"slots": slots, "slot_bytes": slot_bytes, "lane_seed": seed}
        train_beside(params, params, steps=2, state_dtype="8bit", **ring)
    finally:
        torch.set_num_threads(before)


def test_training_with_accumulation_clipping_and_a_schedule():
    """Gradients are PyTorch's own until the step."""
    net = Net()
    params = list(net.parameters())
    opt = on_device(params, lr=1e-2)
    other = Beside(params, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=5)
    for step in range(4):
        for part in range(2):
            net.loss(10 * step + part).backward()
        torch.nn.utils.clip_grad_norm_(params, 0.1)
        group = opt.param_groups[0]
        other.opt.param_groups[0].update(lr=group["lr"], betas=group["betas"])
        other.step()
        opt.step()
        schedule.step()
        opt.zero_grad()
    other.assert_equal(opt)
    assert net.frozen.weight not in opt.state
    assert net.unused not in opt.state


@pytest.mark.parametrize("overlapped", [False, True])
def test_lazy_modules(overlapped):
    """Whose parameters have no size before the first forward."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.Linear(5, 2))
    opt = on_device(net.parameters(), lr=1e-2)
    with opt.overlapped() if overlapped else nullcontext():
        loss = net(torch.ones(3, 4)).sum()
        other = Beside(list(net.parameters()), lr=1e-2)
        loss.backward()
    opt.step()
    other.step()
    other.assert_equal(opt)
