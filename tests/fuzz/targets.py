"""All fuzz targets: each module that is imported here enters those of its subject."""

import file_targets  # noqa: F401
import message_targets  # noqa: F401
import node_targets  # noqa: F401
import record_targets  # noqa: F401
import resume_targets  # noqa: F401
import transaction_targets  # noqa: F401
from target_registry import TARGETS as TARGETS
