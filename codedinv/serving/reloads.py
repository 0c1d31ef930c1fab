"""The versions of the model that the loop knows, and the reloads that somebody waits for."""

from __future__ import annotations

from codedinv.errors import CodedInvError, ServerClosed
from codedinv.serving.admission import Reload
from codedinv.serving.versions import Served


class Reloads:
    """Keeps what is served by version, from the request of a reload until an older version can be
    forgotten; for the loop only.

    Args:
        first: version 0.

    Attributes:
        served: by version.
    """

    def __init__(self, first: Served) -> None:
        self.served = {0: first}
        self._under_way: dict[int, Reload] = {}
        self._over: list[int] = []

    def begin(self, reload: Reload) -> None:
        """A version is to be brought out."""
        self.served[reload.version] = reload.served
        self._under_way[reload.version] = reload

    def done(self, version: int) -> None:
        """All is of this version now."""
        self._over += [older for older in self.served if older < version]
        self._under_way.pop(version).reloaded.set_result(None)

    def failed(self, version: int, reason: str) -> None:
        """This version could not be started."""
        self._over.append(version)
        error = CodedInvError(f"the new model could not be started: {reason}")
        self._under_way.pop(version).reloaded.set_exception(error)

    def forget(self) -> list[int]:
        """Versions that nothing is left of; to be called when the answers of a turn are given."""
        if not self._over:
            return self._over
        over, self._over = self._over, []
        for version in over:
            del self.served[version]
        return over

    def close(self, also: list[Reload]) -> None:
        """The server has ended before these reloads, and those under way, were done."""
        for reload in [*self._under_way.values(), *also]:
            reload.reloaded.set_exception(ServerClosed("the server closed before the reload ended"))
        self._under_way.clear()
