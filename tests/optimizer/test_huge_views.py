"""Views of more elements than memory has are refused."""

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("stride", [0, 4, 12])
def test_views_of_more_elements_than_memory(stride, options):
    """Refused before their state is made."""
    memory = np.ones(8, np.float32)
    huge = np.lib.stride_tricks.as_strided(memory, (10**12, 2), (stride, 4 if stride else 0))
    for params in (huge, [memory, huge], [{"params": [huge]}]):
        with pytest.raises(ValueError, match="contiguous"):
            AdamW(params, **options)
    with pytest.raises(ValueError, match="contiguous"):
        fused_adamw(huge, huge, huge, huge, 1)
    with pytest.raises(ValueError, match="shape"):
        fused_adamw(memory, huge, memory.copy(), memory.copy(), 1)
