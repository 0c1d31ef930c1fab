"""What goes along with a task to a worker of another program: the headers of its trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

NO_HEADERS: Mapping[str, str] = {}

# Of the task that is given to a pool now; W3C trace context, where the query is traced.
task_headers: ContextVar[Mapping[str, str]] = ContextVar("task_headers", default=NO_HEADERS)
