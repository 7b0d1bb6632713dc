"""Rows of runs without runs, for what is made of them."""

from __future__ import annotations

from typing import Any

from ddbench.run.row import Row


def rows(matcher: str, scores: list[float], **more: Any) -> list[Row]:
    """A run for each score, with seeds 0, 1, ..."""
    base: dict[str, Any] = {
        "dataset": "toy",
        "dataset_digest": "d" * 8,
        "matcher": matcher,
        "scheduler": "single",
        "network": "convnet",
        "ipc": 1,
        "protocol": "default",
        "protocol_digest": "aaaaaaaabbbb",
        "label_type": "hard",
        "status": "ok",
        "selection": "validation",
        "n": 2,
        "options": {},
    }
    return [
        Row(**base | {"seed": seed, "accuracy_mean": score, "run": f"{matcher}-{more}-{seed}"} | more)
        for seed, score in enumerate(scores)
    ]
