"""Fixtures of the tests of checkpoints."""

import numpy as np
import pytest
from checkpoints import draw, trained

from fused_adamw import AdamW
from fused_adamw._io import checkpoint_convert, checkpoint_load, checkpoint_save
from fused_adamw.checkpoint import save_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def small(path):
    """A small file; an optimizer that it fits, in a different state; and the one that was saved."""
    source = trained({"w": draw((1, 3)), "b": draw(1, np.float64)}, 2, max_grad_norm=1.0)
    save_checkpoint(path, source, extra={"position": 3})
    return AdamW({"w": draw((1, 3), seed=7), "b": draw(1, np.float64, 8)}), source


@pytest.fixture(params=[None, 512], ids=["", "pieces of 512"])
def piece(request, monkeypatch):
    """Small pieces divide these small tensors too."""
    if request.param is not None:
        monkeypatch.setattr(checkpoint_convert, "PIECE_ELEMENTS", request.param)
        monkeypatch.setattr(checkpoint_save, "PIECE_ELEMENTS", request.param)
        monkeypatch.setattr(checkpoint_load, "PIECE_ELEMENTS", request.param)
