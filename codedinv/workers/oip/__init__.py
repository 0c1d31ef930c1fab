"""Workers that are servers of the Open Inference Protocol v2: Triton, KServe, MLServer and others.

Needs the extra `oip`.
"""

from __future__ import annotations

from codedinv.workers.oip.endpoint import Endpoint, Security
from codedinv.workers.oip.pool import OipPool

__all__ = ["Endpoint", "OipPool", "Security"]
