"""`python -m fused_adamw` is the command `fused-adamw`."""

from .cli import main

if __name__ == "__main__":
    main()
