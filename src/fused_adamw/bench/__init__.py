"""The race of AdamW implementations: what `fused-adamw bench` and `benches/` share."""
