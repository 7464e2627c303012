"""`/v1/rewards`: grades an answer as in training and benchmarks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends

from app.contract.examples import REWARDS
from app.contract.schemas_rewards import RewardIn, RewardOut
from app.http.deps import App, problems, require_json
from app.storage.keys import require

router = APIRouter(prefix="/v1/rewards", tags=["jobs"])


@router.post(
    "",
    response_model=RewardOut,
    response_model_exclude_unset=True,
    dependencies=[Depends(require_json)],
    summary="Grade an answer, or score a trace",
    responses=problems(400, 403, 404, 409, 415, 422, 503),
)
async def grade_answer(
    body: Annotated[RewardIn, Body(openapi_examples={name: {"value": value} for name, value in REWARDS.items()})],
    app: App,
) -> dict[str, Any]:
    """Whether the answer is correct, which check decided, and the parsed values.

    With `trace_id` also the trace's format, perception and drawings; with `reward` also rewards of your own.
    """
    if body.reward is not None and body.reward.custom:
        require("train")  # it runs the operator's code, as a job would
    return await app.grader.score(body)
