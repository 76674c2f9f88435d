"""State dicts and state that a program has edited, or put into the optimizer itself."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_ranks import only_rank  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

SETTABLE = [(torch.float32, {}), (torch.float32, {"state_dtype": "8bit"})]
OPTIONS = [{}, {"state_dtype": "float32"}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}]


def trained(steps=3, dtype=torch.float32, **options):
    p = torch.nn.Parameter(torch.linspace(-1, 1, 300, dtype=dtype))
    opt = AdamW([p], lr=1e-2, **options)
    train(p, opt, steps)
    return p, opt


def train(p, opt, steps):
    for _ in range(steps):
        p.grad = torch.cos(p.detach())
        opt.step()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("in_group", [False, True])
def test_averages_stay_where_moments_are_restarted(tmp_path, in_group):
    p, opt = trained(ema_decay=0.9)
    average = opt.state[p]["ema"].clone()
    zeros = {name: torch.zeros_like(p.detach()) for name in ("exp_avg", "exp_avg_sq")}

    def restart():
        saved = opt.state_dict()
        saved["state"][0] |= {"step": torch.tensor(0.0), **zeros}
        opt.load_state_dict(saved, convert=False)

    if in_group:
        with only_rank(tmp_path):
            restart()
    else:
        restart()
    assert opt.state[p]["step"] == 0
    assert torch.equal(opt.state[p]["ema"], average)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_state_dict_that_is_loaded_twice_is_not_mixed(options):
    """Count and moments are those of one moment: of the saved one, or, where tensors are shared as
    by PyTorch, of the last step."""
    _, source = trained(**options)
    saved = copy.deepcopy(source.state_dict())
    p, opt = trained(steps=0, **options)
    opt.load_state_dict(saved)
    train(p, opt, 5)
    now = copy.deepcopy(opt.state[p])
    opt.load_state_dict(saved)
    found = opt.state[p]
    expected = now if found["step"] == 8 else source.state_dict()["state"][0]
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_other_entries_of_the_state(tmp_path):
    p, opt = trained()
    nbytes = opt.state_nbytes
    opt.state["epoch"] = 3
    assert opt.state_nbytes == nbytes
    with only_rank(tmp_path):
        saved = opt.state_dict()
    assert saved["state"]["epoch"] == 3
    other = AdamW([p])
    other.load_state_dict(saved)
    assert other.state["epoch"] == 3


def test_entries_without_a_number_of_steps_change_nothing():
    p, opt = trained()
    kept = copy.deepcopy(opt.state[p])
    for step, match in (
        ("3", r"\['step'\] must be a number or a tensor; got '3'"),
        (torch.ones(2), r"\['step'\] must be one number; got shape \(2,\)"),
    ):
        saved = opt.state_dict()
        saved["state"][0] = saved["state"][0] | {"step": step}
        with pytest.raises((TypeError, ValueError), match=match):
            opt.load_state_dict(saved)
        assert all(torch.equal(opt.state[p][name], x) for name, x in kept.items())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("step", torch.tensor(3), "with a count of steps of dtype torch.int64 on device cpu"),
        ("step", torch.tensor(2.0, device="meta"), "with a .* dtype torch.float32 on device meta"),
        ("step", torch.tensor(2.5), "with a count of steps of 2.5"),
        ("step", torch.tensor(float("inf")), "with a count of steps of inf"),
        ("exp_avg", None, "without the tensor exp_avg"),
    ],
    ids=str,
)
def test_what_a_step_cannot_use_is_named(name, value, reason):
    p, opt = trained(state_dtype="float32")
    opt.state[p][name] = value
    with pytest.raises(TypeError, match=rf"unsupported: parameters \[0\] \({reason}\)"):
        opt.step()


@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_master_weights_that_other_code_loads_as_bytes(tmp_path, state_dtype):
    """``ZeroRedundancyOptimizer`` puts what a state dict has into the state itself."""
    options = {"dtype": torch.bfloat16, "state_dtype": state_dtype, "master_weights": True}
    (p, opt), (q, other) = trained(**options), trained(**options)
    with only_rank(tmp_path):
        saved = copy.deepcopy(opt.state_dict())["state"][0]
    assert saved["master"].dtype == torch.int8
    other.state[q].update(saved)
    train(p, opt, 2)
    train(q, other, 2)
    assert torch.equal(p, q)
    assert torch.equal(opt.state[p]["master"], other.state[q]["master"])


def lazy_model():
    return torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1))


def test_loading_before_the_first_forward():
    """As PyTorch's class; what has to be converted needs the shapes."""
    model = lazy_model()
    opt = AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    opt.step()
    other = lazy_model()
    resumed = AdamW(other.parameters())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    other(torch.ones(2, 4))
    other.load_state_dict(model.state_dict())
    for found in (model, other):
        found.zero_grad()
        found(torch.ones(2, 4)).sum().backward()
    opt.step()
    resumed.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    match = r"state_dict\['state'\]\[0\] must be loaded after the first forward"
    with pytest.raises(ValueError, match=match):
        AdamW(lazy_model().parameters(), state_dtype="8bit").load_state_dict(opt.state_dict())


