"""`codedinv.fit`: from a trained model and data to a bundle, or to the advice not to code."""

from codedinv.fitting.api import fit
from codedinv.fitting.report import Report

__all__ = ["Report", "fit"]
