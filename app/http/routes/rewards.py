"""`/v1/rewards`: grades an answer as in training and benchmarks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from app.contract.schemas_rewards import RewardIn, RewardOut
from app.http.deps import App, problems, require_json

router = APIRouter(prefix="/v1/rewards", tags=["jobs"])


@router.post(
    "",
    response_model=RewardOut,
    dependencies=[Depends(require_json)],
    summary="Grade an answer",
    responses=problems(400, 403, 415, 422, 503),
)
async def grade_answer(body: RewardIn, app: App) -> dict[str, Any]:
    """Whether the answer is correct, which check decided, and the parsed values."""
    return await app.grader.grade(body.answer, body.reference, body.choices, similarity=body.similarity)
