"""Every setting of the studio, in one frozen class, read only where a process starts (app, cli, worker.app, tests)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment variables carry the field's name in capitals: ``DATABASE_URL``, ``REDIS_URL`` …

    With neither ``DATABASE_URL`` nor ``REDIS_URL`` set, ``studio up`` runs its own servers and fills both in.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    database_url: str = "postgresql+psycopg://studio@127.0.0.1:5432/studio"
    """SQLAlchemy URL of the Postgres server (15 or newer)."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Redis or Valkey: carries task ids and wake-ups, never facts."""
    artifacts_url: str = ".studio/artifacts"
    """Folder or fsspec URL (``s3://bucket/prefix``) of weights, rows and checkpoints."""
    studio_home: Path = Path(".studio")
    """Folder of this machine: embedded servers, logs, run folders, the artifact cache."""
    public_url: str = "http://127.0.0.1:8400"
    """Address people type; its origin is the only one that unsafe requests may come from, https makes cookies Secure."""
    session_idle_hours: float = Field(12, gt=0)
    """A browser session ends after this long without a request."""
    session_absolute_hours: float = Field(7 * 24, gt=0)
    """A browser session ends after this long whatever happens."""
    max_upload_bytes: int = Field(2 * 2**30, gt=0)
    """Largest file that can be uploaded, as sent."""
    worker_slots: int = Field(1, ge=1)
    """How many runs this worker executes at once: the number of its GPUs, or 1 on CPU."""
    lease_seconds: float = Field(60, gt=0)
    """A run belongs to its worker this long after the last heartbeat."""
    heartbeat_seconds: float = Field(10, gt=0)
    """How often a worker says that it still holds its run."""
    reap_seconds: float = Field(10, gt=0)
    """How often beat looks for expired leases and forgotten queued runs."""
    cancel_grace_seconds: float = Field(15, gt=0)
    """A cancelled recipe gets this long to end its step and checkpoint, then TERM, then KILL."""
    sweep_after_hours: float = Field(24, gt=0)
    """Files of the artifact store that no row names are removed once they are this old."""
