"""The schema of `delvm serve`. The comments of conf/verbs/serve.yaml explain each key."""

from dataclasses import dataclass, field, fields

from delvm.configs.keys import Device, Precision, require_min
from delvm.data.resizing import ResizeMode

MAX_PORT = 65_535


@dataclass
class ServeConfig:
    tokenizer: str = "shapes"
    students: dict[str, str] = field(default_factory=dict)
    prompts: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    resize: ResizeMode | None = None
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    max_upload_mb: int = 16
    max_pixels: int = 20_000_000
    max_queue: int = 16
    max_answers: int = 4
    max_cache_mb: int = 1024
    max_body_seconds: int = 30

    def validate(self) -> list[str]:
        limits = [each.name for each in fields(self) if each.name.startswith("max_")]
        errors = require_min(1, self, *limits)
        if not 0 <= self.port <= MAX_PORT:
            errors.append(f"port={self.port} is not in 0..{MAX_PORT}: set port=7860, or 0 for any")
        return errors
