"""The life of an optimizer: any sequence of steps, snapshots, files, copies and changes."""

import copy
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from life_model import Model
from twin_state import decode_8bit, from_bfloat16

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* was converted:UserWarning"),
]
SHAPES = [[(2, 3), (1,)], [(5,), (), (0, 2)]]
# Some hundred times the rounding error of the compute type.
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
COARSE = {None: 0.0, "float32": 0.0, "bfloat16": 2.0**-7, "8bit": 0.04}

SEEDS = st.integers(0, 10**6)
HYPERS = {
    "lr": st.sampled_from([0.0, 1e-3, 0.05]),
    # Never so small that v is lost in what is before or after it: then m / sqrt(v) has no bound.
    "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.9, 0.999])),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
}
CHANGEABLE = {
    "max_grad_norm": st.sampled_from([None, 0.5, 100.0]),
    "skip_nonfinite": st.booleans(),
    "maximize": st.booleans(),
    "num_threads": st.sampled_from([None, 1, 2]),
}


def stored_moments(entry, shape, order):
    """m, v and v_max as numbers, by the formats' own description."""
    if "m_scale" in entry:
        found = dict(zip("mv", decode_8bit(entry), strict=True))
    else:
        roles = [role for role in ("m", "v", "v_max") if role in entry]
        is_short = entry["m"].dtype == np.uint16
        found = {r: from_bfloat16(entry[r]) if is_short else entry[r] for r in roles}
    flat = "order" in entry
    return {
        role: np.asarray(x.reshape(shape, order=order) if flat else x, np.float64)
        for role, x in found.items()
    }


