"""Raises an ImportError where PyTorch is missing or too old: imported before all that uses it."""

LOWEST = "2.10"  # as in the extra [torch]


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers: PyTorch's own comparison has 2.10.0a0 below 2.10."""
    return tuple(map(int, version.split(".")[:2]))


def _require_pytorch() -> None:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":  # PyTorch is there, and lacks something itself
            raise
        raise ModuleNotFoundError(
            f"optimizers for PyTorch tensors require PyTorch {LOWEST} or later: "
            f'pip install "fused-adamw[torch]" ({error})',
            name=error.name,
        ) from None
    if _release(torch.__version__) < _release(LOWEST):
        raise ImportError(
            f"PyTorch must be {LOWEST} or later; got {torch.__version__}: "
            'pip install "fused-adamw[torch]"',
            name="torch",
        )


_require_pytorch()
