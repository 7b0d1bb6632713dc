"""A matcher's state, whatever it is made of, to one file and back."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.base.moved import CLASSES
from ddbench.base.tensors import load_tensors, save_tensors
from ddbench.errors import DataError, UsageError


def save_state(path: Path, state: Any, notes: dict[str, Any]) -> None:
    """Write ``state`` (dataclasses, dicts, lists, tuples, tensors, numbers, text, None) with JSON notes."""
    tensors: dict[str, Tensor] = {}
    shape = _freeze(state, tensors)
    metadata = {"state": json.dumps(shape), "notes": json.dumps(notes, allow_nan=False)}
    save_tensors(path, tensors, metadata, sealed=True)


def load_state(path: Path, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Read what :func:`save_state` wrote; tensors go back to the kind of device they came from."""
    tensors, metadata = load_tensors(path)
    try:
        return _thaw(json.loads(metadata["state"]), tensors, device), json.loads(metadata["notes"])
    except Exception as error:  # a dataclass may refuse its fields as it likes
        raise DataError(
            f"{path} is not a checkpoint of this version ({error!r}); delete it to start the stage again"
        ) from error


def has_nan(state: Any) -> bool:
    """Whether a tensor in the state holds not-a-number: such a state must not replace a good one."""
    tensors: dict[str, Tensor] = {}
    _freeze(state, tensors)
    return any(bool(t.isnan().any()) for t in tensors.values() if t.is_floating_point())


def _freeze(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        parts = {f.name: _freeze(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"record": [type(value).__module__, type(value).__qualname__], "fields": parts}
    if isinstance(value, dict):
        return {"dict": [[_freeze(k, tensors), _freeze(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return {type(value).__name__: [_freeze(v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise UsageError(
        f"a matcher's state may hold dataclasses, dicts, lists, tuples, tensors, numbers and text, not {type(value)}"
    )


def _thaw(shape: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Any:
    if "tensor" in shape:
        return tensors[shape["tensor"]].to("cpu" if shape["cpu"] else device)
    if "record" in shape:
        parts = {name: _thaw(part, tensors, device) for name, part in shape["fields"].items()}
        module, qualname = shape["record"]
        return _rebuild(module, qualname, parts)
    if "dict" in shape:
        return {_thaw(k, tensors, device): _thaw(v, tensors, device) for k, v in shape["dict"]}
    if "list" in shape:
        return [_thaw(v, tensors, device) for v in shape["list"]]
    if "tuple" in shape:
        return tuple(_thaw(v, tensors, device) for v in shape["tuple"])
    return shape["value"]


def _rebuild(module: str, qualname: str, parts: dict[str, Any]) -> Any:
    """A dataclass by name, from modules that are loaded already: a file cannot import anything."""
    found: Any = sys.modules.get(CLASSES.get(module, module))
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"no dataclass {module}.{qualname} is loaded")
    names = {f.name for f in dataclasses.fields(found) if f.init}
    made = found(**{name: value for name, value in parts.items() if name in names})
    for name in parts.keys() - names:
        object.__setattr__(made, name, parts[name])
    return made
