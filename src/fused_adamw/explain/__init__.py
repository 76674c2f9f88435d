"""Every number of a training step of the tiny transformer, as `fused-adamw explain` prints them.

Each module computes one section; nothing here prints or parses.

    adamw       one parameter's updates, step by step
    rates       effective learning rates: of gradients by size, of the trained model
    parameters  the model's parameters, and the bytes of AdamW's state
    forward     from tokens to the loss
    backward    from the loss to the gradient that `adamw` takes
    scale       the same update for GPT-2, LLaMA 2 and GPT-3
"""
