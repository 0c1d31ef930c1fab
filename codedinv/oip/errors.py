"""What is wrong with a message."""

from __future__ import annotations


class ProtocolError(ValueError):
    """A message that is not one of the Open Inference Protocol; it says what was expected."""
