"""The models behind a gateway: which there are, and whether they are ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np

from codedinv.errors import CodedInvError
from codedinv.gateway.errors import NotFound, RequestError, Unavailable
from codedinv.gateway.settings import ModelSettings
from codedinv.gateway.statistics import Statistics
from codedinv.serving import CodedServer
from codedinv.serving.metrics import Snapshot
from codedinv.serving.versions import load_model, output_shapes, version_of

_log = logging.getLogger("codedinv.gateway")

INPUT = "query"


class HostedModel:
    """A model by the name that clients use.

    Attributes:
        name: that.
        server: who answers; None: it is not loaded.
        state: as the protocol's index says it: "LOADING", "READY", "UNLOADING", "UNAVAILABLE".
        reason: why it is not ready.
        statistics: of its requests.
        is_wanted: false once it was unloaded, until somebody loads it.
    """

    def __init__(
        self,
        name: str,
        settings: ModelSettings | None = None,
        server: CodedServer | None = None,
        tracing: bool = False,
    ) -> None:
        self.name = name
        self.server = server
        self.state = "READY" if server is not None else "UNAVAILABLE"
        self.reason = "" if server is not None else "not loaded yet"
        self.statistics = Statistics()
        self._tracing = tracing
        self._settings = settings  # None: somebody else owns the server
        self._changing = asyncio.Lock()
        self._next_load: asyncio.Task[None] | None = None  # it waits for its turn
        self._waits = (0, 0.0)  # for workers, at servers before this one, less warm-ups
        self._over = asyncio.Event()
        self.is_wanted = True

    @property
    def version(self) -> str:
        """The first digits of the bundle's hash; "1" where the model is no bundle."""
        return version_of(self.server.model) if self.server is not None else ""

    def ready_server(self) -> CodedServer:
        """Who answers.

        Raises:
            Unavailable: nobody does.
        """
        if self.server is None or self.state != "READY":
            raise Unavailable(f"model {self.name!r} is not ready: {self.reason or self.state}")
        if self.server.closed:
            raise Unavailable(f"model {self.name!r} is not ready: its server is closed")
        return self.server

    @property
    def ready(self) -> bool:
        """Does anybody answer?"""
        return self.server is not None and self.state == "READY" and not self.server.closed

    async def snapshot(self) -> Snapshot | None:
        """What its server counted; None: it is not loaded."""
        if self.server is None:
            return None
        if self._settings is not None:  # it runs in this loop
            return self.server.snapshot()
        return await asyncio.to_thread(self.server.snapshot)

    def queue_waits(self, snapshot: Snapshot | None) -> tuple[int, float]:
        """Queries that waited for a worker, and how long in sum (seconds), since the model was
        first loaded; the gateway's own at the start are not among them.

        Args:
            snapshot: of its server; None: it is not loaded.
        """
        count, seconds = self._waits
        if snapshot is not None:
            count += snapshot.queue_wait.count
            seconds += snapshot.queue_wait.sum
        return max(0, count), max(0.0, seconds)

    async def load(self) -> None:
        """Loads the model, or, if it is loaded, replaces it by its bundle as it is now, while
        queries go on. All who ask before it begins get the same one.

        Raises:
            CodedInvError, ValueError: it cannot be; a model that was loaded goes on.
            Unavailable: the gateway ends.
        """
        self.is_wanted = True
        if self._next_load is None:
            self._next_load = asyncio.ensure_future(self._load_in_turn())
            self._next_load.add_done_callback(_noticed)
        loading, over = self._next_load, asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait([loading, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        if not loading.done():
            raise self._ends()
        loading.result()

    async def unload(self) -> None:
        """Takes no more queries, answers those there, ends the workers."""
        self._own()
        self.is_wanted = False
        self._next_load = None  # who asks from now on wants it loaded after this
        async with self._changing:
            server = self.server
            if server is None:
                return
            self.state, self.reason = "UNLOADING", "unloading"
            try:
                await self._close(server)
            finally:
                self.server, self.state, self.reason = None, "UNAVAILABLE", "unloaded"
            _log.info("unloaded", extra={"model": self.name})

    def break_off(self) -> None:
        """Loads are refused from now on, those under way too; queries are answered still."""
        self._over.set()

    async def end(self) -> None:
        """Unloads it for good, and does not wait for a reload to come to its end."""
        self.break_off()
        if self.server is not None and self._changing.locked():
            await self.server.__aexit__(None, None, None)  # which ends its reload
        await self.unload()

    def _ends(self) -> Unavailable:
        return Unavailable(f"model {self.name!r}: the gateway ends")

    async def _load_in_turn(self) -> None:
        this = asyncio.current_task()
        async with self._changing:
            if self._next_load is this:
                self._next_load = None
            if self._over.is_set():
                raise self._ends()
            if self.server is not None:
                await self._replace(self.server)
                _log.info("reloaded", extra={"model": self.name, "version": self.version})
                return
            self.state, self.reason = "LOADING", "loading"
            try:
                server = await self._warm_server(self._own().model)
            except BaseException as error:
                self.state, self.reason = "UNAVAILABLE", f"{type(error).__name__}: {error}"
                raise
            self.server, self.state, self.reason = server, "READY", ""
            _log.info("loaded", extra={"model": self.name, "version": self.version})

    async def _replace(self, server: CodedServer) -> None:
        """The bundle as it is now in place of the one that is served.

        One of the same signature goes from worker to worker. Another one gets workers of its own
        before it takes queries, and those that were asked of the old one are answered by that.
        """
        model = await asyncio.to_thread(load_model, self._folder())
        if self._over.is_set():
            raise self._ends()
        if self._settings is None or _signature(model) == _signature(server.model):
            await server.reload_async(model)
            return
        self.server = await self._warm_server(model)
        await self._close(server)

    async def _warm_server(self, model: Any) -> CodedServer:
        server = await _started(self._own(), model, self._tracing)
        await _warm(server)
        self._count_waits(server, -1)
        return server

    async def _close(self, server: CodedServer) -> None:
        await server.__aexit__(None, None, None)
        self._count_waits(server, +1)

    def _count_waits(self, server: CodedServer, sign: int) -> None:
        waits = server.snapshot().queue_wait
        count, seconds = self._waits
        self._waits = count + sign * waits.count, seconds + sign * waits.sum

    def _own(self) -> ModelSettings:
        if self._settings is None:
            raise RequestError(f"model {self.name!r} is loaded and unloaded by its program only")
        return self._settings

    def _folder(self) -> Any:
        if self._settings is not None:
            return self._settings.model
        folder = getattr(self.server and self.server.model, "folder", None)
        if folder is None:
            raise RequestError(f"model {self.name!r} has no bundle to be reloaded from")
        return folder


class HostedModels:
    """All models of a gateway, by name.

    Args:
        models: each name once.

    Raises:
        ValueError: a name twice.
    """

    def __init__(self, models: Iterable[HostedModel]) -> None:
        self._models: dict[str, HostedModel] = {}
        for model in models:
            if model.name in self._models:
                raise ValueError(f"models: the name {model.name!r} twice; give one another `name`")
            self._models[model.name] = model
        self.closing = False

    @classmethod
    def of(cls, servers: CodedServer | Mapping[str, CodedServer]) -> HostedModels:
        """Of servers that somebody else starts and closes."""
        if not isinstance(servers, Mapping):
            servers = {servers.model.name: servers}
        return cls(HostedModel(name, server=server) for name, server in servers.items())

    def __iter__(self) -> Iterator[HostedModel]:
        return iter(self._models.values())

    @property
    def ready(self) -> bool:
        """Is every model ready, and the gateway not about to end?"""
        return not self.closing and all(model.ready for model in self._models.values())

    def get(self, name: str, version: str = "") -> HostedModel:
        """A model by its name.

        Args:
            version: empty: whichever there is.

        Raises:
            NotFound: there is none of that name or version.
        """
        model = self._models.get(name)
        if model is None:
            raise NotFound(f"no model {name[:100]!r}; there are {sorted(self._models)}")
        if version and version != model.version:
            raise NotFound(f"model {name!r} has version {model.version!r}, not {version[:100]!r}")
        return model

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """The protocol's repository index."""
        return [
            {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            for m in self._models.values()
            if m.ready or not ready_only
        ]


async def _started(settings: ModelSettings, model: Any, tracing: bool) -> CodedServer:
    """A server in this event loop; it starts in a thread, which may take seconds."""
    server = await asyncio.to_thread(
        CodedServer,
        model,
        cast(Any, settings.workers),
        settings.backend,
        settings.policy,
        settings.scheme,
        grouping=settings.grouping,
        fuse=settings.fuse,
        fallback=settings.fallback,
        max_batch=settings.max_batch,
        max_queue_delay_us=settings.max_queue_delay_us,
        devices=settings.devices,
        runtime=settings.runtime,
        security=settings.security_of_workers,
        tracing=tracing,
    )
    return await server.__aenter__()


def _noticed(loading: asyncio.Task[None]) -> None:
    """Takes the error of a load, for which perhaps nobody waits any more."""
    if not loading.cancelled():
        loading.exception()


def _signature(model: Any) -> tuple[Any, ...]:
    return tuple(model.input_shape), output_shapes(model)


async def _warm(server: CodedServer) -> None:
    """Answers a few queries, so that the first caller's is not the first of all."""
    low, _ = getattr(server.model, "input_range", None) or (0.0, 0.0)
    count = max(2, min(8, server.policy.max_queue))
    try:
        await server.predict_async(
            np.full((count, *server.model.input_shape), low, np.float32),
            deadline=server.policy.start_timeout_s,
        )
    except BaseException as error:
        await server.__aexit__(None, None, None)
        if isinstance(error, CodedInvError):
            raise CodedInvError(f"the first queries were not answered: {error}") from error
        raise
