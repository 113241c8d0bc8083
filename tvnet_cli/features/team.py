"""Work that goes to whoever has the least of it: the devices of a machine, or the machines of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Team(Generic[Member]):
    """Members who each take some work at once. They come and go, and any thread may ask for one.

    Examples
    --------
    >>> team = Team()
    >>> team.join("here", places=2)
    >>> team.join("there", places=1)
    >>> with team.free() as first, team.free() as second, team.free() as third:
    ...     first, second, third
    ('here', 'there', 'here')
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._places: dict[Member, int] = {}
        self._at_work: dict[Member, int] = {}
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._places)

    def members(self) -> list[Member]:
        """Those who are there now."""
        with self._changed:
            return list(self._places)

    def join(self, member: Member, places: int) -> None:
        """From now on this member takes so much work at once."""
        with self._changed:
            self._places[member], self._at_work[member] = places, 0
            self._changed.notify_all()

    def leave(self, member: Member) -> bool:
        """From now on this member takes no work; False if it left before."""
        with self._changed:
            self._at_work.pop(member, None)
            return self._places.pop(member, None) is not None

    def break_up(self, error: BaseException) -> None:
        """Whoever asks for a member, now or later, gets this error."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    @contextmanager
    def free(self) -> Iterator[Member]:
        """The member with the most places free for its size, inside a ``with`` block; waits until there is one."""
        with self._changed:
            while (member := self._idlest()) is None:
                self._changed.wait()
            self._at_work[member] += 1
        try:
            yield member
        finally:
            with self._changed:
                if member in self._at_work:
                    self._at_work[member] -= 1
                self._changed.notify()

    def _idlest(self) -> Member | None:
        if self._error is not None:
            raise self._error
        free = [member for member in self._places if self._at_work[member] < self._places[member]]
        return min(free, key=lambda member: self._at_work[member] / self._places[member], default=None)
