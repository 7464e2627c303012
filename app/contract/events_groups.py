"""The events of a group's stream: those of its traces, each with its `trace_id`, and the group's own last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, create_model

from app.contract.events import TRACE_EVENTS
from app.contract.examples import TRACE_ID, example
from app.contract.schemas import Out
from app.contract.schemas_branches import Effect, Tally
from app.contract.words import GROUP_END


class GroupCompletedData(Out):
    """Every trace of the group has ended. The stream ends."""

    model_config = example(
        status="completed",
        tally=[{"answer": "yellow", "count": 3, "share": 0.75, "mean_logprob": -0.021, "verdict": "right"}],
        agreement=0.75,
    )

    status: Literal["completed"]
    tally: list[Tally]
    agreement: float | None = Field(description="share of the most frequent answer; null without answers")
    effects: list[Effect] | None = Field(None, description="of an intervention: what each member changed")


def _of_member(data: type[Out]) -> type[Out]:
    """The same data with the trace that it belongs to: `TextDeltaData` gives `GroupTextDeltaData`."""
    (sample,) = data.model_json_schema()["examples"]
    fields: dict[str, Any] = {"trace_id": (str, Field(description="the trace of the event"))}
    return create_model(
        f"Group{data.__name__}",
        __base__=data,
        __doc__=data.__doc__,
        __cls_kwargs__={"json_schema_extra": {"examples": [{"trace_id": TRACE_ID, **sample}]}},
        **fields,
    )


GROUP_EVENTS: Mapping[str, type[Out]] = {
    **{type_: _of_member(data) for type_, data in TRACE_EVENTS.items()},
    GROUP_END: GroupCompletedData,
}
