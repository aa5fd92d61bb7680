"""The package's strategies: a new one is a new file, and its name here."""

from importlib import import_module

from latephase.strategies.strategy import Declaration

# In the order in which a study takes them.
FILES = (
    "latephase.strategies.first_order",
    "latephase.strategies.adam_cosine",
    "latephase.strategies.muon",
    "latephase.strategies.kfac",
    "latephase.strategies.swa",
    "latephase.strategies.lbfgs",
    "latephase.study.strategies.scipy_lbfgs",
    "latephase.study.strategies.ssbroyden",
    "latephase.strategies.hf",
    "latephase.study.strategies.finish",
)

DECLARATIONS: tuple[Declaration, ...] = tuple(
    declaration for file in FILES for declaration in import_module(file).DECLARATIONS
)