def test_loading_what_was_saved_before_the_first_step_and_the_first_forward():
    """There is nothing to convert."""
    opt, other = (AdamW(lazy_model().parameters(), lr, state_dtype="8bit") for lr in (0.5, 0.1))
    assert opt.state[opt.param_groups[0]["params"][0]] == {}  # to look adds an entry
    assert 0 in opt.state_dict()["state"]
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["lr"] == 0.5


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_load_by_pytorch_that_failed_is_forgotten(tmp_path):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    def fail(*_):
        raise OSError("of a hook")

    model = torch.nn.Linear(5, 3)
    opt = AdamW(model.parameters())
    with only_rank(tmp_path):
        model(torch.ones(5)).sum().backward()
        opt.step()
        handle = opt.register_load_state_dict_pre_hook(fail, prepend=True)
        options = StateDictOptions(full_state_dict=True)
        with pytest.raises(OSError, match="of a hook"):
            set_optimizer_state_dict(model, opt, {"state": {}, "param_groups": []}, options=options)
        handle.remove()
        saved = opt.state_dict()
        saved["state"][0]["step"] = torch.tensor(0.0)
        opt.load_state_dict(saved)
    assert opt.state[model.weight]["step"] == 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.bfloat16, {"master_weights": True}), *SETTABLE]
)
def test_what_was_edited_is_set_beside_what_was_not(tmp_path, dtype, options, broadcast, sharded):
    """PyTorch's functions get the optimizer's own tensors; what a program leaves as it is stays."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Linear(5, 3, dtype=dtype)
    with only_rank(tmp_path):
        if sharded:
            fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        opt = AdamW(model.parameters(), ema_decay=0.5, **options)
        how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        for edited in (("step",), ("step", "exp_avg", "exp_avg_sq")):
            model(torch.ones(2, 5, dtype=dtype)).sum().backward()
            opt.step()
            expected = {name: copy.deepcopy(opt.state[p]) for name, p in model.named_parameters()}
            saved = get_optimizer_state_dict(model, opt, options=how)
            for entries in (saved["state"], expected):
                for entry in entries.values():
                    zeros = {k: torch.zeros_like(x) for k, x in entry.items() if k in edited}
                    entry |= zeros
            set_optimizer_state_dict(model, opt, saved, options=how)
            for name, p in model.named_parameters():
                assert opt.state[p].keys() == expected[name].keys()
                for key, x in expected[name].items():
                    assert torch.equal(opt.state[p][key], x), key


def test_state_that_a_step_adds_is_not_what_it_lacks():
    memory = torch.ones(10)
    params = [torch.nn.Parameter(memory[i : i + 6]) for i in (0, 0)]
    opt = AdamW(params)
    for p in params:
        p.grad = torch.ones(6)
    opt.step()
    opt.param_groups[0]["ema_decay"] = 0.5
    with pytest.raises(TypeError, match="sharing memory with other tensors"):
        opt.step()


@pytest.mark.parametrize("name", ["grad", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_without_elements_have_no_meaning(name, dtype):
    """PyTorch divides gathered state between ranks of which some have nothing of a tensor."""
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 0, 13), (4,))]
    opt = AdamW(params, lr=0.1, state_dtype="bfloat16")
    empty, _ = params

    def take_step():
        for p in params:
            p.grad = torch.ones_like(p)
        if name == "grad":
            empty.grad = other
        opt.step()

    other = torch.zeros(3, 2, 13, dtype=dtype)[:, :0]
    take_step()
    if name != "grad":
        other = torch.zeros(3, 2, 13, dtype=torch.bfloat16)[:, :0]
        assert other.stride() != opt.state[empty][name].stride()
        opt.state[empty][name] = other
    take_step()
    assert [opt.state[p]["step"] for p in params] == [2, 2]
    assert opt.last_path == [("kernels", "")]
