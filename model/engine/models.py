"""Checkpoints that answer: loaded beside each other, replaced and retired without a pause for those that run.

`Models` belongs to the worker's thread; reading and checking folders has a thread of its own, which posts what came of
it into the worker's inbox. Knows no request: the worker says which models are still in use.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import VQ_PREFIX, LoadedCheckpoint, load_checkpoint, validate_checkpoint
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ModelConfig
from model.engine.device import free_bytes, resident_bytes, resolve_device, total_bytes
from model.engine.engine import Engine
from model.engine.messages import Footprint, ImageInput
from model.engine.narrator import ImageJob, ImageResult
from model.engine.sequence import SamplingParams
from model.images.codes import decode_codes, decode_partial, encode_images, image_stats
from model.images.view import png_bytes
from model.precision import serving_dtype

log = logging.getLogger("omni_r1.engine")

GIVE_WAY_S = 0.1  # to the streams, at most, before each piece of a load
ADMISSIONS = 1  # prompts a step: streams that run wait for each
Post = Callable[[tuple[Any, ...]], None]


@dataclass(eq=False)
class Model:
    """A checkpoint that answers. A retired one takes no new request and goes with its last."""

    name: str
    version: int
    loaded: LoadedCheckpoint
    engine: Engine

    @classmethod
    def load(
        cls,
        name: str,
        folder: str,
        version: int,
        *,
        device: torch.device,
        num_slots: int,
        give_way: Callable[[], None] = lambda: None,
    ) -> Model:
        """Read a folder and make its first step, so that the first request does not pay for it."""
        loaded = load_checkpoint(folder, device=device, dtype=serving_dtype(device))
        give_way()
        engine = Engine(
            loaded.transformer, loaded.vocab, loaded.template, num_slots=num_slots, admissions_per_step=ADMISSIONS
        )
        engine.drop_parameters()
        give_way()
        prompt = loaded.template.prompt_ids("?", [])
        engine.generate([prompt], SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=4))
        give_way()
        if loaded.can_draw and loaded.vq is not None:
            decode_codes(loaded.vq, [[0] * loaded.vocab.codes_per_image])
        return cls(name, version, loaded, engine)

    def see(self, images: Sequence[ImageInput]) -> list[tuple[int, ...]]:
        """The codes of a question's pictures."""
        assert self.loaded.vq is not None
        return encode_images(self.loaded.vq, [i.png for i in images], [i.fit for i in images])

    def draw(self, all_codes: Sequence[Sequence[int]]) -> list[ImageResult]:
        """Whole images from their codes, decoded as one batch."""
        vq = self.loaded.vq
        assert vq is not None
        perception = self.loaded.manifest.perception
        stats = [image_stats(vq, codes, perception).to_json() for codes in all_codes]
        images = decode_codes(vq, all_codes)
        return [ImageResult(png_bytes(i), *i.size, s) for i, s in zip(images, stats, strict=True)]

    def draw_part(self, job: ImageJob) -> ImageResult:
        """A picture as far as it has come."""
        assert self.loaded.vq is not None
        image = decode_partial(self.loaded.vq, job.codes, job.previous)
        return ImageResult(png_bytes(image, quick=True), *image.size)

    @property
    def num_bytes(self) -> int:
        """What it holds: the engine's weights, the VQ, the cache of keys and values."""
        vq = self.loaded.vq
        vq_bytes = 0 if vq is None else sum(tensor.nbytes for tensor in vq.state_dict().values())
        return self.engine.num_weight_bytes + vq_bytes + self.engine.cache.num_bytes


def footprint(folder: str, *, device: torch.device, num_slots: int) -> Footprint:
    """What a checkpoint will hold once it answers, and while it is being loaded, from its headers alone.

    While it is loaded the parameters stand beside the engine's own copies of them.

    Raises:
        CheckpointError, ConfigError: the folder is none.
    """
    config = ModelConfig.read(folder)
    width = serving_dtype(device).itemsize
    sizes = {True: 0, False: 0}
    for name, entry in read_entries(Path(folder)).items():
        sizes[name.startswith(VQ_PREFIX)] += math.prod(entry.shape)
    t = config.transformer
    cache = 2 * t.num_layers * num_slots * t.context_len * t.num_kv_heads * t.head_dim
    resident = width * (sizes[False] + cache) + 4 * sizes[True]
    return Footprint(resident=resident, loading=resident + width * sizes[False])


