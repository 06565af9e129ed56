"""From a recipe's sections to a teacher at an API, one request at a time or in batches."""

from __future__ import annotations

from pathlib import Path

from stillroom.contracts.recipe import Teach, Teacher
from stillroom.contracts.records import Answerer


def open_api_teacher(teacher: Teacher, teach: Teach, folder: Path) -> Answerer:
    """The teacher at `teacher.api`.

    Args:
        teacher: who is asked.
        teach: how.
        folder: where batches that are under way are kept.

    Raises:
        TeacherError: the address or the key is missing.
    """
    # aiohttp is imported only where something is asked.
    if teach.batch_endpoint:
        from stillroom.models.batches import BatchModel

        return BatchModel(
            teacher.api or "",
            teacher.model,
            folder,
            api_key_env=teacher.api_key_env,
            parameters=teach.parameters,
            timeout=teach.timeout,
        )
    from stillroom.models.api import ApiModel

    return ApiModel(
        teacher.api or "",
        teacher.model,
        api_key_env=teacher.api_key_env,
        concurrency=teach.concurrency,
        requests_per_minute=teach.requests_per_minute,
        tokens_per_minute=teach.tokens_per_minute,
        timeout=teach.timeout,
        parameters=teach.parameters,
    )
