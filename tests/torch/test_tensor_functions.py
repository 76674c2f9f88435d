"""What PyTorch's C functions tell of tensors, and steps without these functions."""

import ctypes
from types import SimpleNamespace

import pytest
from processes import run_python

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw import _core  # noqa: E402
from fused_adamw._torch import dispatch, tensor_functions  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

TYPES = (torch.Tensor, torch.nn.Parameter)
WITHOUT = _core.DLPackExchange(*TYPES, is_negated=torch.Tensor.is_neg)
HOW = tensor_functions.exchange_arguments()
ASKING, MISTAKEN = (
    _core.DLPackExchange(*TYPES, is_negated=torch.Tensor.is_neg, **HOW | {"shape_at": place})
    for place in (0, HOW["shape_at"] - 24)  # which is beside a word that is 0
)
UNCOUNTED = _core.DLPackExchange(*TYPES, is_negated=torch.Tensor.is_neg, **HOW | {"version_at": 0})
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


MATRICES = {
    "plain": lambda x: x,
    "transposed": lambda x: x.t(),
    "part": lambda x: x[1:4],
    "with gaps": lambda x: x[:, 1:3],
    "negated": torch._neg_view,
    "channels last": lambda x: x.view(1, 2, 3, 5).to(memory_format=torch.channels_last),
    "one number": lambda x: x.sum(),
    "empty": lambda x: x[:0],
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "integers": lambda x: x.to(torch.int32),
    "six dimensions": lambda x: x[:, None, None, None, None],
    "six dimensions with gaps": lambda x: x[:, None, None, None, None, ::2],
}
DENSE = ("plain", "part", "one number", "empty", "six dimensions")


def prepare(step, param):
    state = torch.zeros(param.shape, dtype=param.dtype)
    entry = {"step": torch.tensor(0.0), "exp_avg": state, "exp_avg_sq": state.clone()}
    hyper = (0.1, (0.9, 0.999), 1e-8, 0.01, dispatch.NO_RATES)
    assert step.prepare([param], {param: entry}, hyper, maximize=False, num_threads=1)


def prepared(exchange, param):
    """A step of one parameter, prepared."""
    step = _core.PreparedStep(exchange, {"m": "exp_avg", "v": "exp_avg_sq"})
    prepare(step, param)
    return step


def unsupported(exchange, param, grad):
    """Whether a parameter is left to PyTorch."""
    param.grad = grad
    return prepared(exchange, param).unsupported


def test_this_version_of_pytorch_has_the_functions():
    assert set(tensor_functions.addresses()) == set(tensor_functions._NAMES)
    place = tensor_functions.shape_at()
    assert place > tensor_functions.version_at(place) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_they_accept_what_dlpack_accepts(name, dtype):
    param = MATRICES[name](torch.randn(6, 5).to(dtype)).detach()
    grad = param.clone()
    found = unsupported(dispatch.EXCHANGE, param, grad)
    assert found == unsupported(WITHOUT, param, grad)
    assert (found == []) == (name in DENSE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_what_they_have_said_is_used_for_tensors_of_the_same_kind_only(name, dtype):
    step = _core.PreparedStep(dispatch.EXCHANGE, {"m": "exp_avg", "v": "exp_avg_sq"})
    known = torch.zeros(6, 5, dtype=dtype)
    known.grad = known.clone()
    param = MATRICES[name](torch.randn(6, 5).to(dtype)).detach()
    param.grad = param.clone()
    for _ in range(2):
        prepare(step, known)
        assert step.unsupported == []
        prepare(step, param)
        assert (step.unsupported == []) == (name in DENSE)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"state_dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_steps_without_them_have_the_same_bits(monkeypatch, options, dtype):
    results = []
    for exchange in (dispatch.EXCHANGE, ASKING, MISTAKEN, WITHOUT):
        monkeypatch.setattr(dispatch, "EXCHANGE", exchange)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, 3).to(dtype)) for n in range(20)]
        opt = AdamW(params, lr=0.1, **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape).to(dtype)
            opt.step()
        results.append([p.detach() for p in params])
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(x, tensors[0]) for x in tensors)


def test_tensors_of_many_kinds(monkeypatch):
    """More than are kept."""
    results = []
    for exchange in (dispatch.EXCHANGE, ASKING, MISTAKEN, WITHOUT):
        monkeypatch.setattr(dispatch, "EXCHANGE", exchange)
        torch.manual_seed(0)
        images = torch.randn(2, 3, 4, 5)
        last, volumes = torch.channels_last, torch.channels_last_3d
        shapes = [images, images.to(memory_format=last), images[:, :1].to(memory_format=last)]
        shapes += [images[None].to(memory_format=volumes), images[0, 0].t(), images[0, 0, 0, 0]]
        shapes += [images[:, :, None, None], images[:, :, :1, :1].contiguous(), images[:0]]
        params = [torch.nn.Parameter(x.to(d, copy=True)) for d in DTYPES for x in shapes]
        opt = AdamW(params, lr=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            opt.step()
        assert opt.last_path[0].path == "kernels"
        results.append(params)
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(x, tensors[0]) for x in tensors)


