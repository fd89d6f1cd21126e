"""Files: checkpoints, networks described by names, and large results block by block."""

from riemae.storage.architectures import build, describe, outline, register
from riemae.storage.checkpoint import VERSION, load, present, save

__all__ = ["VERSION", "build", "describe", "load", "outline", "present", "register", "save"]
