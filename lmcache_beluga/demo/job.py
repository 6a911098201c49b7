"""What the demo's two processes are told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What both processes must agree on, and what tells them apart."""

    name: str
    pool: str
    config_file: str
    backend: str
    tokens: int
    seed: int
    folder: str
    hosts: int = 1

    @property
    def kv_file(self) -> Path:
        """The prompt's KV as engine A has it: per layer ``[2, tokens, heads, head_dim]``."""
        return Path(self.folder, "reference.kv")

    @property
    def logits_file(self) -> Path:
        """Logits of the first engine's continuation, ``[STEPS, vocabulary]``."""
        return Path(self.folder, "reference.logits.npy")

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Job:
        """Read what `save` wrote."""
        return Job(**json.loads(path.read_text()))
