"""The text of `fused-adamw explain`: one file a section. It prints what `explain/` has computed."""
