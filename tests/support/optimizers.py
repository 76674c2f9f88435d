"""What the tests of ``AdamW`` share: parameters, structures, the twins of an optimizer."""

import numpy as np
from twin import adamw_twin, ema_twin

from fused_adamw import AdamW

HYPER = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}
OTHER = {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5}
SHAPES = [(7, 5), (5,), (), (0, 3), (2, 3, 4)]
EVERYTHING = {
    "amsgrad": True,
    "maximize": True,
    "max_grad_norm": 0.5,
    "skip_nonfinite": True,
    "ema_decay": 0.9,
}


def draw(shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), dtype) for shape in shapes]


def leaves(structure):
    """The arrays of a structure, in order."""
    if structure is None or isinstance(structure, np.ndarray):
        return [] if structure is None else [structure]
    values = structure.values() if isinstance(structure, dict) else structure
    return [leaf for value in values for leaf in leaves(value)]


def arrays_of(opt):
    """Parameters and state: of each role, the arrays of all tensors."""
    params = leaves([group["params"] for group in opt.param_groups])
    return [params, leaves(opt.m), leaves(opt.v), leaves(opt.v_max), leaves(opt.ema)]


def steps_of(opt):
    return [entry["step"] for entry in opt.state_dict()["state"].values()]


def snapshot(opt):
    """Everything that an error, or a skipped step, must leave alone."""
    numbers = [{k: x for k, x in group.items() if k != "params"} for group in opt.param_groups]
    options = opt.maximize, opt.max_grad_norm, opt.skip_nonfinite, opt.num_threads, opt.ema_decay
    data = [[array.tobytes() for array in role] for role in arrays_of(opt)]
    return opt.t, steps_of(opt), repr(numbers), options, data


def clip(norm, most):
    return min(1.0, most / (norm + 1e-6))


class Twins:
    """What an optimizer over ``params`` has to be after each step: the twin, tensor by tensor."""

    def __init__(self, params, amsgrad=False, ema_decay=None):
        self.ema_decay = ema_decay
        self.params = [p.copy() for p in params]
        self.m, self.v = ([np.zeros_like(p) for p in params] for _ in "mv")
        self.v_max = [np.zeros_like(p) for p in params] if amsgrad else []
        self.ema = [p.copy() for p in params] if ema_decay is not None else []
        self.steps = [0] * len(params)

    def step(self, grads, hypers, scale=1.0):
        """``hypers``: the hyper-parameters of each tensor, or one dict for all."""
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.steps[i] += 1
            hyper = hypers if isinstance(hypers, dict) else hypers[i]
            options = {"scale": scale, "v_max": self.v_max[i] if self.v_max else None}
            old = self.params[i], g, self.m[i], self.v[i]
            new = map(np.asarray, adamw_twin(*old, self.steps[i], **hyper, **options))
            self.params[i], self.m[i], self.v[i], *v_max = new
            if v_max:
                self.v_max[i] = v_max[0]
            if self.ema:
                self.ema[i] = np.asarray(ema_twin(self.ema[i], self.params[i], self.ema_decay))

    def assert_equal(self, opt):
        assert steps_of(opt) == self.steps
        expected = [self.params, self.m, self.v, self.v_max, self.ema]
        for found, arrays in zip(arrays_of(opt), expected, strict=True):
            for array, twin in zip(found, arrays, strict=True):
                np.testing.assert_array_equal(array, twin, strict=True)


def group_params(structures):
    return [{"params": x, **(OTHER if g else {})} for g, x in enumerate(structures)]


def grouped_optimizer(seed=0, **options):
    """Two groups in two dtypes and memory orders; the last tensor has no gradient in one step."""
    w, b, last = draw([(4, 3), (3,), (5,)], seed=seed)
    groups = group_params([{"w": np.asfortranarray(w, np.float32), "b": b}, {"w": last}])
    opt = AdamW(groups, **HYPER, **options)
    for t in range(3):
        grads = draw([(4, 3), (3,), (5,)], seed=10 + t)
        opt.step(group_grads([*grads[:2], None if t == 1 else grads[2]]))
    return opt


def group_grads(grads):
    return [{"w": grads[0].astype(np.float32), "b": grads[1]}, {"w": grads[2]}]
