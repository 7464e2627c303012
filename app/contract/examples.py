"""Examples for OpenAPI: requests, and responses and events of a server with the embedded models, shortened."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict


def example(**fields: Any) -> ConfigDict:
    """`model_config` of a model, with this example in its schema."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def image(image_id: str) -> dict[str, Any]:
    """A stored image of the embedded models' size."""
    return {"image_id": image_id, "url": f"/v1/images/{image_id}", "width": 64, "height": 64}


TRACE_ID = "tr_1m8hecv6a000vmjrcae2"
JOB_ID = "job_1m8hecw2g000zcq5rn56"
QUESTION = "Find the square. What is its colour?"
QUESTION_IMAGE = image("4123d3a1b6079523ada8324c9921811e800ee5090e34a693a688e4bf3a70d864")
STEP_IMAGE = image("e01f036dec9eb7b5cbfc303ebe63b52bf701e2fa55af21160bf3574e74283cde") | {
    "skill": "mark",
    "stats": {"codes": 31, "flatness": 0.328125, "tv": 2.308593, "perception_reward": 0.602494, "passes": 5},
}
LAST_IMAGE = image("e01a79d3c72236a5dfe2d4481a9d459aa334075657c1e9834c1645308640170c") | {
    "skill": "zoom",
    "stats": {"codes": 20, "flatness": 0.171875, "tv": 3.887293, "perception_reward": 0.473722, "passes": 15},
}
CANDIDATES = [image(LAST_IMAGE["image_id"]), image(STEP_IMAGE["image_id"])]
USAGE = {"prompt_tokens": 76, "kept_tokens": 0, "completion_tokens": 153, "images": 2}
TIMINGS = {"queued_ms": 152, "first_text_ms": 172, "total_ms": 790}

_ENDED: dict[str, Any] = {
    "id": TRACE_ID,
    "status": "completed",
    "question": QUESTION,
    "images": [QUESTION_IMAGE],
    "mode": "auto",
    "answer": "yellow",
    "finish_reason": "stop",
    "checkpoint": "nano-omni-r1",
    "weight_version": 1,
    "sampling": {"temperature": 0.0, "top_p": 1.0, "seed": 81, "max_new_tokens": 692, "max_images": 10},
    "usage": USAGE,
    "timings": TIMINGS,
    "task_id": "natural-1000000007",
    "verdict": {"answer": "right", "drawings_right": 2, "drawings_total": 2},
    "metadata": {},
    "rating": 1,
    "tags": ["good box"],
    "note": None,
    "created_at": "2026-11-28T16:04:16.202Z",
    "started_at": "2026-11-28T16:04:16.354Z",
    "finished_at": "2026-11-28T16:04:16.994Z",
}
TRACE = _ENDED | {
    "steps": [
        {"index": 1, "text": "I look for the square and mark it.", "image": STEP_IMAGE},
        {"index": 2, "text": "I zoom in on the mark.", "image": LAST_IMAGE},
    ]
}
TRACE_ENTRY = _ENDED | {"first_image": QUESTION_IMAGE, "last_image": image(LAST_IMAGE["image_id"])}

TASK = {
    "task_id": "natural-1000000007",
    "slice": "natural",
    "family": "find",
    "seed": 1_000_000_007,
    "question": QUESTION,
    "image_id": QUESTION_IMAGE["image_id"],
    "image": QUESTION_IMAGE,
}

CHECKPOINT = {
    "id": "nano-omni-r1",
    "name": "nano-omni-r1",
    "active": True,
    "loaded": True,
    "weight_version": 1,
    "template": "plain",
    "base": "nano-base",
    "licence": "MIT",
    "description": "Answers questions about images of the task world by drawing its way there (PeSFT, then PeRPO).",
    "size_bytes": 7_736_908,
    "created_at": "2026-11-23T02:06:47+00:00",
    "capabilities": {"images_in_answer": True, "images_in_question": True},
    "images": {"min": 1, "max": 1},
    "context_len": 768,
    "tokens_per_image": 66,
    "resolution": 64,
    "lineage": {"stage": "perpo", "step": 30, "start": "nano-omni-r1-pesft"},
    "metrics": {"accuracy/all": 0.92},
    "card_notes": None,
    "source": "package",
    "folder": "/opt/omni-r1/model/nano/nano-omni-r1",
}

