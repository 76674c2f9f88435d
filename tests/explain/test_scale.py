"""Named models: parameters, state, and what is measured or computed. No step is timed."""

import sys

import pytest

from fused_adamw.explain import scale


@pytest.fixture
def small(monkeypatch):
    """Arrays of 2^10 parameters, and models of which the first fits in memory."""
    monkeypatch.setattr(scale, "SAMPLE_PARAMETERS", 2**10)
    monkeypatch.setattr(scale, "time_block", lambda step: step() or 0.5)
    models = (
        scale.NamedModel("small", "512", [(512,)]),
        scale.NamedModel("medium", "16 thousand", [(64, 256)]),
        scale.NamedModel("large", "1 trillion", [(10**12,)]),
    )
    monkeypatch.setattr(scale, "MODELS", models)
    monkeypatch.setattr(scale, "_fits", lambda: lambda nbytes: nbytes < 1e6)


def test_the_models():
    sizes = {model.name: (model.size, model.parameters) for model in scale.MODELS}
    # LLaMA 2: 80 layers of 8192, keys and values of 1024, feed-forward of 28672; 32000 tokens.
    attention = 2 * 8192**2 + 2 * 8192 * 1024
    block = attention + 3 * 8192 * 28672 + 2 * 8192
    # GPT: 12 width^2 and 13 width a layer, token and position embeddings, the last layer norm.
    gpt3 = 96 * (12 * 12288**2 + 13 * 12288) + (50257 + 2048) * 12288 + 2 * 12288
    assert sizes == {
        "GPT-2 Small": ("124 million", 124_439_808),
        "GPT-2 Large": ("774 million", 774_030_080),
        "LLaMA 2 70B": ("70 billion", 80 * block + 2 * 32000 * 8192 + 8192),
        "GPT-3 175B": ("175 billion", gpt3),
    }
    assert round(gpt3 / 1e9) == 175


def costs(found):
    return {(cost.model, cost.mix): cost for cost in found.costs}


@pytest.mark.usefixtures("small")
def test_what_fits_is_measured_and_the_rest_computed():
    pytest.importorskip("ml_dtypes")  # parameters of bfloat16 are measured
    found = scale.explain_scale()
    by_name = costs(found)
    assert {cost.model for cost in found.costs if cost.measured} == {"small", "medium"}
    assert all(cost.seconds == 0.5 for cost in found.costs if cost.measured)
    # 28 bytes a parameter: those of the medium one took half a second.
    large = by_name["large", "float32/float32"]
    assert (large.state_bytes, large.bytes_moved) == (8 * 10**12, 28 * 10**12)
    assert large.seconds == pytest.approx(0.5 * 10**12 / 16384)
    in_16_bits = by_name["large", "bfloat16+master/bfloat16"]
    assert (in_16_bits.state_bytes, in_16_bits.bytes_moved) == (6 * 10**12, 18 * 10**12)
    # One block of 256 more than the full ones has none here: 2 values of 1 byte, 2 scales a block.
    assert by_name["medium", "float32/8bit"].state_bytes == 2 * 16384 + 8 * 64
    assert {row.mix for row in found.bandwidths} == {cost.mix for cost in found.costs}
    assert all(row.measured and row.parameters == 16384 for row in found.bandwidths)


@pytest.mark.usefixtures("small")
def test_time_that_has_passed(monkeypatch):
    monkeypatch.setattr(scale, "MEASURING_SECONDS", -1.0)
    found = scale.explain_scale()
    assert not any(cost.measured for cost in found.costs)
    assert all(row.parameters == 2**10 for row in found.bandwidths)
    assert costs(found)["small", "float32/float32"].seconds == pytest.approx(0.25)


@pytest.mark.usefixtures("small")
def test_a_mix_that_this_machine_lacks(monkeypatch):
    available = {
        mix: traffic
        for mix, traffic in scale.available_mixes().items()
        if mix.param_dtype != "bfloat16"
    }
    monkeypatch.setattr(scale, "available_mixes", lambda: available)
    found = scale.explain_scale()
    float32, *_ = found.bandwidths
    for row in found.bandwidths:
        assert row.measured == (not row.mix.startswith("bfloat16"))
        if not row.measured:
            assert row.bytes_per_second == float32.bytes_per_second
    cost = costs(found)["small", "bfloat16/float32"]
    assert not cost.measured
    assert cost.seconds == pytest.approx(512 * 22 / float32.bytes_per_second)


def test_what_fits_where_psutil_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fused_adamw.bench.environment", None)
    monkeypatch.setattr(scale, "memory_bound", lambda: 1000)
    fits = scale._fits()
    assert (fits(499), fits(500)) == (True, False)


@pytest.mark.usefixtures("small")
def test_progress():
    calls = []
    scale.explain_scale(lambda *call: calls.append(call))
    totals = {total for _, _, total in calls}
    assert len(totals) == 1
    assert [done for _, done, _ in calls] == list(range(totals.pop() + 1))
    # The smallest model first.
    models = [label.partition(",")[0] for label, _, _ in calls if ", " in label]
    assert models == ["small"] * (len(models) // 2) + ["medium"] * (len(models) // 2)
