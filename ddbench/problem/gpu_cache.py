"""Tensors from a file kept on a GPU: those used last, as many as fit.

A step should wait neither for the disk nor for the copy. What is asked for again lies on the device. What is asked for
the first time goes through page-locked memory, from where it is copied while the host goes on. Where everything fits, a
thread reads ahead; copies are always started by the caller, on its own stream, so nothing has to be synchronised.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 256 * 2**20  # bytes that wait in page-locked memory, at most; one tensor may be larger

Key = tuple[int, int]  # an expert and an epoch, say


class Shelf:
    """``shelf[key]`` is ``read(key)`` on ``device``; a copy, so that nobody changes what others will see.

    ``read`` gives a tensor on the CPU, and is called from a thread too. At most ``most`` bytes stay on the device:
    those least recently used leave first, and a tensor larger than that is read each time.
    """

    def __init__(self, read: Callable[[Key], Tensor], device: torch.device, most: int) -> None:
        self._read = read
        self._device = device
        self._most = most
        self._held: OrderedDict[Key, Tensor] = OrderedDict()
        self._bytes = 0
        self._waiting: deque[tuple[Key, Future[Tensor]]] = deque()
        self._to_come: deque[Key] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._ahead = 1

    @property
    def bytes(self) -> int:
        """What lies on the device."""
        return self._bytes

    def expect(self, keys: Iterable[Key], size: int) -> None:
        """Read ``keys``, tensors of ``size`` bytes each, before they are asked for, if all of them fit."""
        keys = [key for key in keys if key not in self._held]
        if self._bytes + size * len(keys) <= self._most:
            self._to_come.extend(keys)
            self._ahead = max(1, AHEAD // max(size, 1))
            self._go_on()

    def __getitem__(self, key: Key) -> Tensor:
        self._collect()
        held = self._held.get(key)
        if held is None:
            held = self._put(key, self._fetched(key))
        else:
            self._held.move_to_end(key)
        return held.clone()

    def _fetched(self, key: Key) -> Tensor:
        """From the thread if it is at it, otherwise from the file."""
        for waiting, future in self._waiting:
            if waiting == key:
                return future.result()
        return self._locked(key)

    def _locked(self, key: Key) -> Tensor:
        """In page-locked memory where the device is a GPU: torch gives it back only when the copy is over."""
        made = self._read(key)
        return made.pin_memory() if self._device.type == "cuda" else made

    def _put(self, key: Key, tensor: Tensor) -> Tensor:
        moved = tensor.to(self._device, non_blocking=True)
        size = moved.numel() * moved.element_size()
        if size <= self._most:
            while self._bytes + size > self._most:
                _, gone = self._held.popitem(last=False)
                self._bytes -= gone.numel() * gone.element_size()
            self._held[key] = moved
            self._bytes += size
        return moved

    def _collect(self) -> None:
        """Move what the thread has read meanwhile to the device."""
        while self._waiting and self._waiting[0][1].done():
            key, future = self._waiting.popleft()
            if key not in self._held and future.exception() is None:  # whoever asks for it reads it anew, and sees why
                self._put(key, future.result())
        self._go_on()

    def _go_on(self) -> None:
        """Keep the thread busy, but no further ahead than ``AHEAD``."""
        while self._to_come and len(self._waiting) < self._ahead:
            key = self._to_come.popleft()
            if key not in self._held:
                self._thread = self._thread or ThreadPoolExecutor(1, "shelf")
                self._waiting.append((key, self._thread.submit(self._locked, key)))
        if self._thread is not None and not self._waiting and not self._to_come:
            self._thread.shutdown(wait=False)
            self._thread = None


def a_tenth_of_what_is_free(device: torch.device) -> int:
    """Bytes of a GPU's memory that a shelf may take."""
    return torch.cuda.mem_get_info(device)[0] // 10
