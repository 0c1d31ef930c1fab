"""Codes over the reals and the decoder that turns any k results into the missing ones."""

from codedinv.coding.code import Code
from codedinv.coding.decoder import StreamingDecoder

__all__ = ["Code", "StreamingDecoder"]
