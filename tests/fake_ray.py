"""The few calls of Ray that the program makes, in one process, with machines that are lost when a test says so."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Whatever goes wrong."""


class RayTaskError(RayError):
    """The called code raised something."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long\ntraceback")
        self.cause = cause


class RayActorError(RayError):
    """The actor is lost."""


class Actor:
    """Runs calls in threads once there is room for it, and answers none when it is lost."""

    def __init__(self, ray: FakeRay, kind: type) -> None:
        self.ray, self.instance = ray, kind()
        self.instance.actor = self
        self.placed, self.lost, self.calls = threading.Event(), False, []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.call(name, arguments))

    def call(self, name: str, arguments: tuple[Any, ...]) -> Future[Any]:
        answer: Future[Any] = Future()
        self.calls.append(answer)
        if self.lost:
            self._answer(answer, RayActorError("gone"))
        threading.Thread(target=self._run, args=(answer, name, arguments), daemon=True).start()
        return answer

    def _run(self, answer: Future[Any], name: str, arguments: tuple[Any, ...]) -> None:
        self.placed.wait()
        if answer.done():
            return
        try:
            self._answer(answer, getattr(self.instance, name)(*arguments))
        except Exception as error:
            self._answer(answer, RayTaskError(error))

    def _answer(self, answer: Future[Any], value: Any) -> None:
        with self.ray.lock:
            if answer.done():
                return
            if isinstance(value, RayError):
                answer.set_exception(value)
            else:
                answer.set_result(value)


class FakeRay:
    """In place of the module ``ray``, for a cluster with room for so many workers of one core."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError)

    def __init__(self, room: int) -> None:
        self.room, self.lock, self.actors = room, threading.RLock(), []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.room}}, {"Alive": False, "Resources": {"CPU": 64}}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.0}

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **how: SimpleNamespace(remote=lambda: self.start(kind)))

    def start(self, kind: type) -> Actor:
        actor = Actor(self, kind)
        self.actors.append(actor)
        self.make_room()
        return actor

    def make_room(self) -> None:
        with self.lock:
            for actor in [actor for actor in self.actors if not actor.lost][: self.room]:
                actor.placed.set()

    def kill(self, actor: Actor) -> None:
        with self.lock:
            actor.lost = True
            for answer in actor.calls:
                actor._answer(answer, RayActorError("the node was lost"))
        self.make_room()

    def put(self, value: Any) -> Any:
        return value

    def get(self, answer: Future[Any]) -> Any:
        return answer.result()

    def wait(self, answers: list[Future[Any]], timeout: float) -> tuple[list[Future[Any]], list[Future[Any]]]:
        done, left = wait_for(answers, timeout, FIRST_COMPLETED)
        return list(done), list(left)
