"""``decay_mask``: which tensors it exempts, and what it is given."""

import copy

import pytest
from optimizers import HYPER, Twins, draw

from fused_adamw import AdamW, matrices_only


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "b": False, "u": True},
        matrices_only,
        lambda name, array: not name.endswith("b") and array.ndim == 2,
    ],
    ids=["booleans", "matrices_only", "predicate"],
)
def test_decay_mask(grouped, mask):
    """A tensor that it exempts steps as with weight_decay=0, in copies of the optimizer too."""
    shapes = [(3, 2), (2,), (2, 2)]
    arrays, grads = draw(shapes), dict(zip("wbu", draw(shapes, seed=1), strict=True))
    params = dict(zip("wbu", arrays, strict=True))
    twins = Twins(arrays)
    twins.step(grads.values(), [HYPER, HYPER | {"weight_decay": 0.0}, HYPER])
    if grouped:
        params, grads = [{"params": params}], [grads]
        mask = [mask] if isinstance(mask, dict) else mask
    first = AdamW(params, **HYPER, decay_mask=mask)
    for opt in (copy.deepcopy(first), first):
        opt.step(grads)
        twins.assert_equal(opt)


@pytest.mark.parametrize(("grouped", "prefix"), [(False, ""), (True, "0.")])
def test_a_mask_gets_the_names_of_state_dict(grouped, prefix):
    seen = []
    params = dict(zip("wb", draw([2, 3]), strict=True))

    def mask(name, array):
        seen.append((name, array is params[name[-1]]))
        return True

    opt = AdamW([{"params": params}] if grouped else params, decay_mask=mask)
    assert seen == [(prefix + "w", True), (prefix + "b", True)]
    assert opt.names == list(opt.state_dict()["state"]) == [name for name, _ in seen]


@pytest.mark.parametrize("mask", [matrices_only, [True]])
def test_a_mask_is_evaluated_after_the_checks(mask):
    with pytest.raises(TypeError, match=r"params\[0\] must be a NumPy array .*; got float"):
        AdamW([1.0], decay_mask=mask)