RESPONSE_ITEMS: list[dict[str, Any]] = [
    {
        "id": f"rs_{TRACE_ID}_0",
        "type": "reasoning",
        "status": "completed",
        "summary": [{"type": "summary_text", "text": "I look for the square and mark it."}],
    },
    {
        "id": f"ig_{TRACE_ID}_1",
        "type": "image_generation_call",
        "status": "completed",
        "result": "iVBORw0KGgoAAAANSUhEUg==",
        "output_format": "png",
        "size": "64x64",
    },
    {
        "id": f"msg_{TRACE_ID}_2",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "yellow", "annotations": [], "logprobs": []}],
    },
]
RESPONSE: dict[str, Any] = {
    "id": f"resp_{TRACE_ID}",
    "object": "response",
    "created_at": 1_795_881_856,
    "completed_at": 1_795_881_856,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "nano-omni-r1",
    "output": RESPONSE_ITEMS,
    "usage": {
        "input_tokens": 76,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 153,
        "output_tokens_details": {"reasoning_tokens": 150},
        "total_tokens": 229,
    },
    "metadata": {"trace_id": TRACE_ID},
    "background": False,
    "previous_response_id": None,
    "temperature": 0.0,
    "top_p": 1.0,
    "max_output_tokens": None,
    "user": None,
    "instructions": None,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "max_tool_calls": None,
    "top_logprobs": 0,
    "truncation": "disabled",
    "service_tier": "default",
    "store": True,
}
INPUT_ITEM: dict[str, Any] = {
    "id": f"msg_{TRACE_ID}_in0",
    "type": "message",
    "role": "user",
    "status": "completed",
    "content": [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "file_id": QUESTION_IMAGE["image_id"], "image_url": None, "detail": "auto"},
    ],
}

MODEL = {"id": "nano-omni-r1", "object": "model", "created": 1_795_399_607, "owned_by": "omni-r1"}

REWARDS: dict[str, dict[str, Any]] = {
    "answer": {"answer": "The answer is 5 km.", "reference": "5000 m"},
    "options": {"answer": "(B)", "reference": "blue", "choices": ["red", "blue"]},
    "trace": {"trace_id": TRACE_ID},
    "own reward": {"trace_id": TRACE_ID, "reward": {"custom": {"file": "own_reward.py:tidy", "weight": 0.1}}},
}
JOB_SPEC = {
    "method": "pesft",
    "base_checkpoint": "nano-base",
    "data": {"source": "unitasks", "num_samples": 64},
    "hyperparameters": {"steps": 4, "log_every": 1},
    "seed": 1,
    "output_name": "circles",
}
METRICS = {"loss/text": 2.4394373, "loss/image": 0.1326538, "loss/ce": 0.5439918, "loss/perception": 1.8711054}
JOB = {
    "id": JOB_ID,
    "status": "succeeded",
    "method": "pesft",
    "name": "circles",
    "tags": ["baseline"],
    "note": None,
    "continues": None,
    "sweep": None,
    "progress": {"stage": "pesft", "step": 4, "total": 4, "eta_s": 0.0},
    "metrics": METRICS,
    "spec": JOB_SPEC | {"activate": False, "gpu": "shared", "num_gpus": 1, "threads": 1},
    "result": {"checkpoint": "circles-step-4", "steps": 4, "precision": "bf16", "seconds": 7.0},
    "error": None,
    "checkpoints": [
        {
            "name": "circles-step-4",
            "stage": "pesft",
            "step": 4,
            "metrics": METRICS,
            "created_at": "2026-11-28T16:04:26.805Z",
        }
    ],
    "attempt": 1,
    "cancel_requested": False,
    "created_at": "2026-11-28T16:04:17.108Z",
    "started_at": "2026-11-28T16:04:17.152Z",
    "finished_at": "2026-11-28T16:04:27.626Z",
    "running_s": 10.5,
    "resumable": False,
    "heartbeat_at": None,
    "last_event": 19,
}
SWEEP: dict[str, Any] = {"id": "sw_1m8hecw2g000zcq5rn56", "name": "rates", "spec": JOB_SPEC, "grid": {"seed": [1]}}
SWEEP |= {"counts": {"succeeded": 1}, "created_at": JOB["created_at"]}
METRICS_ROW = {"seq": 15, "stage": "pesft", "step": 4, "values": METRICS, "time": "2026-11-28T16:04:26.394+00:00"}