@pytest.mark.parametrize("exchange", [dispatch.EXCHANGE, ASKING, UNCOUNTED, WITHOUT])
def test_each_step_counts_a_version(monkeypatch, exchange):
    monkeypatch.setattr(dispatch, "EXCHANGE", exchange)
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    for p in params[:2]:
        p.grad = torch.ones(3)
    opt = AdamW(params)
    before = [p._version for p in params]
    for _ in range(4):
        opt.step()
    steps = [p._version - version for p, version in zip(params, before, strict=True)]
    assert steps == [4, 4, 0]


WITHOUT_VERSION = """
import torch
from fused_adamw.torch import AdamW

def made_in_inference_mode():
    with torch.inference_mode():
        p = torch.ones(3)
    p.data = torch.ones(3)  # memory of a tensor that has a version
    return p

def steps(opt):
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones(3)
    try:
        opt.step()
    except RuntimeError as error:
        print(str(error).split(" tensor ")[0])
    else:
        print(opt.last_path[0].path)

for cls in (torch.optim.AdamW, AdamW):
    opt = cls([torch.ones(3), made_in_inference_mode()])
    for _ in range(3):
        steps(opt)
opt = AdamW([torch.ones(3), torch.ones(3)])
for _ in range(2):
    steps(opt)
torch.utils.swap_tensors(opt.param_groups[0]["params"][1], made_in_inference_mode())
for _ in range(2):
    steps(opt)
"""


def test_a_parameter_whose_version_cannot_be_counted():
    """PyTorch raises RuntimeError once it has updated it."""
    errors = ["Inplace update to inference"] * 2
    assert run_python(WITHOUT_VERSION).stdout.split("\n")[:-1] == [
        *errors * 3,
        "kernels",
        "kernels",
        *errors,
    ]


@pytest.mark.parametrize("derived", [False, True], ids=["Parameter", "a derived class"])
def test_gradients_that_a_class_computes_are_those_of_the_step(monkeypatch, derived):
    cls = type("Derived", (torch.nn.Parameter,), {}) if derived else torch.nn.Parameter
    param = cls(torch.zeros(3))
    param.grad = torch.full((3,), float("nan"))
    computed = property(lambda _: torch.ones(3), lambda *_: None)
    monkeypatch.setattr(cls, "grad", computed, raising=False)
    exchange = _core.DLPackExchange(torch.Tensor, cls, is_negated=torch.Tensor.is_neg)
    assert torch.equal(prepared(exchange, param).grads()[0], torch.ones(3))


@pytest.mark.parametrize("name", tensor_functions._NAMES)
def test_where_one_answers_otherwise_none_is_used(monkeypatch, name):
    symbol, load = tensor_functions._NAMES[name], ctypes.CDLL
    wrong = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: 0)

    class Library(SimpleNamespace):
        def __getitem__(self, found):
            return wrong if found == symbol else self.real[found]

    fake = SimpleNamespace(**vars(ctypes))
    fake.CDLL = lambda path: Library(real=load(path))
    monkeypatch.setattr(tensor_functions, "ctypes", fake)
    assert tensor_functions.addresses() == {}


@pytest.mark.parametrize(
    ("name", "value"), [("_INLINE", 4), ("_kind", lambda place, x: (place, x.dim()))]
)
def test_where_a_description_has_other_members_they_are_asked(monkeypatch, name, value):
    monkeypatch.setattr(tensor_functions, name, value)
    assert tensor_functions.shape_at() == 0


def test_where_a_description_has_other_members_versions_are_counted_in_python(monkeypatch):
    assert tensor_functions.exchange_arguments()["version_at"] == HOW["version_at"]
    monkeypatch.setattr(tensor_functions, "_INLINE", 4)
    assert tensor_functions.exchange_arguments()["version_at"] == 0


def test_where_an_object_has_other_members_none_is_asked(monkeypatch):
    monkeypatch.setattr(tensor_functions, "OFFSET", tensor_functions.OFFSET - 8)
    monkeypatch.setattr(tensor_functions, "_is_right", lambda *_: True)
    monkeypatch.setattr(tensor_functions, "_counts_versions", lambda *_: True)
    monkeypatch.setattr(tensor_functions, "_tells_apart", lambda *_: True)
    assert tensor_functions.addresses() == {}


def test_where_there_is_no_library_none_is_used(monkeypatch):
    monkeypatch.setattr(tensor_functions, "_LIBRARIES", ())
    assert tensor_functions.addresses() == {}


IMPORT_ELSEWHERE = """
import torch
torch.set_default_device("meta")
from fused_adamw import offload, torch as ours
torch.set_default_device("cpu")
for size in (3, 0):
    p = torch.nn.Parameter(torch.ones(size))
    opt = ours.AdamW([p], state_dtype="float32")
    p.grad = torch.ones_like(p)
    opt.step()
    print(opt.last_path[0].path)
"""


def test_the_default_device_at_the_import_does_not_matter():
    """The package learns from tensors of its own what those in host memory look like."""
    assert run_python(IMPORT_ELSEWHERE).stdout == "kernels\nkernels\n"
