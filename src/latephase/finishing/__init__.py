"""Ending a training in one call: several strategies are tried, and the budget goes to the one that promises most."""
