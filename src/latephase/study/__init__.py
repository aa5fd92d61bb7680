"""Late-phase experiments: train, by default with SGD, then compare ways to spend the rest of the budget.

Needs the extra `latephase[study]`. The optimizer never imports this package.
"""
