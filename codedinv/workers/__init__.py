"""Workers: where a backbone runs, and the faults that can be given to it."""

from __future__ import annotations

from codedinv.workers.backbone import Backbone, BackboneSpec
from codedinv.workers.batches import Batching
from codedinv.workers.breakable import BreakablePool
from codedinv.workers.pool import (
    Died,
    Dropped,
    FaultInjection,
    Message,
    Pool,
    Ready,
    Result,
    TaskError,
)
from codedinv.workers.process import ProcessPool
from codedinv.workers.thread import ThreadPool

__all__ = [
    "Backbone",
    "BackboneSpec",
    "Batching",
    "BreakablePool",
    "Died",
    "Dropped",
    "FaultInjection",
    "Message",
    "Pool",
    "ProcessPool",
    "Ready",
    "Result",
    "TaskError",
    "ThreadPool",
]
