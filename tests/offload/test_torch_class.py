"""The tests of ``fused_adamw.torch``, with the class of ``fused_adamw.offload``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", minversion="2.10")

TESTS = Path(__file__).parents[1]
OTHER_CLASS = {  # what differs, by test
    "test_signature": "the plugin's class takes any arguments",
    "test_profilers_see_a_step": "counts what PyTorch's class does in a step",
    "test_a_group_goes_down_in_one_call": "counts calls of the kernels",
    "test_groups_are_found_in_one_walk": "counts look-ups",
    "test_a_list_of_parameters_that_changes": "steps a copy of the list",
    "test_signal_handlers_within_a_step": "replaces a function of planned steps",
}
ON_DEVICES = {  # what differs for parameters on a device, by test or file
    "test_fallback_": "nothing falls back to PyTorch",
    "test_inspection": "nothing falls back to PyTorch",
    "test_nothing_is_left_to_pytorch": "other messages",
    "test_what_has_no_kernel": "other messages",
    "test_state_dtype_errors": "other messages",
    "test_masters_of_a_wrong_dtype": "other messages",
    "test_without_masters_nothing_changes": "16-bit parameters are not PyTorch's without options",
    "test_gradients_of_a_dtype_that_no_kernel_supports": "refused",
    "test_counters": "counters of new state are float32",
    "test_an_average_that_shares_memory": "with a parameter: not possible",
    "test_a_scale_of_any_size": "the kernels multiply by the inverse, in float32 parameters too",
    "test_state_is_made_where_the_parameter_is": "it is made on the host",
    "test_threads": "counts calls of the kernels",
    "test_plans": "counts calls, and what falls back to PyTorch",
    "test_what_a_step_cannot_use_is_named": "other messages",
    "test_state_that_a_step_adds_is_not_what_it_lacks": "other messages",
    "test_the_reason_names_what_differs_in_scales": "other messages",
    "test_codes_in_another_shape": "are stepped, in their order in memory",
    "test_tensors_that_are_not_divided_in_one_way": "other messages: test_shards.py has them",
    "test_moments_of_another_size_load_as_in_pytorch": "of another dtype they are refused",
    "test_wide_gradients": "gradients have the dtype of their parameter",
    "test_pytorch_s_own_update_takes": "nothing falls back to PyTorch",
    "test_parameters_without_state_and_without_a_kernel": "nothing falls back to PyTorch",
    "test_a_step_of_pytorch_counts": "nothing falls back to PyTorch",
}


def run(simulated, *arguments):
    paths = os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    if simulated:
        environment["FUSED_ADAMW_SIMULATED"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "offload_for_torch"]
    command += ["-p", "no:cacheprovider", str(TESTS / "torch"), "-m", "not slow", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return int(done.stdout.rstrip().split("\n")[-1].split(" passed")[0].split()[-1])


def test_on_the_host():
    assert run(False, "-k", f"not ({' or '.join(OTHER_CLASS)})") > 600


def test_on_a_device():
    names = " or ".join([*OTHER_CLASS, *ON_DEVICES])
    assert run(True, "-k", f"not ({names})") > 400
