"""What curvature products and whole steps cost, in gradients, beside other libraries: `python -m benchmarks`."""
