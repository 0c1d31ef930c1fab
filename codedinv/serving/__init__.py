"""Serving: the pure core, and the server that runs it with real workers."""

from __future__ import annotations

from codedinv.serving.metrics import Quantiles, Stats
from codedinv.serving.policy import Policy
from codedinv.serving.prediction import Prediction
from codedinv.serving.server import CodedServer

__all__ = ["CodedServer", "Policy", "Prediction", "Quantiles", "Stats"]
