"""Errors that happen at run time. A caller's mistake is a ValueError or TypeError instead."""


class CodedInvError(Exception):
    """Base of every run-time error of codedinv."""


class BundleError(CodedInvError):
    """A bundle is damaged, foreign or of another schema version; the message names the file."""


class MissingExtra(CodedInvError, ImportError):
    """What was asked for needs a package that is not installed; the message says which."""


class NotConverged(CodedInvError):
    """A fixed-point inversion did not reach its tolerance within its iteration limit."""


class Overloaded(CodedInvError):
    """The bounded queue is full; the query was not accepted and may be sent again later."""


class DeadlineExceeded(CodedInvError):
    """No answer, exact or reconstructed, could be given before the query's deadline."""


class Unrecoverable(CodedInvError):
    """More results were lost than the code covers, and no attempt was left to send it again."""


class ServerClosed(CodedInvError):
    """The server is closed or closing and takes no more queries."""


class WrongProcess(CodedInvError):
    """A server was used in a forked copy of the process that made it; each makes its own."""


class WrongThread(CodedInvError):
    """A call that waits for the server, in the very thread whose event loop runs the server."""


class UnprovenWarning(UserWarning):
    """Nothing shows that a model's reconstructed answers are worth giving; the message says what
    the server does about it."""
