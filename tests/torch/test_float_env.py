"""Steps of PyTorch's tensors in another floating-point environment: the bits of the default one."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from float_env import MODES, float_env, needs_fenv  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

pytestmark = needs_fenv


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("mode", MODES)
def test_bits_of_a_step(mode, options):
    def stepped(mode):
        torch.manual_seed(3)
        p = torch.randn(3 << 15).requires_grad_()
        p.grad = torch.randn(3 << 15)
        p.data[::3] *= 1e-39
        p.grad[1::3] *= 1e-20
        opt = AdamW([p], **options)
        opt.step()  # makes the state
        if mode is None:
            opt.step()
        else:
            with float_env(mode):
                opt.step()
        state = [x.numpy().tobytes() for x in opt.state[p].values()]
        return [p.detach().numpy().tobytes(), *state]

    assert stepped(mode) == stepped(None)
