"""Off-loaded DTensors: state dicts, on several ranks and on another number of them."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from sharded_comparison import assert_same, assert_within  # noqa: E402
from sharded_training import (  # noqa: E402
    OPTIONS,
    Model,
    call_all,
    call_all_offloaded,
    continue_training,
    draw,
    exchange_with_plain,
    parameter_on,
    place_on,
    reshard,
    train_mixed,
    train_shards,
    write_between_steps,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch_ranks import needs_gloo, run_ranks  # noqa: E402

from fused_adamw import offload  # noqa: E402

KINDS = ["float32", "bfloat16", "master", "8bit", "8bit_master"]
EXCHANGED = ["float32", "8bit", "8bit_master"]
NAMES = [name for name, _ in Model().named_parameters()]
STEPS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each rank: off-loaded on 2 and on 1, and with the class for the CPU on 2. Checkpoints go
    from 2 to 1, and between the classes."""
    folder = tmp_path_factory.mktemp("ranks")
    two = {
        "continued": (continue_training, KINDS),
        "saved": (reshard, KINDS, folder, None, "two", (0, 3)),
        "exchange": (exchange_with_plain, EXCHANGED),
        "shards": (train_shards, list(OPTIONS), STEPS),
        "mixed": (train_mixed, list(OPTIONS), STEPS),
    }
    one = {"loaded": (reshard, KINDS, folder, "two", "one", (3, 3))}
    other = {
        "loaded": (reshard, KINDS, folder, "two", "other", (3, 3)),
        "shards": two["shards"],
        "mixed": two["mixed"],
    }
    return {
        "two": run_ranks(2, folder, call_all_offloaded, two),
        "one": run_ranks(1, folder, call_all_offloaded, one),
        "other": run_ranks(2, folder, call_all, other),
    }


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_on_with_the_same_bits(results, kind):
    for result in results["two"]:
        expected, found = (x["state"] for x in result["continued"][kind])
        assert list(found) == NAMES
        for name in NAMES:
            assert_same(found[name], expected[name])


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["one", "other"])
def test_checkpoints_load_on_another_number_of_ranks_and_in_the_other_class(results, where, kind):
    """8 bits: the same where a row has whole blocks, and on as many ranks."""
    expected = results["two"][0]["saved"][kind]["state"]
    for result in results[where]:
        found = result["loaded"][kind]["state"]
        for name in NAMES:
            if where == "one" and kind.startswith("8bit") and name != "first.weight":
                assert_within(1, found[name], expected[name])
            else:
                assert_same(found[name], expected[name])


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("kind", EXCHANGED)
def test_gathered_state_goes_to_and_from_other_tensors(results, kind):
    for result in results["two"]:
        first, *others = result["exchange"][kind]
        for number, (name, expected) in enumerate(first["state"].items()):
            for other in others:
                found = other["state"].get(name) or other["state"][number]
                if kind == "float32" or name == "first.weight":
                    assert_same(found, expected)
                else:  # with the scales of other blocks, and then of the old ones again
                    assert_within(2, found, expected)


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("how", ["shards", "mixed"])
def test_the_bits_are_those_of_the_class_for_the_cpu(results, how, kind):
    """Also where gradients are sums over the ranks, and with random numbers, which depend on where
    a shard begins."""
    for found, expected in zip(results["two"], results["other"], strict=True):
        for name, entry in expected[how][kind].items():
            assert_same(found[how][kind][name], entry)


# ---------------------------------------------------------------------------- one rank


def trained(mesh, **options):
    p = parameter_on(mesh)
    p.grad = distribute_tensor(draw((3, 100), 2), mesh, [Shard(0)])
    with offload.simulated():
        opt = offload.AdamW([p], lr=1e-2, **options)
    opt.step()
    return p, opt


def plain_moment(p, opt):
    opt.state[p]["exp_avg_sq"] = opt.state[p]["exp_avg_sq"].to_local()


def other_placement(p, opt):
    state = opt.state[p]
    state["exp_avg"] = state["exp_avg"].redistribute(placements=[Replicate()])


@needs_gloo
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (plain_moment, "the v of parameter 0 must be .* placed like it"),
        (other_placement, "the m of parameter 0 must be .* placed like it; got .*Replicate"),
    ],
)
def test_state_that_is_not_divided_as_its_parameter_is_refused(mesh, change, message):
    p, opt = trained(mesh)
    before = p.detach().clone()
    change(p, opt)
    with pytest.raises(TypeError, match=message):
        opt.step()
    assert torch.equal(p.to_local(), before.to_local())


