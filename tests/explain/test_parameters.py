"""The parameter table, and the bytes of state, against those of optimizers."""

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw.explain.parameters import explain_parameters
from fused_adamw.tiny import TinyTransformer


def test_names_order_and_counts():
    found = explain_parameters()
    assert [(row.title, row.count) for row in found.tensors] == [
        ("Token embeddings", 96),
        ("Position embeddings", 80),
        ("W_Q (2 heads)", 256),
        ("W_K (2 heads)", 256),
        ("W_V (2 heads)", 256),
        ("W_O", 256),
        ("FFN W_1", 1024),
        ("FFN b_1", 64),
        ("FFN W_2", 1024),
        ("FFN b_2", 16),
        ("Layer norm γ", 16),
        ("Layer norm β", 16),
        ("LM head W_lm", 96),
    ]
    assert (found.total, found.state_values) == (3456, 6912)
    assert sorted(row.name for row in found.tensors) == sorted(TinyTransformer().parameters)


def dtype_of(name):
    if name == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(name)


def test_bytes_of_state_are_those_of_an_optimizer():
    found = explain_parameters().storage
    assert len(found) == 16
    for row in found:
        parameters = TinyTransformer().parameters
        stored = {name: x.astype(dtype_of(row.params)) for name, x in parameters.items()}
        moments = None if row.params == "float64" else row.moments
        options = {"state_dtype": moments, "master_weights": row.master_weights}
        assert row.model_bytes == AdamW(stored, **options).state_nbytes, row
        block = np.zeros(256, dtype_of(row.params))
        assert row.bytes_per_parameter == AdamW([block], **options).state_nbytes / 256, row


def test_the_ways_of_storing_it():
    per_parameter = {
        (row.params, row.moments, row.master_weights): row.bytes_per_parameter
        for row in explain_parameters().storage
    }
    assert per_parameter["bfloat16", "float32", True] == 10
    assert per_parameter["bfloat16", "bfloat16", True] == 6
    assert f"{per_parameter['bfloat16', '8bit', True]:.2f}" == "4.03"
    assert per_parameter["float32", "float32", False] == 8
    assert per_parameter["float32", "bfloat16", False] == 4
    assert f"{per_parameter['float32', '8bit', False]:.2f}" == "2.03"
    assert not any(master for params, _, master in per_parameter if params.startswith("float3"))
