"""Ask about an image with the `openai` package, watch the steps, and keep the images.

    pip install openai
    python examples/responses.py picture.png "What colour is the circle?"

Reads the server's address from OMNI_R1_URL and its key from OMNI_R1_API_KEY. The images are stored in the folder
`images`, or the one given by --folder. A connection that breaks is resumed where it stopped.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openai import APIConnectionError, OpenAI
from openai.types.responses import ResponseStreamEvent

SERVER = os.environ.get("OMNI_R1_URL", "http://127.0.0.1:7860")
ENDS = ("response.completed", "response.incomplete", "response.failed")
KEY = os.environ.get("OMNI_R1_API_KEY") or "none"  # the package wants one, a server without a key ignores it


def events(client: OpenAI, **request: Any) -> Iterator[ResponseStreamEvent]:
    """The events of a new response; `background` lets it go on while the connection is broken."""
    stream = client.responses.create(stream=True, background=True, **request)
    response_id, last = "", -1
    while True:
        try:
            for event in stream:
                if event.type == "response.created":
                    response_id = event.response.id
                last = event.sequence_number
                yield event
                if event.type in ENDS:
                    return
        except APIConnectionError:
            if not response_id:
                raise
        stream = client.responses.retrieve(response_id, stream=True, starting_after=last)


def main() -> None:
    """Ask one question, and a second one about the same image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--then", help="another question about the same image")
    parser.add_argument("--folder", type=Path, default=Path("images"))
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)

    kind = mimetypes.guess_type(args.image.name)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(args.image.read_bytes()).decode()}"
    parts = [
        {"type": "input_text", "text": args.question},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    client = OpenAI(base_url=f"{SERVER}/v1", api_key=KEY, max_retries=10)  # a server may restart
    final = None
    for event in events(client, input=[{"role": "user", "content": parts}]):
        if event.type == "response.reasoning_summary_text.done":
            print(event.text)
        elif event.type == "response.output_item.done" and event.item.type == "image_generation_call":
            path = args.folder / f"{event.output_index}.png"
            path.write_bytes(base64.b64decode(event.item.result or ""))
            print(f"  {path}")
        elif event.type in ENDS:
            final = event.response
    assert final is not None
    print(f"{final.status}: {final.output_text or final.error}")

    if args.then:
        answer = client.responses.create(input=args.then, previous_response_id=final.id)
        print(f"{answer.status}: {answer.output_text or answer.error}")


if __name__ == "__main__":
    main()
