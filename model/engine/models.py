"""A checkpoint that answers: its files in memory and the engine over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.device import serving_dtype
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.images import decode_codes


@dataclass(eq=False)
class Model:
    """A checkpoint that answers. A retired one takes no new request and goes with its last."""

    name: str
    version: int
    loaded: LoadedCheckpoint
    engine: Engine
    retired: bool = False

    @classmethod
    def load(cls, name: str, folder: str, version: int, *, device: torch.device, num_slots: int) -> Model:
        """Read a folder and make its first step, so that the first request does not pay for it."""
        loaded = load_checkpoint(folder, device=device, dtype=serving_dtype(device))
        engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=num_slots)
        engine.drop_parameters()
        prompt = loaded.template.prompt_ids("?", [])
        engine.generate([prompt], SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=4))
        if loaded.can_draw and loaded.vq is not None:
            decode_codes(loaded.vq, [[0] * loaded.vocab.codes_per_image])
        return cls(name, version, loaded, engine)
