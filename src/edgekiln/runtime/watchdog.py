"""The background work behind a chain: opens engines, notices those that hang, die or lose their files.

All of it happens off the callers' time. Nothing that may take long is done under the lock that they need:
hashing, killing and telling come after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from edgekiln.runtime import standing as rule
from edgekiln.runtime.faults import Fault, fault_of
from edgekiln.runtime.journal import Journal
from edgekiln.runtime.posts import Damage, Post
from edgekiln.runtime.seat import Seat
from edgekiln.runtime.standing import Rules

Isolate: TypeAlias = Literal["never", "after-hang", "always"]
_TICK_S = 0.25
_LEAST_S = 0.01
_FAREWELL_S = 1.0


class Watchdog:
    """Keeps ``posts`` (engines, the best first) manned.

    ``lock`` guards posts and whatever its owner puts under it; it is notified when an engine was opened or
    refused. ``opened`` is called under it, once per opening. A failed engine is opened again after
    ``standing.backoff``.
    """

    def __init__(
        self,
        posts: Sequence[Post],
        journal: Journal,
        *,
        rules: Rules,
        seed: str,
        isolate: Isolate,
        opened: Callable[[Post], None],
    ) -> None:
        self.lock = threading.Condition()
        self._posts, self._journal, self._rules = tuple(posts), journal, rules
        self._seed, self._isolate, self._opened = seed, isolate, opened
        self._leaving: list[Seat] = []
        self._closed = False
        self._nudge = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="edgekiln-watchdog")

    def start(self) -> None:
        self._thread.start()

    @property
    def awake(self) -> bool:
        """Whether engines come up by themselves, so that it makes sense to wait for one."""
        return self._thread.is_alive() and not self._closed

    def nudge(self) -> None:
        """Have a look now."""
        self._nudge.set()

    def tend(self) -> float:
        """One round; seconds until the next is due."""
        with self.lock:
            if self._closed:
                return _TICK_S
            now = self._journal.now()
            for post in self._posts:
                self._look(post, now)
            self._open_due(now)
            looks = [(p, p.seat) for p in self._posts if self._files_due(p, now)]
        found = [(post, seat, damage) for post, seat in looks if (damage := post.damage()) is not None]
        with self.lock:
            for post, seat, damage in found:
                if post.seat is seat:
                    self._damaged(post, damage)
            rests = [p.standing.until_s - self._journal.now() for p in self._posts if p.seat is None]
        self._dismiss()
        self._journal.tell_all()
        return max(_LEAST_S, min([_TICK_S, *(s for s in rests if s > 0)]))

    def vacate(self, post: Post, fault: Fault) -> None:
        """Take the engine out of service; the next round closes it, and opens it anew when its rest is over.
        Under the lock."""
        seat, post.seat, post.opening, post.why = post.seat, None, False, fault.why
        now = self._journal.now()
        post.standing = rule.failed(post.standing, now, f"{self._seed}//{post.name}", self._rules)
        if seat is not None:
            self._leaving.append(seat)
        self._nudge.set()

    def close(self) -> None:
        """Close every engine, waiting a second for those that hang. Safe to call twice."""
        with self.lock:
            self._closed = True
            for post in self._posts:
                if post.seat is not None:
                    self._leaving.append(post.seat)
                    post.seat = None
            self.lock.notify_all()
        self._nudge.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        # An engine that is still being closed when the process ends takes the process down with it.
        until = time.monotonic() + _FAREWELL_S
        for seat in self._dismiss():
            seat.join(max(0.0, until - time.monotonic()))
        self._journal.tell_all()

    # ------------------------------------------------------------ one round

    def _look(self, post: Post, now: float) -> None:
        seat, rules = post.seat, self._rules
        if seat is None:
            return
        if seat.broken is not None:
            self._lose(post, fault_of(seat.broken))
            return
        if post.opening and seat.ready:
            post.opening, post.next_look_s = False, now + rules.files_every_s
            self._opened(post)
            done = "in a process of its own" if post.apart else "in this process"
            self._journal.note("opened", post.name, "it is of the best that are well, or was asked for", done)
        busy_s = 0.0 if seat.since_s is None else now - seat.since_s
        if busy_s > (rules.open_s if post.opening else rules.hung_ms / 1e3):
            what = "opening it" if post.opening else "its call"
            self._hung(post, f"{what} has taken {busy_s:.1f} s")
        elif not seat.alive:
            self._lose(post, Fault(kind="crashed", why="its process ended while it was idle"))

    def _hung(self, post: Post, why: str) -> None:
        """A process is killed. A thread can't be: it is left alone, and ends itself if it ever comes back."""
        done = "its process was killed and is started again"
        if not post.apart:
            done = "its thread is abandoned"
            if self._isolate != "never":
                post.apart = True
                done += "; a process of its own takes its place"
        self._journal.note("hung", post.name, why, done)
        self.vacate(post, Fault(kind="hung", why=why))

    def _lose(self, post: Post, fault: Fault) -> None:
        self.vacate(post, fault)
        rest = post.standing.until_s - self._journal.now()
        done = f"opened again in {rest:.2f} s"
        self._journal.note(fault.kind, post.name, fault.why, done, failures=post.standing.failures)

    def _files_due(self, post: Post, now: float) -> bool:
        if post.seat is None or post.opening or now < post.next_look_s:
            return False
        post.next_look_s = now + self._rules.files_every_s
        return True

    def _damaged(self, post: Post, damage: Damage) -> None:
        if damage.in_place:  # the engine may have the file mapped: its numbers are no longer the model's
            self._lose(post, Fault(kind="corrupt", why=damage.why))
        else:
            done = "the open engine holds the old file and goes on; it can't be opened again"
            self._journal.note("corrupt", post.name, damage.why, done)

    def _open_due(self, now: float) -> None:
        """Open the best engines, ``standby`` of them beyond the first that is well, and those asked for."""
        needed = 1 + self._rules.standby
        for post in self._posts:
            if post.seat is None and (needed > 0 or post.wanted) and now >= post.standing.until_s:
                post.open(self._came_up)
            if post.seat is not None and not post.standing.failures:
                needed -= 1

    def _came_up(self) -> None:
        self._nudge.set()
        with self.lock:
            self.lock.notify_all()

    def _dismiss(self) -> list[Seat]:
        with self.lock:
            leaving, self._leaving = self._leaving, []
        for seat in leaving:
            seat.close()
        return leaving

    def _live(self) -> None:
        while not self._closed:
            try:
                wait = self.tend()
            except Exception as error:  # whatever it is, the next round must come
                self._journal.note(
                    "crashed", "the watchdog", f"{type(error).__name__}: {error}", "it goes on"
                )
                wait = _TICK_S
            self._nudge.wait(wait)
            self._nudge.clear()
