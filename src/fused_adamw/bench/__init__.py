"""The comparison of AdamW implementations that ``fused-adamw bench`` and ``benches/`` share."""
