"""Finish the training of neural networks with a few precise second-order steps."""

from importlib.metadata import version

from latephase.drawing import batches
from latephase.finishing.amenability import Amenability, amenability
from latephase.finishing.call import finish
from latephase.finishing.report import FinishReport
from latephase.freed_memory import keep_freed_memory
from latephase.kfac import KFAC
from latephase.optimizer import HessianFree
from latephase.records import CGStop, Counts, Outcome, StepRecord, StepUndoneWarning
from latephase.stalling.detector import StallDetector
from latephase.switching.switch import PhaseSwitch

__all__ = [
    "KFAC",
    "Amenability",
    "CGStop",
    "Counts",
    "FinishReport",
    "HessianFree",
    "Outcome",
    "PhaseSwitch",
    "StallDetector",
    "StepRecord",
    "StepUndoneWarning",
    "amenability",
    "batches",
    "finish",
    "keep_freed_memory",
]

__version__ = version("latephase")
