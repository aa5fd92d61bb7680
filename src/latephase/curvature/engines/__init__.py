"""Ways to compute products at one point."""
