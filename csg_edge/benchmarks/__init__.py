"""Latency of a bundle's engines on the machine at hand, by MLCommons LoadGen, in fresh processes."""
