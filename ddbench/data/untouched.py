"""Whether data that were lent to a plugin are as they were: cheaply after every call, by their content now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from ddbench.base.tensors import tensor_digest
from ddbench.data.dataset import RealData

_DERIVED = ("_floats", "_resident")  # made once and kept by real data that are read often


class Untouched:
    """What a plugin is shown and may not change: real data by name, further tensors, and the fields of ``records``.

    :meth:`changed` compares torch's counters of changes in place and what the fields of frozen records are, which takes
    microseconds; what NumPy writes into a tensor's memory is seen by :meth:`changed_content` alone, which reads all.
    """

    def __init__(
        self,
        data: Mapping[str, RealData],
        tensors: Mapping[str, Tensor] | None = None,
        records: Iterable[Any] = (),
        *,
        content: bool = True,
    ) -> None:
        self._data = dict(data)
        self._tensors, held = dict(tensors or {}), list(records)
        for name, real in data.items():
            self._tensors |= {f"{part} of the {name} data": tensor for part, tensor in _tensors(real).items()}
            held += [real, real.pixels, real.pixels.store, real.preprocessing]
        self._watched = list(self._tensors.values())
        self._versions = [tensor._version for tensor in self._watched]
        self._fields = [
            (record, f.name, getattr(record, f.name)) for record in held if is_dataclass(record) for f in fields(record)
        ]
        self._content = self._digests() if content else {}
        self._stores = {real.pixels.store: name for name, real in reversed(list(data.items())) if content}
        for store in self._stores:
            _ = store.content  # now, if nobody asked for it before

    def changed(self) -> str | None:
        """The name of something that is not as it was, as far as counters tell; None for nothing."""
        if [tensor._version for tensor in self._watched] != self._versions:
            pairs = zip(self._tensors, self._watched, self._versions, strict=True)
            return next(name for name, tensor, version in pairs if tensor._version != version)
        for record, name, value in self._fields:
            if getattr(record, name) is not value:
                return f"the field {name} of a {type(record).__name__}"
        return None

    def changed_content(self) -> str | None:
        """The same by content: every byte is read."""
        for real in self._data.values():  # derived data that came in between were not watched: they are made again
            for name in _DERIVED:
                if not any(tensor is held for tensor in _derived(real, name) for held in self._watched):
                    vars(real).pop(name, None)
        now = self.changed() or self._digests()
        if isinstance(now, str):
            return now
        for store, name in self._stores.items():
            if store.measured() != store.content:
                return f"pixels of the {name} data"
        return next((name for name, value in self._content.items() if now[name] != value), None)

    def _digests(self) -> dict[str, str]:
        return {name: tensor_digest(t) for name, t in self._tensors.items() if not name.startswith("pixels of")}


def _tensors(real: RealData) -> dict[str, Tensor]:
    """The tensors of real data, by what people call them, and those that are derived from them so far."""
    rows, members = real.pixels.rows, real.members[0]._base  # members of all classes are views of one tensor
    found: dict[str, Tensor | None] = {
        "pixels": real.pixels.store.array,
        "targets": real.targets,
        "rows": rows,
        "members": members,
    }
    found |= real.preprocessing.tensors()
    for name in _DERIVED:
        found |= {f"{name} {i}": tensor for i, tensor in enumerate(_derived(real, name))}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _derived(real: RealData, name: str) -> list[Tensor]:
    held = vars(real).get(name)
    return [] if held is None else [value for value in vars(held).values() if isinstance(value, Tensor)]
