"""Rows of results, read back from run folders. Loads neither torch nor plugins."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from ddbench.base.cache import digest, read_json

COLUMNS = (
    "dataset", "matcher", "scheduler", "network", "ipc", "seed", "protocol", "steps", "selection", "label_type",
    "accuracy_mean", "accuracy_std", "n", "status", "distil_seconds", "selection_seconds", "expert_seconds",
    "peak_bytes", "image_bytes", "label_bytes", "run", "dataset_digest", "device", "error",
)  # fmt: skip
PLACES = ("root", "path")  # options that say where data lie, not what they are


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row per evaluation of a run; a run without one is a row too, with its status."""
    spec = read_json(folder / "spec.json")
    done = folder / "result.json"
    result: dict[str, Any] = read_json(done) if done.exists() else {"status": "incomplete"}
    base = {
        "dataset": result.get("dataset", {}).get("name", spec["dataset"]["name"]),
        "dataset_digest": result.get("dataset", {}).get("digest"),
        "matcher": spec["matcher"]["name"],
        "scheduler": spec["scheduler"]["name"],
        "network": result.get("network", spec["network"]["name"]),
        "ipc": spec["ipc"],
        "seed": spec["seed"],
        "protocol": spec["protocol"]["name"],
        "protocol_digest": _rules_of(spec),
        "label_type": result.get("label_type", spec["matcher"]["options"].get("labels")),
        "run": folder.name,
        "device": result.get("machine", {}).get("device"),
        "options": _options(spec),
        "accuracy_mean": None,
        "accuracy_std": None,
        "n": 0,
    }
    kept = ("status", "selection", "steps", "error", "distil_seconds", "selection_seconds", "expert_seconds",
            "peak_bytes", "image_bytes", "label_bytes")  # fmt: skip
    base |= {name: result.get(name) for name in kept}
    base |= _origin(spec, folder, base)
    evaluations = [read_json(path) for path in sorted((folder / "evaluations").glob("*.json"))]
    return [ordered(base | _rules(e, base) | graded(e)) for e in evaluations if e["students"]] or [ordered(base)]


def _rules(evaluation: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The protocol's digest for an evaluation that does not record it: the run's under its own name, else the name."""
    own = evaluation["protocol"] == base["protocol"]
    return {"protocol_digest": base["protocol_digest"] if own else evaluation["protocol"]}


def _origin(spec: dict[str, Any], folder: Path, base: dict[str, Any]) -> dict[str, Any]:
    """What the run was distilled from, which its evaluations may differ from, and what it shares with other seeds.

    ``setting`` is the digest of everything that decides a set but its seed and the machine.
    """
    here = {"seed": None, "device": None, "threads": None}
    data = {n: v for n, v in spec["dataset"].get("options", {}).items() if n not in PLACES}
    setting = spec | here | {"dataset": {"name": spec["dataset"]["name"], "options": data}}
    seen = folder / "dataset.json"  # written when a run starts, so that one that diverged stands beside the others
    known = base["dataset_digest"] or (read_json(seen).get("digest") if seen.exists() else None)
    return {
        "dataset_digest": known,
        "setting": digest(setting)[:12],
        "distil_digest": known,
        "distil_network": base["network"],
        "distil_protocol": spec["protocol"]["name"],
        "distil_rules": _rules_of(spec),
        "architecture": digest(spec["network"]),
        "versions": ", ".join(sorted({str(v) for v in spec.get("versions", {}).values()})),
    }


def _rules_of(spec: dict[str, Any]) -> str:
    """The digest of a run's protocol; of specs that do not record it, of all its options."""
    return spec.get("protocol_digest") or digest(spec["protocol"])


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    """The options of a run but its protocol's, ``group.name`` to value; not where the data lie."""
    groups = {kind: spec[kind].get("options", {}) for kind in ("dataset", "matcher", "scheduler")}
    groups["dataset"] = {name: value for name, value in groups["dataset"].items() if name not in PLACES}
    groups |= {name: spec.get(name, {}) for name in ("experts", "decoder")}
    return {f"{group}.{name}": value for group, given in groups.items() for name, value in given.items()}


def graded(evaluation: dict[str, Any]) -> dict[str, Any]:
    scores = [student["accuracy"] for student in evaluation["students"]]
    others = {name for student in evaluation["students"] for name in student} - {"accuracy", "diverged"}
    means = {f"{name}_mean": mean(s[name] for s in evaluation["students"] if name in s) for name in sorted(others)}
    about = {name: evaluation[name] for name in ("network", "protocol", "dataset", "dataset_digest")}
    # what these students got: their steps, and the bytes of stored labels or of a teacher
    kept = ("steps", "label_bytes", "protocol_digest", "selection")
    about |= {name: evaluation[name] for name in kept if name in evaluation}
    about |= {"evaluation_seed": evaluation["seed"]} if "seed" in evaluation else {}
    if "lrs" in evaluation:
        about |= {"student_lr": ", ".join(dict.fromkeys(f"{lr:.4g}" for lr in evaluation["lrs"]))}
    about |= {"together": True} if evaluation.get("together") else {}
    about |= {"evaluation": evaluation["key"]} if "key" in evaluation else {}
    about |= {} if evaluation["complete"] else {"status": "evaluating"}
    if lost := sum("diverged" in student for student in evaluation["students"]):
        about |= {"error": f"{lost} of {len(scores)} students diverged", "status": "diverged"}
    return about | means | {"accuracy_mean": mean(scores), "accuracy_std": deviation(scores), "n": len(scores)}


def deviation(scores: list[float]) -> float | None:
    """Population standard deviation over students, as the field reports it; one student has none, rather than zero."""
    return pstdev(scores) if len(scores) > 1 else None


def ordered(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in COLUMNS} | {n: v for n, v in row.items() if n not in COLUMNS}
