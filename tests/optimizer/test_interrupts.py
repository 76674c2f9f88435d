"""Signal handlers that raise in an operation of ``AdamW``, and several threads on one optimizer."""

import pickle
import threading
from time import sleep

import numpy as np
import pytest
from alarms import assert_unlocked, attack

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

SHAPES = [(300,), (20, 30), (), (7,)] * 5


def draw(seed):
    rng = np.random.default_rng(seed)
    return [np.array(rng.standard_normal(shape), np.float32) for shape in SHAPES]


def made(**options):
    groups = [{"params": draw(0)[k::4], "lr": 0.1 / (k + 1)} for k in range(4)]
    return AdamW(groups, ema_decay=0.5, max_grad_norm=1.0, **options)


def gradients(seed):
    arrays = draw(seed)
    return [arrays[k::4] for k in range(4)]


def contents(opt):
    """Everything that an operation may change."""
    params = [p.tobytes() for p in opt._arrays]
    return params, frozen(opt.state_dict())


def frozen(x):
    """A state dict, to be compared."""
    if isinstance(x, dict):
        return {key: frozen(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [frozen(value) for value in x]
    return x.tobytes() if isinstance(x, np.ndarray) else x


def two_snapshots(opt, take):
    """What ``take`` returns at two steps, between which everything changes; and the contents."""
    found = []
    for step in range(2):
        opt.step(gradients(step))
        for group in opt.param_groups:
            group["lr"] *= 0.5
        opt.max_grad_norm = 1.0 + step
        opt.ema_decay = 0.5 + step / 4
        found.append((take(opt), contents(opt)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "8bit"}, {"state_dtype": "bfloat16", "amsgrad": True}]
)
def test_an_interrupted_load_state_dict_loads_all_or_nothing(options):
    opt = made(**options)
    found = two_snapshots(opt, lambda opt: opt.state_dict())
    states = [contents(opt)[1] for snapshot, _ in found if opt.load_state_dict(snapshot) is None]

    def check(_):
        assert_unlocked(opt)
        assert contents(opt)[1] in states

    attack([lambda s=s: opt.load_state_dict(s) for s, _ in found], check, 300)


@pytest.mark.slow
def test_an_interrupted_load_checkpoint_loads_all_or_nothing(tmp_path):
    opt = made()

    def take(opt):
        path = tmp_path / f"{opt.t}"
        save_checkpoint(path, opt)
        return path

    found = two_snapshots(opt, take)
    states = [state for _, state in found]

    def check(_):
        assert_unlocked(opt)
        assert contents(opt) in states

    attack([lambda path=path: load_checkpoint(path, opt) for path, _ in found], check, 200)


@pytest.mark.slow
def test_an_interrupted_step_is_taken_or_not_begun():
    opt, reference = made(), made()
    grads = gradients(1)

    def check(_):
        assert_unlocked(opt)
        while reference.t < opt.t:
            reference.step(grads)
        assert contents(opt) == contents(reference)

    attack([lambda: opt.step(grads)], check, 300)


@pytest.mark.slow
def test_an_interrupted_save_leaves_the_old_file_or_the_new_one(tmp_path):
    opt, path = made(), tmp_path / "file"
    save_checkpoint(path, opt)

    def save():
        opt.step(gradients(1))
        save_checkpoint(path, opt)

    def check(_):
        assert_unlocked(opt)
        load_checkpoint(path, made())
        assert [file.name for file in tmp_path.iterdir()] == ["file"]

    attack([save], check, 60)


# ---------------------------------------------------------------------------- threads


def in_threads(*works):
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_what_is_saved_while_another_thread_steps_is_of_one_step(tmp_path):
    opt, grads = made(), gradients(1)
    started, done, found = threading.Event(), threading.Event(), []

    def train():
        while not done.is_set():
            opt.step(grads)
            started.set()
            sleep(1e-4)  # the forward and backward passes

    def save():
        try:
            assert started.wait(60)
            for _ in range(20):
                save_checkpoint(tmp_path / "file", opt)
                other = made()
                load_checkpoint(tmp_path / "file", other)
                snapshot = opt.state_dict()
                found.append((other.t, contents(other), snapshot["t"], frozen(snapshot)))
            opt.load_state_dict(snapshot)
        finally:
            done.set()

    in_threads(train, save)
    reference = made()
    for saved_t, saved, snapshot_t, snapshot in found:
        for t, state in ((saved_t, saved), (snapshot_t, (None, snapshot))):
            while reference.t < t:
                reference.step(grads)
            params, of_state = contents(reference)
            assert reference.t == t
            assert state in ((params, of_state), (None, of_state))
    assert len({t for t, *_ in found}) > 1


@pytest.mark.slow
def test_steps_of_two_threads_are_whole():
    shapes = [(1 << 16,)]
    params, copies = ([np.zeros(s, np.float32) for s in shapes] for _ in range(2))
    grads = [np.ones(s, np.float32) for s in shapes]
    opt, reference = AdamW(params), AdamW(copies)

    def step():
        for _ in range(200):
            opt.step(grads)

    in_threads(step, step)
    for _ in range(400):
        reference.step(grads)
    assert opt.t == 400
    assert np.array_equal(params[0], copies[0])


@pytest.mark.slow
def test_a_file_can_be_loaded_though_a_thread_writes_to_the_parameters(tmp_path):
    params = {"w": np.zeros(1 << 20, np.float32)}
    opt, done = AdamW(params), []

    def write():
        while not done:
            params["w"] += 1

    def save():
        try:
            for _ in range(10):
                save_checkpoint(tmp_path / "file", opt)
                load_checkpoint(tmp_path / "file", AdamW({"w": np.zeros(1 << 20, np.float32)}))
        finally:
            done.append(True)

    in_threads(write, save)


def test_an_optimizer_with_its_lock_can_be_copied():
    opt = made()
    opt.step(gradients(1))
    copied = pickle.loads(pickle.dumps(opt))
    assert contents(copied) == contents(opt)
    copied.step(gradients(2))
    opt.step(gradients(2))
    assert contents(copied) == contents(opt)
