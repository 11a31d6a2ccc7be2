"""Tables of the registry: every model, whatever made it."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from backend.db import Base


class Model(Base):
    """A neural network: a folder of safetensors, its config and its tokenizer, in the artifact store."""

    __tablename__ = "model"
    __table_args__ = (
        CheckConstraint("kind in ('language', 'reward')", name="kind"),
        Index("ix_model_project_id_id", "project_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    """``language``, or ``reward``: one number per text."""
    adapter_of_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"), index=True)
    """The model whose weights this adapter changes; ``None``: the weights are whole."""
    run_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    """The run that made it; ``None``: it was registered from files. The key to ``run`` is added with that table."""
    step: Mapped[int | None] = mapped_column(BigInteger)
    """Optimizer step at which the run saved it."""
    manifest: Mapped[list[Any]] = mapped_column(JSONB)
    """``[name, size, sha256]`` of each file."""
    parameters: Mapped[int] = mapped_column(BigInteger)
    """Numbers in its safetensors files (an adapter's own, without its base)."""
    dtype: Mapped[str] = mapped_column(Text)
    """Most frequent data type of the tensors, as safetensors writes it: ``F32``, ``BF16`` …"""
    architecture: Mapped[str] = mapped_column(Text, server_default="")
    """From its config: ``LlamaForCausalLM``, or the adapter's ``LORA``."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str] = mapped_column(Text, server_default="")
    """Where a registered model came from, in words."""
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
