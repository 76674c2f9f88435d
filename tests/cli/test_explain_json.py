"""`fused-adamw explain --json`: the sections, with all digits."""

import pytest

BY_DEFAULT = ["adamw", "rates", "parameters", "forward", "backward"]


def test_json_has_the_sections(explain_json):
    found = explain_json()
    assert list(found) == BY_DEFAULT
    for section in BY_DEFAULT:
        assert explain_json(section) == {section: found[section]}


def test_json_has_all_digits(explain_json):
    found = explain_json()
    first = found["adamw"]["updates"][0]
    assert (first["theta_before"], first["gradient"]) == (0.024634, -0.352893)
    assert f"{first['theta']:.12f}" == "0.025633753632"
    assert found["adamw"]["kernel"]["theta"] == pytest.approx(first["theta"], rel=1e-15)
    assert found["adamw"]["model_updates"][0]["theta_before"] == 0.024634219521120198
    rates = {(row["step"], row["tensor"]): row for row in found["rates"]["by_tensor"]}
    assert rates.keys() == {
        (step, row["name"]) for step in (1, 10, 100, 500) for row in found["parameters"]["tensors"]
    }
    forward = found["forward"]
    assert forward["loss"] == pytest.approx(1.8298677505438041, rel=0, abs=2e-15)
    shapes = {name: len(forward[name]) for name in ("X", "Q", "logits", "targets")}
    assert shapes == {"X": 5, "Q": 2, "logits": 5, "targets": 4}
    assert forward["scores"][0][0][1:] == [None] * 4  # -infinity
    assert found["backward"]["gradient"] == found["adamw"]["model_updates"][0]["gradient"]
    assert found["parameters"]["total"] == 3456


@pytest.mark.usefixtures("tiny_scale")
def test_json_of_scale(explain_json):
    found = explain_json("scale")["scale"]
    assert {cost["model"] for cost in found["costs"] if cost["measured"]} == {"Tiny"}
    assert len(found["costs"]) == len(found["models"]) * len(found["bandwidths"])
