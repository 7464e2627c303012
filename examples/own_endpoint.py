"""A reward behind a URL: scores batches of responses, here with `tidy` of own_reward.py.

    REWARD_KEY=secret .venv/bin/python -m uvicorn examples.own_endpoint:app --port 9000

Without that variable it accepts every caller. In a job's specification (the studio needs the variable, too):

    {"method": "perpo", ..., "hyperparameters": {"reward": {"custom":
        {"url": "http://127.0.0.1:9000/", "weight": 0.1, "api_key_env": "REWARD_KEY"}}}}

A job begins with an empty batch, and repeats a request that fails. Give equal responses equal values: then a resumed
job ends as if it had never stopped.
"""

import os
import secrets
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from examples.own_reward import tidy
from training.scoring.custom import Case

app = FastAPI(title="A reward of your own")


class Batch(BaseModel):
    """Questions with a response each; docs/own-rewards-and-tasks.md lists their fields."""

    cases: list[dict[str, Any]]


class Rewards(BaseModel):
    """A value for each case, in order; named values are added up."""

    rewards: list[float | dict[str, float]]


@app.post("/")
def score(batch: Batch, *, authorization: Annotated[str, Header()] = "") -> Rewards:
    """Score every case; 401 without the key."""
    key = os.environ.get("REWARD_KEY", "")
    if key and not secrets.compare_digest(authorization.encode(), f"Bearer {key}".encode()):
        raise HTTPException(401, "the key is wrong")
    cases = map(Case.from_json, batch.cases)
    return Rewards(rewards=[tidy(case.sample, case.response) for case in cases])