# The example of each model by its name, for requests and for responses.
GROUP: dict[str, Any] = {
    "id": "gr_1m8hf8052000rzms27r3",
    "kind": "samples",
    "trace_ids": [TRACE_ID, "tr_1m8hecv6b000pd2xw7ra"],
    "status": "completed",
    "tally": [{"answer": "yellow", "count": 2, "share": 1.0, "mean_logprob": -0.021}],
    "agreement": 1.0,
    "created_at": "2026-11-28T16:19:06.018Z",
    "finished_at": "2026-11-28T16:19:06.472Z",
}

DATASET_ID = "5f70bf18a086007016e948b04aed3b82"
DATASET = {
    "id": DATASET_ID,
    "path": f"uploads/{DATASET_ID}.jsonl",
    "format": "jsonl",
    "bytes": 48_213,
    "rows": 64,
    "complete": True,
    "method": "perpo",
    "usable_for": {"pesft": 0, "perpo": 63, "zero": 0, "benchmark": 63},
    "most_images": 1,
    "rejected": {
        "rows": 1,
        "reasons": {"broken_picture": 1},
        "first": [
            {
                "where": f"{DATASET_ID}.jsonl:17",
                "row": 17,
                "code": "broken_picture",
                "detail": "'image': the base64 of a PNG image is broken: it is cut off",
                "methods": ["pesft", "perpo", "zero", "benchmark"],
            }
        ],
        "url": f"/v1/datasets/{DATASET_ID}/rejections",
    },
    "preview": [
        {
            "where": f"{DATASET_ID}.jsonl:1",
            "question": QUESTION,
            "images": [{"url": f"/v1/datasets/{DATASET_ID}/images/1-question-1.png", "token_ids": None}],
            "images_total": 1,
            "steps": [],
            "steps_total": 0,
            "step_images_total": 0,
            "answer": "yellow",
            "choices": [],
            "slice": "natural",
            "usable_for": ["perpo", "benchmark"],
        }
    ],
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "TraceCreate": {"question": QUESTION, "images": [{"image_id": QUESTION_IMAGE["image_id"]}], "partial_images": 4},
    "ContinueIn": {"mode": "auto"},
    "BranchCreate": {"after_step": 1, "edits": [{"step": 1, "image": {"use": "previous"}}], "n": 4},
    "AlternativesIn": {"step": 1, "token": 3},
    "AlternativesOut": {"data": [{"id": 901, "text": " one", "logprob": -0.0005}]},
    "BranchList": {
        "data": [TRACE | {"parent": {"trace_id": TRACE_ID, "after_step": 1, "edited_steps": [1], "group_id": None}}]
    },
    "Tree": {
        "root": TRACE_ID,
        "nodes": [
            {
                "id": TRACE_ID,
                "parent_id": None,
                "after_step": None,
                "edited_steps": [],
                "status": "completed",
                "answer": "yellow",
                "verdict": "right",
                "checkpoint": "nano-omni-r1",
                "seed": 81,
                "intervention": False,
            }
        ],
    },
    "TokensOut": {
        "steps": [
            {"index": 1, "tokens": [{"text": " look", "logprob": -0.0021}], "image": [[-0.4, -0.1], [-1.2, -0.3]]}
        ],
        "answer": [{"text": " yellow", "logprob": -0.0003}],
    },
    "TraceUpdate": {"rating": 1, "tags": ["good box"], "note": "The box fits."},
    "ExportCreate": {"filter": {"rating": 1, "tag": "good box"}, "format": "jsonl"},
    "Group": GROUP,
    "GroupList": {"data": [GROUP], "has_more": False},
    "AttentionIn": {"from": {"step": 2}},
    "InterventionsIn": {"steps": [1, 2], "with": ["previous", "reference"]},
    "RelianceOut": {
        "answer_logprob": -0.0021,
        "images": [
            {"step": 0, "image_id": QUESTION_IMAGE["image_id"], "reliance": 0.41, "per_step": [3.2, 1.7]},
            {"step": 1, "image_id": STEP_IMAGE["image_id"], "reliance": 2.63, "per_step": [0.0, 12.9]},
        ],
        "method": "masking",
    },
    "AttentionOut": {
        "images": [{"step": 1, "image_id": STEP_IMAGE["image_id"], "share": 0.31, "grid": [[0.02, 0.01], [0.2, 0.08]]}],
        "layers": "last third",
        "method": "attention",
    },
    "LimitsIn": {"question": QUESTION, "images": 1},
    "CheckpointCreate": {"source": "checkpoints/circles", "name": "circles"},
    "ActivateIn": {"drain": "wait"},
    "RewardIn": REWARDS["answer"],
    "Trace": TRACE,
    "TraceList": {"data": [TRACE_ENTRY], "has_more": False},
    "ImageOut": QUESTION_IMAGE,
    "TaskOut": TASK,
    "JobOut": JOB,
    "SweepOut": SWEEP | {"jobs": [JOB]},
    "SweepList": {"data": [SWEEP], "has_more": False},
    "JobList": {"data": [JOB], "has_more": False},
    "MetricsPage": {"data": [METRICS_ROW], "has_more": False},
    "DatasetOut": DATASET,
    "CheckpointOut": CHECKPOINT,
    "CheckpointList": {"data": [CHECKPOINT], "has_more": False},
    "ModelList": {"object": "list", "data": [MODEL]},
    "ModelOut": MODEL,
    "ResponseCreate": {
        "model": "nano-omni-r1",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": QUESTION},
                    {"type": "input_image", "file_id": QUESTION_IMAGE["image_id"]},
                ],
            }
        ],
    },
    "ResponseOut": RESPONSE,
    "ResponseDeleted": {"id": f"resp_{TRACE_ID}", "object": "response", "deleted": True},
    "InputItemList": {
        "object": "list",
        "data": [INPUT_ITEM],
        "first_id": INPUT_ITEM["id"],
        "last_id": INPUT_ITEM["id"],
        "has_more": False,
    },
    "LimitsOut": {
        "context_len": 768,
        "tokens_per_image": 66,
        "images": {"min": 1, "max": 1},
        "max_question_chars": 8000,
        "max_upload_bytes": 20_000_000,
        "queue": {"running": 0, "waiting": 0, "max": 64},
    },
    "ExtensionsOut": {
        "rewards": [{"file": "own_reward.py:tidy", "description": "Between 0 and 1: a third each for few steps."}],
        "families": [{"name": "dots", "package": "my-tasks 1.0"}],
        "files_allowed": True,
    },
    "RoomOut": {"prompt_tokens": 76, "room_tokens": 692, "room_images": 10},
    "RewardOut": {
        "accuracy": 1.0,
        "check": "unit",
        "answer": "5 km",
        "reference": "5000 m",
        "details": {"answer_value": "5", "reference_value": "5000"},
    },
    "Ready": {
        "phase": "ready",
        "checkpoint": "nano-omni-r1",
        "weight_version": 1,
        "quant": None,
        "detail": "",
        "loading": None,
        "version": "0.2.0+0d5f6f6e",
    },
    "Live": {"status": "ok", "version": "0.2.0", "commit": "0d5f6f6e"},
}