class Life(RuleBasedStateMachine):
    @initialize(
        dtype=st.sampled_from([np.float32, np.float64]),
        order=st.sampled_from("CF"),
        amsgrad=st.booleans(),
        ema_decay=st.sampled_from([None, 0.9]),
        state_dtype=st.sampled_from(list(COARSE)),
        seed=SEEDS,
    )
    def construct(self, dtype, order, amsgrad, ema_decay, state_dtype, seed):
        rng = np.random.default_rng(seed)
        self.dtype, self.order = dtype, order
        self.state_dtype = None if dtype is np.float64 else state_dtype
        if self.state_dtype == "8bit":
            amsgrad = False
        params = [
            [np.asarray(rng.standard_normal(s), dtype, order=order) for s in shapes]
            for shapes in SHAPES
        ]
        hypers = [
            {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01} for _ in SHAPES
        ]
        self.fixed = {"amsgrad": amsgrad, "ema_decay": ema_decay}
        options = self.fixed | {"max_grad_norm": None, "skip_nonfinite": False, "maximize": False}
        self.model = Model(params, hypers, options)
        self.opt = self.another(params)
        self.saved = None

    def another(self, params, state_dtype=None):
        """A new optimizer over these parameters, with hyper-parameters that are the model's."""
        groups = [{"params": p, **h} for p, h in zip(params, self.model.hypers, strict=True)]
        changeable = {k: self.model.options[k] for k in ("max_grad_norm", "skip_nonfinite")}
        return AdamW(
            groups,
            **self.fixed,
            **changeable,
            maximize=self.model.options["maximize"],
            state_dtype=state_dtype or self.state_dtype,
        )

    def params(self):
        return [group["params"] for group in self.opt.param_groups]

    def empty(self):
        """Parameters that are not those of the model."""
        return [[np.full_like(p, 7) for p in group] for group in self.params()]

    # ---- steps

    @rule(seed=SEEDS, missing=st.sets(st.integers(0, 4)), scale=st.sampled_from([1.0, 0.125]))
    def step(self, seed, missing, scale):
        grads = self.draw(seed)
        tensors = [(g, i) for g, group in enumerate(grads) for i in range(len(group))]
        for n in missing:
            g, i = tensors[n]
            grads[g][i] = None
        self.take(grads, scale)

    @precondition(lambda self: self.model.options["skip_nonfinite"])
    @rule(seed=SEEDS, value=st.sampled_from([np.nan, np.inf]))
    def step_that_is_skipped(self, seed, value):
        grads = self.draw(seed)
        grads[0][0][1, 2] = value
        self.take(grads, 1.0)

    def draw(self, seed):
        rng = np.random.default_rng(seed)
        size = 10.0 ** rng.uniform(-3, 1)
        return [[np.array(rng.standard_normal(s) * size, self.dtype) for s in x] for x in SHAPES]

    def take(self, grads, scale):
        exact = [[None if g is None else g.astype(np.float64) for g in x] for x in grads]
        expected = self.model.step(exact, scale)
        found = self.opt.step(grads, scale)
        if expected is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    @rule(seed=SEEDS)
    def step_that_is_refused(self, seed):
        grads = self.draw(seed)
        grads[1][0] = grads[1][0][:-1]
        with pytest.raises(ValueError, match="grads"):
            self.opt.step(grads)

    # ---- changes

    @rule(group=st.integers(0, 1), changes=st.fixed_dictionaries({}, optional=HYPERS))
    def change_hyperparameters(self, group, changes):
        self.opt.param_groups[group].update(changes)
        self.model.hypers[group].update(changes)

    @rule(changes=st.fixed_dictionaries({}, optional=CHANGEABLE))
    def change_options(self, changes):
        for name, value in changes.items():
            setattr(self.opt, name, value)
        changes.pop("num_threads", None)
        self.model.options.update(changes)

    @precondition(lambda self: self.model.options["ema_decay"] is not None)
    @rule(decay=st.sampled_from([0.0, 0.5, 0.99]))
    def change_ema_decay(self, decay):
        self.opt.ema_decay = self.model.options["ema_decay"] = self.fixed["ema_decay"] = decay

    # ---- copies

    @rule(how=st.sampled_from([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]))
    def copy(self, how):
        old, self.opt = self.opt, how(self.opt)
        old.step(self.draw(0))  # it shares nothing with the copy

    @rule()
    def state_dict_round_trip(self):
        saved, params = self.opt.state_dict(), copy.deepcopy(self.params())
        self.opt.step(self.draw(1))  # which the snapshot does not see
        self.opt = AdamW([{"params": p} for p in params], **self.kinds())
        self.opt.load_state_dict(saved, convert=False)

    @rule()
    def checkpoint_round_trip(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            save_checkpoint(path, self.opt, extra={"t": self.opt.t})
            self.opt = AdamW([{"params": p} for p in self.empty()], **self.kinds())
            extra = load_checkpoint(path, self.opt, convert=False)
        assert extra == {"t": self.model.t}

    def kinds(self):
        """The options that a snapshot does not set."""
        return self.fixed | {"state_dtype": self.state_dtype}

    @precondition(lambda self: self.dtype is np.float32)
    @rule(state_dtype=st.sampled_from(list(COARSE)), by_file=st.booleans())
    def convert(self, state_dtype, by_file):
        if self.fixed["amsgrad"] and state_dtype == "8bit":
            return
        self.state_dtype = state_dtype
        other = AdamW([{"params": p} for p in self.empty()], **self.kinds())
        if by_file:
            with tempfile.TemporaryDirectory() as folder:
                save_checkpoint(Path(folder) / "run", self.opt)
                load_checkpoint(Path(folder) / "run", other)
        else:
            for new, old in zip(other.param_groups, self.opt.param_groups, strict=True):
                for p, q in zip(new["params"], old["params"], strict=True):
                    p[...] = q
            other.load_state_dict(self.opt.state_dict())
        self.opt = other

    # ---- what is true after each of them

    @invariant()
    def numbers_are_those_of_the_model(self):
        if not hasattr(self, "opt"):
            return
        assert self.opt.t == self.model.t
        for name, value in self.model.options.items():
            assert getattr(self.opt, name) == value, name
        for group, hyper in zip(self.opt.param_groups, self.model.hypers, strict=True):
            assert {k: x for k, x in group.items() if k != "params"} == hyper

    @invariant()
    def arrays_are_those_of_the_model(self):
        if not hasattr(self, "opt"):
            return
        params = [p for group in self.params() for p in group]
        entries = self.opt.state_dict()["state"].values()
        for p, entry, model in zip(params, entries, self.model.all_tensors(), strict=True):
            assert entry["step"] == model.t
            order = "C" if p.flags.c_contiguous else "F"
            found = {"p": p, **stored_moments(entry, p.shape, order)}
            if self.fixed["ema_decay"] is not None:
                average = entry["ema"]
                found["ema"] = (
                    average.reshape(p.shape, order=order) if average.ndim < 2 else average
                )
            for role, values in found.items():
                self.compare(role, np.asarray(values, np.float64), model)
            if COARSE[self.state_dtype]:  # the next step starts from what is stored
                for role in found.keys() & {"m", "v", "v_max"}:
                    setattr(model, role, found[role])

    def compare(self, role, values, model):
        expected, tolerance = getattr(model, role), TOLERANCE[self.dtype]
        coarse = COARSE[self.state_dtype]
        if role in ("p", "ema"):
            allowed = tolerance * model.moved
        elif role == "m":
            allowed = tolerance * model.size + coarse * np.abs(expected)
        else:
            allowed = (tolerance + coarse) * expected
        if self.state_dtype == "8bit" and role in "mv" and values.size:
            root = np.sqrt(model.v)
            if role == "v":  # its root is stored, as a multiple of that of the largest
                values, expected, allowed = np.sqrt(values), root, coarse * root.max()
            else:  # its ratio to the root
                ratio = np.abs(model.m) / np.where(root > 0, root, 1)
                allowed = coarse * ratio.max() * root.max()
        assert np.all(np.abs(values - expected) <= allowed + 1e-30), (role, values, expected)


PROFILES = {"ci": (60, 20), "nightly": (600, 50)}
EXAMPLES, STEPS = PROFILES[os.environ.get("HYPOTHESIS", "ci")]

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    suppress_health_check=list(HealthCheck),
)
