"""The command line: `codedinv demo | evaluate | train | export | info`."""

from codedinv.cli.app import main

__all__ = ["main"]
