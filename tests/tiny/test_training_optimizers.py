"""The optimizers that the training loop drives, and their schedules."""

import math

import numpy as np
import pytest
from tiny_training import assert_same_parameters, make_optimizer, trained

from fused_adamw.tiny import SGD, TARGETS, TOKENS, ReferenceAdamW, TinyTransformer
from fused_adamw.tiny.train_loop import ScheduleName, make_schedule, reference_step_seconds


def test_fused_and_reference_agree():
    model, history = trained("AdamW", lr=0.002, weight_decay=0.1)
    other, reference_history = trained("ReferenceAdamW", lr=0.002, weight_decay=0.1)
    # The two round differently, by an ulp or so of a step, and the training passes it on: 1e-15 has
    # been seen after 20 steps. The slack is for other math libraries, whose noise a small gradient
    # magnifies; a weight decay that is off by a thousandth differs by 4e-6.
    for name, parameter in model.parameters.items():
        np.testing.assert_allclose(parameter, other.parameters[name], rtol=0, atol=1e-11)
    np.testing.assert_allclose(history.losses, reference_history.losses, rtol=0, atol=1e-11)


def test_float32_follows_float64():
    _, history = trained(dtype=np.float32)
    _, double = trained(dtype=np.float64)
    # Roundings of 6e-8 in every operation; 1e-7 has been seen after 20 steps.
    np.testing.assert_allclose(history.losses, double.losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sgd_subtracts_the_scaled_gradient(dtype):
    fresh = TinyTransformer(dtype=dtype)
    _, grads = fresh.loss_and_gradients(TOKENS, TARGETS)
    model, _ = trained("SGD", steps=1, lr=0.25, dtype=dtype)
    expected = {name: p - dtype(0.25) * grads[name] for name, p in fresh.parameters.items()}
    for name, parameter in model.parameters.items():
        np.testing.assert_array_equal(parameter, expected[name], err_msg=name)
    assert all(parameter.dtype == dtype for parameter in model.parameters.values())


BASELINES = [lambda p: SGD(p, 0.1), lambda p: ReferenceAdamW(p, 0.1, 0.0)]
AN_ARRAY = "must be a NumPy array of float32 or float64; got"
MASKED = np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False])


@pytest.mark.parametrize("make", BASELINES)
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"w": np.ones(2)}, ValueError, r"grads must have the names \['w', 'b'\]; got \['w'\]"),
        (
            {"w": np.ones(2), "b": np.ones(3), "c": np.ones(1)},
            ValueError,
            "grads must have the names",
        ),
        (
            {"w": np.ones(2), "b": np.ones(1)},
            ValueError,
            r"grads\['b'\] must have shape \(3,\); got \(1,\)",
        ),
        ({"w": np.ones(2), "b": [1.0] * 3}, TypeError, rf"grads\['b'\] {AN_ARRAY} list"),
        ({"w": np.ones(2), "b": MASKED}, TypeError, rf"grads\['b'\] {AN_ARRAY} MaskedArray"),
        (
            {"w": np.ones(2), "b": np.ones(3, complex)},
            TypeError,
            rf"grads\['b'\] {AN_ARRAY} dtype complex128",
        ),
        ([np.ones(2), np.ones(3)], TypeError, "grads must be a mapping of arrays; got list"),
    ],
)
def test_wrong_gradients_change_nothing(make, grads, error, message):
    parameters = {"w": np.ones(2), "b": np.ones(3)}
    optimizer = make(parameters)
    with pytest.raises(error, match=f"^{message}"):
        optimizer.step(grads)
    assert (parameters["w"] == 1).all()
    assert (parameters["b"] == 1).all()
    assert getattr(optimizer, "t", 0) == 0


@pytest.mark.parametrize("make", BASELINES)
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (np.ones(3), TypeError, "parameters must be a mapping of arrays; got ndarray"),
        ({"w": np.ones(3, int)}, TypeError, rf"parameters\['w'\] {AN_ARRAY} dtype int64"),
        ({"w": np.ones(3, np.float16)}, TypeError, rf"parameters\['w'\] {AN_ARRAY} dtype float16"),
        ({"w": MASKED}, TypeError, rf"parameters\['w'\] {AN_ARRAY} MaskedArray"),
        ({"w": np.broadcast_to(1.0, 3)}, ValueError, r"parameters\['w'\] must be writable"),
    ],
)
def test_parameters_that_no_step_could_update(make, parameters, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make(parameters)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: SGD({}, x), "lr"),
        (lambda x: ReferenceAdamW({}, x, 0.0), "lr"),
        (lambda x: ReferenceAdamW({}, 0.1, x), "weight_decay"),
    ],
)
def test_rates_of_the_baselines(make, name):
    for value, error in ((-1, ValueError), (math.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=f"^{name} must be .*, 0 or more; got"):
            make(value)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_threads_change_no_bit(num_threads):
    model, history = trained(num_threads=num_threads)
    expected, default = trained()
    assert history.losses == default.losses
    assert_same_parameters(model, expected)


def test_weight_decay_reaches_both_optimizers():
    for name in ("AdamW", "ReferenceAdamW"):
        (with_decay, _), (without, _) = (trained(name, 1, weight_decay=w) for w in (10.0, 0.0))
        shrunk = without.parameters["gamma"] - 0.001 * 10.0  # gamma starts at 1
        # Two subtractions near 1 round twice.
        np.testing.assert_allclose(with_decay.parameters["gamma"], shrunk, rtol=4e-16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay"),
        ({"lr": 0.1, "num_threads": 0}, "num_threads"),
    ],
)
def test_bad_options_are_refused_before_the_training(options, message):
    model = TinyTransformer()
    with pytest.raises(ValueError, match=message):
        make_optimizer("AdamW", model.parameters, **options)
    assert_same_parameters(model, TinyTransformer())


def test_a_constant_rate_is_a_plain_number():
    model = TinyTransformer()
    schedule = make_schedule(ScheduleName.CONSTANT, 0.1, 0, 10)
    optimizer = make_optimizer("AdamW", model.parameters, 0.1, schedule=schedule)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", ScheduleName)
@pytest.mark.parametrize("warmup", [1, 4, 9])
def test_schedules_rise_to_the_rate_and_never_above(name, warmup):
    schedule = make_schedule(name, 0.1, warmup, 10)
    rates = [schedule(t) for t in range(1, 11)]
    assert rates[warmup - 1] == rates[warmup] == max(rates) == 0.1
    assert rates[:warmup] == pytest.approx([0.1 * t / warmup for t in range(1, warmup + 1)])
    assert schedule(11) == (0.1 if name is ScheduleName.CONSTANT else 0)


def test_timing_the_reference_changes_nothing():
    model = TinyTransformer()
    assert reference_step_seconds(model, (TOKENS, TARGETS), 0.1, 0.1, repeats=1) > 0
    assert_same_parameters(model, TinyTransformer())


def test_a_diverging_training_reaches_its_end():
    with np.errstate(over="raise", invalid="raise"):  # the loop lets them pass
        _, history = trained("SGD", steps=12, lr=1e10)
    assert history.steps == 12
    assert not math.isfinite(history.losses[-1])
