"""Controlled supervised fine-tuning at scale, in JAX."""
