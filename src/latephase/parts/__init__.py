"""The replaceable parts of Algorithm 1. They see vectors, callables and numbers, never modules or autograd."""
