"""What /v1/limits promises is what the engine allows."""

from __future__ import annotations

import random

from model.engine.phases import PhaseRules
from model.engine.sequence import SamplingParams, Sequence
from tests.app.conftest import Server

WORDS = ("circle", "red", "Which", "<image_1>", "7", "?", "left of", "größer", "\n", "tile")


async def test_limits_promise_what_the_engine_allows(server: Server) -> None:
    info = server.services.checkpoints.usable(None)
    template = server.services.checkpoints.template(info)
    vocab = template.vocab
    rules = PhaseRules(vocab.boi_id, vocab.eoi_id, vocab.eos_id, vocab.codes_per_image)
    rng = random.Random(7)
    for _ in range(200):
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 300)))
        images = rng.randint(1, 4)
        answer = await server.client.post("/v1/limits", json={"question": question, "images": images})
        promised = answer.json()
        prompt = template.prompt_ids(question, [tuple(range(vocab.codes_per_image))] * images)
        assert promised["prompt_tokens"] == len(prompt)
        if promised["room_tokens"] == 0:
            assert len(prompt) >= info.context_len
            continue
        sequence = Sequence.create(
            "one", 0, prompt, SamplingParams(), rules=rules, context_len=info.context_len, resumed=[]
        )
        assert promised["room_tokens"] == sequence.state.max_tokens
        assert promised["room_images"] == sequence.state.max_images
