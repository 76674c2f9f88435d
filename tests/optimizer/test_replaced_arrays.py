"""Arrays that are replaced, or become read-only, after they were passed: refused, not lost."""

import copy
import pickle
from collections import UserDict
from collections.abc import Sequence

import numpy as np
import pytest
from optimizers import draw, leaves

from fused_adamw import AdamW, fused_adamw
from fused_adamw._core import ParamSources, TreeSpec
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint


class ListOfArrays(Sequence):
    """A sequence that is no list."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def replaced(container, key):
    def replace():
        container[key] = container[key] * 2

    return replace


def flat():
    params = {"w": np.ones(3), "b": np.ones(2)}
    return params, replaced(params, "b"), r"\['b'\]"


def in_a_list():
    params = [np.ones(3), np.ones(2)]
    return params, replaced(params, 0), r"\[0\]"


def nested():
    params = {"layers": [{"w": np.ones(3)}, {"w": np.ones(3)}], "head": (np.ones(2),)}
    return params, replaced(params["layers"][1], "w"), r"\['layers'\]\[1\]\['w'\]"


def a_whole_layer():
    params = {"layers": [{"w": np.ones(3)}, {"w": np.ones(3)}]}
    return params, replaced_layer(params["layers"]), r"\['layers'\]\[1\]\['w'\]"


def replaced_layer(layers):
    def replace():
        layers[1] = {"w": np.ones(3)}

    return replace


def other_mapping():
    params = UserDict(w=np.ones(3), b=np.ones(2))
    return params, replaced(params, "b"), r"\['b'\]"


def other_sequence():
    params = ListOfArrays([np.ones(3), np.ones(2)])
    return params, replaced(params.items, 1), r"\[1\]"


def removed():
    params = {"w": np.ones(3), "b": np.ones(2)}
    return params, lambda: params.pop("b"), r"\['b'\]"


def shortened():
    params = [np.ones(3), np.ones(2)]
    return params, params.pop, r"\[1\]"


def swapped():
    params = {"w": np.ones(3), "b": np.ones(3)}
    return params, lambda: params.update(w=params["b"], b=params["w"]), r"\['w'\]"


CONTAINERS = [
    *(flat, in_a_list, nested, a_whole_layer, other_mapping, other_sequence, removed, shortened),
    swapped,
]
OPERATIONS = {
    "step": lambda opt, grads, saved, path: opt.step(grads),
    "state_dict": lambda opt, grads, saved, path: opt.state_dict(),
    "load_state_dict": lambda opt, grads, saved, path: opt.load_state_dict(saved),
    "save": lambda opt, grads, saved, path: save_checkpoint(path, opt),
    "load": lambda opt, grads, saved, path: load_checkpoint(path, opt),
    "pickle": lambda opt, grads, saved, path: pickle.dumps(opt),
    "deepcopy": lambda opt, grads, saved, path: copy.deepcopy(opt),
}


def with_file(opt, tmp_path):
    """What OPERATIONS need."""
    path = tmp_path / "file"
    save_checkpoint(path, opt)
    return opt._spec.unflatten([np.ones(a.shape, a.dtype) for a in opt._arrays]), path


def contents(opt):
    state = [array.tobytes() for entry in opt._state for array in entry.arrays.values()]
    return opt.t, [array.tobytes() for array in opt._arrays], state


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_replaced_array_is_refused(container, operation, tmp_path):
    params, replace, where = container()
    opt = AdamW(params)
    grads, path = with_file(opt, tmp_path)
    opt.step(grads)
    saved, before, file = opt.state_dict(), contents(opt), path.read_bytes()
    replace()
    message = rf"param_groups\[0\]\['params'\]{where} must be the array that the optimizer was"
    with pytest.raises(ValueError, match=message):
        OPERATIONS[operation](opt, grads, saved, path)
    assert contents(opt) == before
    assert path.read_bytes() == file


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
def test_a_group_with_other_arrays_is_refused(operation, options, tmp_path):
    """With larger ones above all, as the state would be too short for them."""
    opt = AdamW(
        [{"params": [np.ones(3, np.float32)]}, {"params": np.ones(2, np.float32)}], **options
    )
    grads, path = with_file(opt, tmp_path)
    saved = opt.state_dict()
    kept = opt.param_groups[1]["params"]
    for wrong in (np.ones(2, np.float32), np.ones(5000, np.float32), [kept], None):
        opt.param_groups[1]["params"] = wrong
        with pytest.raises(ValueError, match=r"param_groups\[1\]\['params'\] must be the array"):
            OPERATIONS[operation](opt, grads, saved, path)
    opt.param_groups[1]["params"] = kept
    opt.step(grads)
    assert opt.t == 1


@pytest.mark.parametrize("grouped", [False, True])
def test_containers_may_have_more_and_be_reordered(grouped):
    params = {"w": np.ones(3), "b": np.ones(2)}
    opt = AdamW([{"params": params}] if grouped else params)
    grads = {"w": np.ones(3), "b": np.ones(2)}
    params["w"] = params.pop("w")
    params["statistics"] = "not a parameter"
    params["w"] *= 2  # in place
    opt.step([grads] if grouped else grads)
    assert opt.t == 1
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.names == opt.names
        other.step([grads] if grouped else grads)


def test_the_caller_may_pass_a_container_of_his_own():
    """The arrays are what counts, also where a group gets another container of them."""
    params = {"w": np.ones(3)}
    opt = AdamW(dict(params))
    params["w"] = np.zeros(3)
    opt.step({"w": np.ones(3)})
    opt.param_groups[0]["params"] = dict(opt.param_groups[0]["params"])
    opt.step({"w": np.ones(3)})
    assert opt.t == 2


# ---- read-only


def plain():
    return np.ones(4), {}


class Tagged(np.ndarray):
    """An array with attributes."""


def subclass():
    return np.ones(4).view(Tagged), {}


def low_precision():
    return np.ones(4, np.float32), {"state_dtype": "8bit"}


def in_fortran_order():
    return np.ones((2, 3), order="F"), {}


def bfloat16():
    return np.ones(4, pytest.importorskip("ml_dtypes").bfloat16), {"master_weights": True}


@pytest.mark.parametrize("make", [plain, subclass, low_precision, in_fortran_order, bfloat16])
@pytest.mark.parametrize("operation", ["step", "load_state_dict", "load"])
def test_an_array_that_became_read_only_is_not_written_to(make, operation, tmp_path):
    array, options = make()
    opt = AdamW({"first": np.ones(2, array.dtype), "w": array}, **options)
    grads, path = with_file(opt, tmp_path)
    opt.step(grads)
    saved, before = opt.state_dict(), contents(opt)
    array.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['w'\] must be writable"):
        OPERATIONS[operation](opt, grads, saved, path)
    assert contents(opt) == before
    assert save_checkpoint(path, opt) is None
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(opt, protocol)).t == 1
    array.flags.writeable = True
    opt.step(grads)
    assert opt.t == 2


def test_the_flag_is_found_in_each_kind_of_array():
    """Against NumPy's own answer, for arrays of every dimension and dtype."""
    for shape in [(), (0,), (3,), (2, 3), (1, 2, 3, 4)]:
        for dtype in (np.float32, np.float64, np.float16):
            array = np.ones(shape, dtype)
            sources = ParamSources(TreeSpec(array), array, ("params",))
            assert sources.check([{"params": array}], True) == 0
            array.flags.writeable = False
            with pytest.raises(ValueError, match="params must be writable"):
                sources.check([{"params": array}], True)
            assert sources.check([{"params": array}], False) == 0


