"""Runs: what they are, how they are carried out, and where they are kept."""
