"""Which data to train on: a race of candidates within a budget, and a guess before training.

The rules of a race, which work on numbers alone, are in `sft_jax.study`; this room runs them.
"""
