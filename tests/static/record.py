"""Records `recorded.json`, the trace that the viewer's tests replay: `python tests/static/record.py URL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.client import Client


def main(url: str) -> None:
    with Client(url) as client:
        task = client.task(slice="natural", seed=1_000_000_007)
        started = client.create_trace(
            task["question"], [task["image_id"]], task_id=task["task_id"], partial_images=32, sampling={"seed": 81}
        )
        events = [{"seq": event.seq, "type": event.type, "data": event.data} for event in client.events(started["id"])]
        record = {"started": started, "events": events, "trace": client.trace(started["id"])}
    path = Path(__file__).with_name("recorded.json")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
