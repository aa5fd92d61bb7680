"""Passes over the graphs of traces, one a file, here in the order in which they are applied.

``remove_writes`` and ``append`` make one graph without side effects of two traces; ``fold_scales``,
``lower_precision`` and ``channels_last`` make products cheaper; ``split`` takes the graph apart, and applies ``fuse``
to each part.
"""
