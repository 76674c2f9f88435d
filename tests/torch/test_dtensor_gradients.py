"""Gradients of DTensors on the only rank of a mesh."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from sharded_training import draw, parameter_on, place_on  # noqa: E402
from torch.distributed._functional_collectives import AsyncCollectiveTensor  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor  # noqa: E402
from torch_ranks import needs_gloo  # noqa: E402

from fused_adamw._torch.dtensors import is_placed_like  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


@pytest.mark.parametrize("member", ["placements", "mesh", "shard_order"])
def test_a_part_is_the_same_where_all_that_places_it_is_equal(member):
    """On one rank every part is the whole tensor."""
    spec = {"placements": (Shard(0), Shard(0)), "mesh": (0, 1), "shard_order": ((0, 1),)}
    first, same, other = (
        SimpleNamespace(_spec=SimpleNamespace(**spec | changes))
        for changes in ({}, {}, {member: ()})
    )
    assert is_placed_like(first, same)
    assert not is_placed_like(first, other)


@needs_gloo
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}])
def test_gradients_are_unscaled_as_those_of_other_tensors(mesh, options):
    """GradScaler leaves it to the optimizer."""
    found = []
    for place in (lambda x: x, place_on(mesh, Shard(0))):
        p = torch.nn.Parameter(place(draw((3, 100), 1)))
        p.grad = place(draw((3, 100), 2))
        opt = AdamW([p], **options)
        opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        opt.step()
        found += [p.detach(), p.grad]
    torch.testing.assert_close(found[2].full_tensor(), found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[3].full_tensor(), found[1], rtol=0, atol=0)


@needs_gloo
def test_gradients_that_are_sums_over_the_ranks(mesh):
    p, q = parameter_on(mesh), parameter_on(mesh)
    local = draw(p.shape, 2)
    p.grad = DTensor.from_local(local, mesh, [Partial()])
    q.grad = distribute_tensor(local, mesh, [Shard(0)])
    AdamW([p, q], state_dtype="bfloat16", seed=None).step()
    assert torch.equal(p.to_local(), q.to_local())


@needs_gloo
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
def test_a_gradient_that_a_collective_operation_may_still_write(mesh, options):
    p, q = parameter_on(mesh), parameter_on(mesh)
    p.grad, q.grad = (distribute_tensor(draw(p.shape, 2), mesh, [Shard(0)]) for _ in range(2))
    p.grad._local_tensor = AsyncCollectiveTensor(p.grad._local_tensor)
    opt = AdamW([p, q], **options)
    opt.step()
    assert [path.path for path in opt.last_path] == ["kernels"]
    assert p._local_tensor.ne(draw(p.shape, 1)).all()
    assert opt.state[p]["step"] == opt.state[q]["step"] == 1
    if not options:  # in 8 bits each element has a random number of its own
        assert torch.equal(p.to_local(), q.to_local())


@needs_gloo
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16", "seed": None}], ids=str)
def test_gradients_with_gaps(mesh, options):
    """PyTorch leaves padding in the gradients of some ranks, where parts differ in size."""
    grad, with_padding = draw((4, 17), 2), torch.zeros(4, 18)
    with_padding[:, :17] = grad
    p, q = parameter_on(mesh, (4, 17)), parameter_on(mesh, (4, 17))
    p.grad = DTensor.from_local(with_padding[:, :17], mesh, [Shard(0)])
    q.grad = distribute_tensor(grad, mesh, [Shard(0)])
    opt = AdamW([p, q], **options)
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    assert opt.last_path == [("kernels", "")]
    assert torch.equal(p.to_local(), q.to_local())
    assert torch.equal(p.grad.to_local(), grad / 4)