@needs_gloo
def test_saved_state_of_other_ranks_is_refused(mesh):
    """Whose part of it may have as many elements."""
    p, opt = trained(mesh)
    saved = opt.state_dict()
    others = init_device_mesh("cpu", (1, 1))
    moved = distribute_tensor(draw((3, 100), 2), others, [Shard(0), Replicate()])
    saved["state"][0] = {**saved["state"][0], "exp_avg": moved}
    before = opt.state[p]["exp_avg"].to_local().clone()
    with pytest.raises(ValueError, match=r"of shape \(3, 100\); got .*\(3, 100\), placed \(S"):
        opt.load_state_dict(saved)
    assert torch.equal(opt.state[p]["exp_avg"].to_local(), before)


@needs_gloo
@pytest.mark.parametrize(("param", "grad"), [("plain", "DTensor"), ("DTensor", "plain")])
def test_a_gradient_that_is_not_divided_as_its_parameter_is_refused(mesh, param, grad):
    made = {"plain": draw((3, 100), 1), "DTensor": place_on(mesh, Shard(0))(draw((3, 100), 1))}
    p = torch.nn.Parameter(made[param])
    p.grad = made[grad]
    before = p.detach().clone()
    with offload.simulated():
        opt = offload.AdamW([p])
    with pytest.raises(TypeError, match=r"the gradient of parameter 0 must .* kind and placements"):
        opt.step()
    assert torch.equal(p, before)


@needs_gloo
@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_converted_moments_are_placed_like_their_parameter(mesh, state_dtype):
    _, other = trained(mesh, state_dtype="bfloat16", seed=None)
    p, opt = trained(mesh, state_dtype=state_dtype)
    opt.load_state_dict(other.state_dict())
    for name, x in opt.state[p].items():
        is_moment = name.startswith("exp_avg") and not name.endswith("_scale")
        assert isinstance(x, DTensor) == is_moment, name
        assert not is_moment or not isinstance(x.to_local(), DTensor), name
    opt.step()
    assert p.to_local().isfinite().all()


@needs_gloo
def test_a_parameter_that_is_a_sum_over_the_ranks_is_refused(mesh):
    p = torch.nn.Parameter(DTensor.from_local(draw((3, 100), 1), mesh, [Partial()]))
    p.grad = DTensor.from_local(draw((3, 100), 2), mesh, [Partial()])
    with offload.simulated():
        opt = offload.AdamW([p])
    with pytest.raises(TypeError, match=r"parameter 0 must be .* placed .*Partial"):
        opt.step()


def set_later(mesh):
    p, opt = trained(mesh)
    opt.max_grad_norm = 1.0
    return p, opt


def added_later(mesh):
    whole = torch.nn.Parameter(draw((3, 100), 1))
    with offload.simulated():
        opt = offload.AdamW([whole], lr=1e-2)
    p = parameter_on(mesh)
    opt.add_param_group({"params": [p]})
    opt.max_grad_norm = 1.0
    return p, opt


@needs_gloo
@pytest.mark.parametrize("made", [set_later, added_later])
def test_a_norm_of_parts_is_refused_whenever_it_would_be_used(mesh, made):
    """Each rank would clip by the norm of its own part."""
    p, opt = made(mesh)
    p.grad = place_on(mesh, Shard(0))(draw((3, 100), 2))
    before = p.detach().clone()
    for use in (opt.step, opt.overlapped):
        with pytest.raises(ValueError, match=r"max_grad_norm must be None for .*; got 1\.0"):
            use()
    assert torch.equal(p.to_local(), before.to_local())
    opt.max_grad_norm = None
    opt.step()
    assert not torch.equal(p.to_local(), before.to_local())


@needs_gloo
@pytest.mark.slow
def test_masters_of_shards_start_again_from_parameters_that_were_written(tmp_path):
    calls = {"equal": (write_between_steps,)}
    assert run_ranks(2, tmp_path, call_all_offloaded, calls) == [{"equal": True}] * 2


def write_to_the_shard(p):
    p.to_local().fill_(3.0)


def write_to_a_state_dict(p):
    """As ``torch.distributed.checkpoint.load`` does."""
    holder = torch.nn.Module()
    holder.p = p
    holder.state_dict()["p"].to_local().fill_(3.0)


@needs_gloo
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("write", [write_to_the_shard, write_to_a_state_dict])
def test_weights_that_are_written_through_a_shard_are_noticed(mesh, write, dtype):
    p = parameter_on(mesh, dtype=dtype)
    p.grad = distribute_tensor(draw((3, 100), 2).to(dtype), mesh, [Shard(0)])
    with offload.simulated():
        opt = offload.AdamW([p], lr=1e-4)
    opt.step()
    with torch.no_grad():
        write(p)
    opt.step()
    torch.testing.assert_close(p.to_local(), torch.full_like(p.to_local(), 3.0), rtol=0, atol=0.02)
