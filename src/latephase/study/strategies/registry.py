"""The package's strategies: a new one is a new file, and its name here."""

from importlib import import_module

from latephase.study.strategies.strategy import Declaration

# In the order in which a study takes them.
FILES = ("first_order", "adam_cosine", "muon", "swa", "lbfgs", "scipy_lbfgs", "ssbroyden", "hf")

DECLARATIONS: tuple[Declaration, ...] = tuple(
    declaration for file in FILES for declaration in import_module(f"{__package__}.{file}").DECLARATIONS
)