# ---- containers that make their arrays


class Archive(UserDict):
    """As that of np.load, which reads an array at each access."""

    def __getitem__(self, key):
        return super().__getitem__(key).copy()


class Rows(ListOfArrays):
    def __getitem__(self, index):
        return self.items[index].copy()


MADE = {
    "mapping": (lambda arrays: Archive(zip("ab", arrays, strict=True)), r"\['a'\]"),
    "sequence": (Rows, r"\[0\]"),
    "nested": (lambda arrays: [Archive(a=arrays[0]), arrays[1]], r"\[0\]\['a'\]"),
    "in a tuple": (lambda arrays: (arrays[0], (Rows([arrays[1]]),)), r"\[1\]\[0\]\[0\]"),
}
MESSAGE = r"{}{} must return the same array on every access; got a new one"


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_container_that_makes_its_parameters_is_refused(case, grouped):
    make, where = MADE[case]
    params = make(draw([2, 3]))
    name = "params" + (r"\[0\]" if grouped else "")
    with pytest.raises(ValueError, match=MESSAGE.format(name, where)):
        AdamW([{"params": params}] if grouped else params)


@pytest.mark.parametrize("role", ["params", "m", "v"])
@pytest.mark.parametrize("case", MADE)
def test_the_function_refuses_containers_that_make_what_it_updates(case, role):
    make, where = MADE[case]
    arrays = {name: draw([2, 3], seed=k) for k, name in enumerate(("params", "grads", "m", "v"))}
    plain = {"mapping": lambda a: dict(zip("ab", a, strict=True)), "sequence": list}
    plain["nested"] = lambda a: [{"a": a[0]}, a[1]]
    plain["in a tuple"] = lambda a: (a[0], ([a[1]],))
    before = [array.tobytes() for array in leaves(list(arrays.values()))]
    given = {name: (make if name == role else plain[case])(x) for name, x in arrays.items()}
    with pytest.raises(ValueError, match=MESSAGE.format(role, where)):
        fused_adamw(**given, t=1)
    assert [array.tobytes() for array in leaves(list(arrays.values()))] == before


def test_an_archive_of_numpy_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.ones(3))
    with np.load(tmp_path / "w.npz") as archive, pytest.raises(ValueError, match="every access"):
        AdamW(archive)


def test_gradients_may_be_made_at_each_access():
    opt = AdamW({"a": np.ones(2), "b": np.ones(3)})
    opt.step(Archive(a=np.ones(2), b=np.ones(3)))
    assert opt.t == 1
