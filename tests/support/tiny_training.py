"""Trainings of the tiny transformer on its sentence."""

import itertools

import numpy as np

from fused_adamw.tiny import SGD, TARGETS, TOKENS, ReferenceAdamW, TinyTransformer, train
from fused_adamw.tiny.launch import Processes

SENTENCE = itertools.repeat((TOKENS, TARGETS))
OPTIMIZERS = ("AdamW", "ReferenceAdamW", "SGD")


def make_optimizer(name, parameters, lr, weight_decay=0.01, **options):
    if name == "SGD":
        return SGD(parameters, lr)
    if name == "ReferenceAdamW":
        return ReferenceAdamW(parameters, lr, weight_decay)
    return Processes().make_adamw(parameters, lr, weight_decay=weight_decay, **options)


def trained(name="AdamW", steps=20, lr=0.001, dtype=np.float64, **options):
    model = TinyTransformer(seed=42, dtype=dtype)
    optimizer = make_optimizer(name, model.parameters, lr, **options)
    return model, train(model, optimizer, SENTENCE, steps)


def assert_same_parameters(model, other):
    for name, parameter in model.parameters.items():
        np.testing.assert_array_equal(parameter, other.parameters[name], err_msg=name)
