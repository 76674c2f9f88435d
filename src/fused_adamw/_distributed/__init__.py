"""Sharding over MPI: what ShardedAdamW is made of."""
