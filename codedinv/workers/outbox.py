"""What waits to be sent to a worker: until it has ended a task, or for room in its socket.

So a pool never blocks, and a worker that does not read, for it computes or was stopped, is no worse
off for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from codedinv.workers.backbone import Array
from codedinv.workers.channel import Channel, Kind, Layout, Parcel


class Outbox:
    """Tasks in their order, behind short messages that may overtake them.

    Args:
        channel: where to, non-blocking.
        layout: of the channel.
    """

    def __init__(self, channel: Channel, layout: Layout) -> None:
        self._channel = channel
        self._urgent: deque[tuple[Kind, str, int]] = deque()  # kind, text, task
        self._tasks: OrderedDict[int, tuple[int, Array]] = OrderedDict()  # task: model, query
        self._slots = layout.slots
        self._free_slots = list(range(layout.slots))

    def put_task(self, task: int, model: int, query: Array) -> None:
        """Appends a task."""
        self._tasks[task] = model, query

    def put_urgent(self, kind: Kind, text: str = "", task: int = 0) -> None:
        """Appends a message that may overtake tasks."""
        self._urgent.append((kind, text, task))

    def withdraw(self, task: int) -> bool:
        """Takes back a task that is still here; False: it is not."""
        return self._tasks.pop(task, None) is not None

    def give_back(self, slot: int) -> None:
        """The worker has ended the task that had this slot."""
        self._free_slots.append(slot)

    def is_worker_idle(self) -> bool:
        """Has the worker ended all that was sent to it?"""
        return len(self._free_slots) == self._slots

    def flush(self) -> bool:
        """Sends what can be sent; True: the rest waits until the socket is writable.

        Raises:
            OSError: the worker is gone.
        """
        if not (self._tasks or self._urgent):
            return False
        try:
            while self._urgent:
                kind, text, task = self._urgent[0]
                self._channel.send_text(kind, text, task)
                self._urgent.popleft()
            if self._tasks and self._free_slots:
                slots = self._free_slots[-len(self._tasks) :]
                parcels = [
                    Parcel(task, slot, model, query)
                    for slot, (task, (model, query)) in zip(
                        slots, self._tasks.items(), strict=False
                    )
                ]
                self._channel.send_arrays(Kind.TASK, parcels)
                del self._free_slots[-len(parcels) :]
                for parcel in parcels:
                    del self._tasks[parcel.task]
        except BlockingIOError:
            return True
        return False
