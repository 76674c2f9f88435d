"""Sharding over MPI: partition, collectives and consistency checks. ``mpi.py`` imports mpi4py."""
