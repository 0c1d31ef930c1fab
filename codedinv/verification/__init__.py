"""Verification: telling a coding group with a wrong result from a clean one. numpy only."""

from codedinv.verification.consistency import Check, Consistency, Verdict
from codedinv.verification.exact import ExactConsistency
from codedinv.verification.fit import fit_consistency
from codedinv.verification.online import OnlineConsistency
from codedinv.verification.same import SAME_TOLERANCE, same

__all__ = [
    "SAME_TOLERANCE",
    "Check",
    "Consistency",
    "ExactConsistency",
    "OnlineConsistency",
    "Verdict",
    "fit_consistency",
    "same",
]
