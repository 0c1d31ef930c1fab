"""A connection over HTTP/1.1: as many sockets as requests at a time, a thread each."""

from __future__ import annotations

import contextlib
import http.client
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from codedinv.oip import InferRequest, InferResponse, ProtocolError, rest
from codedinv.workers.oip.connection import MOST_BYTES, Done, Failed, Gone, NoAnswer, belonging
from codedinv.workers.oip.endpoint import Endpoint, Security
from codedinv.workers.oip.signature import ModelInfo, TensorInfo, WrongModel
from codedinv.workers.oip.tls import tls_context, tls_problem, words_of

_GONE = (http.client.NOT_FOUND, http.client.SERVICE_UNAVAILABLE)
_NO_SUCH_PAGE = (http.client.NOT_FOUND, http.client.METHOD_NOT_ALLOWED, http.client.NOT_IMPLEMENTED)
_MOST_WORDS = 500  # of a server's error


class _Job:
    """A request for one of the threads."""

    def __init__(
        self, path: str, body: bytes, headers: Mapping[str, str], identity: str, done: Done
    ) -> None:
        self.path, self.body, self.headers = path, body, headers
        self.identity, self.done = identity, done


class HttpConnection:
    """A `Connection` of binary HTTP requests.

    HTTP/1.1 has no way to take a request back, so `can_cancel` is false: the server works on, and
    its socket is not free before it answers.

    Args:
        endpoint: where.
        security: certificates and token.
        question_s: how long a question waits for its answer.
        at_once: requests at a time; more wait.
    """

    can_cancel = False

    def __init__(
        self, endpoint: Endpoint, security: Security, question_s: float, at_once: int
    ) -> None:
        self._endpoint, self._security = endpoint, security
        self._headers = security.headers(endpoint)
        self._question_s = question_s
        self._tls = tls_context(security) if endpoint.has_tls else None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the next two
        self._sockets: set[socket.socket] = set()
        self._is_closed = False
        self._at_once = at_once
        for i in range(at_once):
            name = f"codedinv-{endpoint}-{i}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def is_server_ready(self) -> bool:
        return self._ask("/v2/health/ready")[0] == http.client.OK

    def is_model_ready(self, model: str, version: str) -> bool:
        return self._ask(f"{_path(model, version)}/ready")[0] == http.client.OK

    def describe(self, model: str, version: str) -> ModelInfo:
        status, body = self._ask(_path(model, version))
        if status != http.client.OK:
            reason = f"{model}: {status} {_words(body)}"
            raise Gone(reason) if status in _GONE else WrongModel(reason)
        metadata = _json(body)
        parameters = dict(_strings(metadata.get("properties")))
        parameters |= _strings(metadata.get("parameters"))
        status, body = self._ask(f"{_path(model, version)}/config")
        if status == http.client.OK:
            parameters |= _strings(_json(body).get("parameters"))
        elif status not in _NO_SUCH_PAGE:  # only Triton and its like have it
            raise WrongModel(f"{model}: config: {status} {_words(body)}")
        return ModelInfo(_tensors(metadata, "inputs"), _tensors(metadata, "outputs"), parameters)

    def infer(
        self,
        model: str,
        version: str,
        request: InferRequest,
        done: Done,
        headers: Mapping[str, str],
    ) -> object:
        body, header_length = rest.encode_request(request)
        sent = {**headers, **self._headers, "Content-Type": "application/octet-stream"}
        if header_length is not None:
            sent[rest.HEADER_LENGTH] = str(header_length)
        self._jobs.put(_Job(f"{_path(model, version)}/infer", body, sent, request.id, done))
        return None

    def cancel(self, call: object) -> None:
        raise NotImplementedError("HTTP/1.1 cannot take a request back")

    def watch(self, lost: Callable[[str], None]) -> None:
        pass  # a socket that nobody uses tells nothing; the next request finds out

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for open_socket in self._sockets:
                with contextlib.suppress(OSError):  # it is closed at the other end already
                    open_socket.shutdown(socket.SHUT_RDWR)
        for _ in range(self._at_once):
            self._jobs.put(None)

    # ---- within

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = self._connection(self._question_s)
        try:
            self._connect(connection)
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, _body(answer)
        except TimeoutError:
            raise NoAnswer(f"{path}: no answer within {self._question_s} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Gone(self._why_gone(error)) from None
        finally:
            self._hang_up(connection)

    def _connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        host, port = self._endpoint.host, self._endpoint.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    def _work(self) -> None:
        """One thread: sends requests one after the other over a socket that is kept."""
        connection = self._connection(None)
        while (job := self._jobs.get()) is not None:
            try:
                outcome: InferResponse | Failed = self._infer(connection, job)
            except ProtocolError as error:
                outcome = Failed(str(error))
            except Exception as error:  # a broken connection, as a rule; this thread must live
                outcome = Failed(self._words_of(error), is_gone=True)
            if isinstance(outcome, Failed):
                self._hang_up(connection)  # what is left of the answer must not come next
            job.done(outcome)
        self._hang_up(connection)

    def _infer(self, connection: http.client.HTTPConnection, job: _Job) -> InferResponse | Failed:
        was_used = connection.sock is not None and not _has_ended(connection.sock)
        try:
            answer = self._exchange(connection, job)
        except (ConnectionError, http.client.HTTPException):
            if not was_used:
                raise
            # The server may have closed a socket that it found unused just when we wrote to it. A
            # query may be asked twice; and if the server is gone, a new socket will say so.
            answer = self._exchange(connection, job)
        body = _body(answer)
        if answer.status != http.client.OK:
            return Failed(f"{answer.status} {_words(body)}", is_gone=answer.status in _GONE)
        length = rest.parse_header_length(answer.getheader(rest.HEADER_LENGTH))
        return belonging(rest.decode_response(body, length), job.identity)

    def _exchange(
        self, connection: http.client.HTTPConnection, job: _Job
    ) -> http.client.HTTPResponse:
        try:
            if connection.sock is None or _has_ended(connection.sock):
                self._hang_up(connection)
                self._connect(connection)
                connection.sock.settimeout(None)  # the front end's deadlines count
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.request("POST", job.path, job.body, dict(job.headers))
            return connection.getresponse()
        except BaseException:
            self._hang_up(connection)
            raise

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        connection.timeout = self._question_s
        connection.connect()
        new: socket.socket = connection.sock
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError("closed")
            self._sockets.add(new)

    def _why_gone(self, error: Exception) -> str:
        """A server may hang up before its alert is read: then its TLS is tried once more."""
        is_told = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        if self._tls is None or is_told:
            return self._words_of(error)
        problem = tls_problem(self._endpoint, self._security, self._question_s, ["http/1.1"])
        return problem or self._words_of(error)

    def _words_of(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError):
            return words_of(error, self._endpoint)
        return f"{type(error).__name__}: {error}"

    def _hang_up(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._sockets.discard(connection.sock)
        connection.close()


def _body(answer: http.client.HTTPResponse) -> bytes:
    """All of an answer's body.

    Raises:
        HTTPException: it is cut short, or longer than any answer.
    """
    body = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise http.client.HTTPException(f"an answer of more than {MOST_BYTES} bytes")
    if answer.length:  # read(n) gives what there was
        raise http.client.IncompleteRead(body, answer.length)
    return body


def _has_ended(open_socket: socket.socket) -> bool:
    """Is there anything to read, where nothing was asked? It can only be the end."""
    poll = select.poll()  # select() knows no descriptors above 1023
    poll.register(open_socket, select.POLLIN)
    return bool(poll.poll(0))


def _path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _json(body: bytes) -> dict[str, Any]:
    try:
        return rest.parse_object(body)
    except ProtocolError as error:
        raise WrongModel(str(error)) from None


def _tensors(metadata: Mapping[str, Any], key: str) -> list[TensorInfo]:
    try:
        return [
            TensorInfo(str(t["name"]), str(t["datatype"]), tuple(int(size) for size in t["shape"]))
            for t in metadata[key]
        ]
    except (KeyError, TypeError, ValueError):
        raise WrongModel(
            f"metadata: expected {key} with name, datatype and shape, got {metadata.get(key)!r}"
        ) from None


def _strings(parameters: Any) -> dict[str, str]:
    """Those parameters that are strings, plain or as Triton's configuration has them."""
    found = {}
    for key, value in parameters.items() if isinstance(parameters, dict) else ():
        text = value.get("string_value") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found


def _words(body: bytes) -> str:
    """What an error's body says."""
    try:
        return str(rest.parse_object(body)["error"])[:_MOST_WORDS]
    except (ProtocolError, KeyError):
        return body[:_MOST_WORDS].decode(errors="replace")