class Models:
    """Every model by name; replaced and unloaded ones stay until nobody uses them."""

    def __init__(
        self,
        post: Post,
        *,
        device: str,
        num_slots: int,
        num_threads: int | None,
        give_way: Callable[[float], None] = lambda _most_s: None,
    ) -> None:
        """`give_way` is asked by the loading thread between two pieces of its work and returns after that long at
        most: loading takes the core, and the interpreter's lock, from the streams."""
        self._post, self._give_way = post, partial(give_way, GIVE_WAY_S)
        self._device_name, self._num_slots, self._num_threads = device, num_slots, num_threads
        self._device: torch.device | None = None
        self._loaded: dict[str, Model] = {}
        self._retired: list[Model] = []
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._under_way = 0
        self.all_named = False  # whether the first checkpoints have all been named
        self.problem = ""  # of the last one that was named at the start and could not be loaded

    def configure(self, *, device: str, num_slots: int, num_threads: int | None) -> None:
        """Before the first load."""
        self._device_name, self._num_slots, self._num_threads = device, num_slots, num_threads

    def close(self) -> None:
        """Wait for the running load and drop the others."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    # What there is

    def __iter__(self) -> Iterator[Model]:
        """Those that take requests and those that only end theirs."""
        return iter((*self._loaded.values(), *self._retired))

    def __getitem__(self, name: str) -> Model:
        return self._loaded[name]

    def find(self, name: str, version: int | None = None) -> Model | None:
        """The model of that name, with a version of exactly that one, be it retired."""
        model = self._loaded.get(name)
        if version is None or (model is not None and model.version == version):
            return model
        return next((m for m in self._retired if (m.name, m.version) == (name, version)), None)

    @property
    def versions(self) -> dict[str, int]:
        """Name to version of those that take requests."""
        return {name: model.version for name, model in self._loaded.items()}

    @property
    def num_retired(self) -> int:
        """Those that wait for their last request."""
        return len(self._retired)

    @property
    def settled(self) -> bool:
        """Whether a name that is unknown now will stay unknown: nothing is being loaded."""
        return self.all_named and self._under_way == 0

    def memory(self) -> dict[str, Any]:
        """Bytes held and free; `models` is what each name holds, `retired` what is on its way out."""
        device = self._device
        return {
            "rss": resident_bytes(),
            "weights": sum(m.engine.num_weight_bytes for m in self),
            "kv_cache": sum(m.engine.cache.num_bytes for m in self),
            "models": {name: model.num_bytes for name, model in self._loaded.items()},
            "retired": sum(model.num_bytes for model in self._retired),
            "free": free_bytes(device),
            "total": total_bytes(device),
            "device": str(device),
            "num_threads": torch.get_num_threads(),
        }

    # Coming and going

    def check(self, folder: str, ticket: int) -> None:
        """Post ("checked", footprint, error, ticket) once the folder has been read from end to end."""

        def check() -> tuple[Any, ...]:
            self._give_way()
            validate_checkpoint(folder)
            return ("checked", footprint(folder, device=self._prepare(), num_slots=self._num_slots), None, ticket)

        self._in_thread(check, lambda error: ("checked", None, error, ticket))

    def load(self, name: str, folder: str, version: int, ticket: int | None) -> None:
        """Post ("model", name, model, error, ticket) once the folder is loaded, or is not."""
        self._under_way += 1

        def load() -> tuple[Any, ...]:
            self._give_way()
            model = Model.load(
                name, folder, version, device=self._prepare(), num_slots=self._num_slots, give_way=self._give_way
            )
            return ("model", name, model, None, ticket)

        def failed(error: Exception) -> tuple[Any, ...]:
            expected = isinstance(error, CheckpointError)
            log.error("checkpoint %s could not be loaded: %s", name, error, exc_info=None if expected else error)
            return ("model", name, None, error, ticket)

        self._in_thread(load, failed)

    def take(self, name: str, model: Model | None) -> None:
        """The end of a load: the model takes its name's requests from now on; None when there is none."""
        self._under_way -= 1
        if model is not None:
            self.retire(name)
            self._loaded[name] = model

    def retire(self, name: str) -> None:
        """Take the name away; `sweep` lets its model go."""
        model = self._loaded.pop(name, None)
        if model is not None:
            self._retired.append(model)

    def sweep(self, used: Collection[Model]) -> list[Model]:
        """Let retired models go that are not in use; those."""
        gone = [model for model in self._retired if model not in used]
        if gone:
            self._retired = [model for model in self._retired if model in used]
            self._loader.submit(_give_back_memory)
        return gone

    def _prepare(self) -> torch.device:
        if self._device is None:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
            self._device = resolve_device(self._device_name)
        return self._device

    def _in_thread(self, work: Callable[[], tuple[Any, ...]], failed: Callable[[Exception], tuple[Any, ...]]) -> None:
        def run() -> None:
            try:
                message = work()
            except Exception as error:
                message = failed(error)
            self._post(message)

        self._loader.submit(run)


def _give_back_memory() -> None:
    """Return the memory of dropped models to the machine; off the step loop, since a collection takes a while."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl gives memory back by itself
        if trim is not None:
            trim(0)
