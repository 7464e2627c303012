"""Loaded checkpoints: loading, replacing and retiring them without pausing running traces.

`Models` belongs to the worker's thread; a separate thread reads and checks folders and posts the results to the
worker's inbox. Knows no requests: the worker reports which models are still in use.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint, validate_checkpoint
from model.checkpoint.shards import CheckpointError
from model.engine.commands import Configure, Reply
from model.engine.device import free_bytes, is_shortage, resident_bytes, resolve_device, total_bytes
from model.engine.engine import Engine
from model.engine.messages import ImageInput, Reading
from model.engine.sequence import SamplingParams
from model.images.codes import copied_share, decode_codes, decode_partial, encode_images, image_stats
from model.images.view import png_bytes
from model.worker.narrator import ImageJob, ImageResult
from model.worker.plan import serving_plan
from model.worker.reading import Progress, ReadingMoved

log = logging.getLogger("omni_r1.engine")

MAX_IMAGE_WAIT_S = 0.1  # maximum wait for images before each piece of a load
ADMISSIONS = 1  # prompts per step: each one delays the running streams
Post = Callable[[object], None]


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load is over: with a model, or an error."""

    name: str
    model: Model | None
    error: Exception | None
    ticket: int | None


def error_pair(error: Exception, fallback: str) -> tuple[str, str]:
    """Code and message of an error for a reply."""
    return str(getattr(error, "code", fallback)), str(error)


@dataclass(eq=False)
class Model:
    """A loaded checkpoint. A retired one takes no new requests and is freed after its last one."""

    name: str
    version: int
    loaded: LoadedCheckpoint
    engine: Engine
    codec: str  # identity of tokenizer and VQ

    @classmethod
    def load(
        cls,
        name: str,
        folder: str,
        version: int,
        *,
        device: torch.device,
        settings: Configure,
        memory: int | None = None,
        on_bytes: Callable[[int], None] = lambda _count: None,
        wait_for_images: Callable[[], None] = lambda: None,
    ) -> Model:
        """Read a folder and run a warm-up step, so that the first request does not pay for it.

        `memory` bytes may be used; None: all of the device's.
        """
        plan = serving_plan(Path(folder), settings, device, memory or total_bytes(device))
        if plan.alone:
            remedy = f"; OMNI_R1_KV_MB={plan.twice_kv_mb} leaves room for one" if plan.twice_kv_mb else ""
            log.info("checkpoint %s may take all of the device, so none of its size fits beside it%s", name, remedy)
        loaded = load_checkpoint(
            folder,
            device=device,
            dtype=plan.dtype,
            context_len=plan.context_len,
            quant=plan.quant,
            on_bytes=on_bytes,
        )
        wait_for_images()
        engine = Engine(
            loaded.transformer,
            loaded.vocab,
            loaded.template,
            num_slots=plan.num_slots,
            num_pages=plan.num_pages,
            admissions_per_step=ADMISSIONS,
            keep_parameters=False,
            speculation=settings.speculation,
        )
        wait_for_images()
        engine.warm_up()
        prompt = loaded.template.prompt_ids("?", [])
        engine.generate([prompt], SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=4))
        wait_for_images()
        if loaded.can_draw and loaded.vq is not None:
            decode_codes(loaded.vq, [[0] * loaded.vocab.codes_per_image])
        return cls(name, version, loaded, engine, _codec(loaded))

    def see(self, images: Sequence[ImageInput]) -> list[tuple[int, ...]]:
        """Encode a question's images."""
        assert self.loaded.vq is not None
        return encode_images(self.loaded.vq, [i.png for i in images], [i.fit for i in images])

    def draw(
        self, all_codes: Sequence[Sequence[int]], before: Sequence[Sequence[int] | None] | None = None
    ) -> list[ImageResult]:
        """Decode complete images as one batch; `before` has the codes of the image before each, None if unknown."""
        vq = self.loaded.vq
        assert vq is not None
        perception = self.loaded.manifest.perception
        stats = [image_stats(vq, codes, perception).to_json() for codes in all_codes]
        for one, codes, previous in zip(stats, all_codes, before or [None] * len(stats), strict=True):
            if previous is not None:
                one["copied"] = round(copied_share(codes, previous), 6)
        images = decode_codes(vq, all_codes)
        return [ImageResult(png_bytes(i), *i.size, s) for i, s in zip(images, stats, strict=True)]

    def draw_part(self, job: ImageJob) -> ImageResult:
        """Decode a partial image."""
        assert self.loaded.vq is not None
        image = decode_partial(self.loaded.vq, job.codes, job.previous)
        return ImageResult(png_bytes(image, quick=True), *image.size)

    @property
    def num_bytes(self) -> int:
        """Bytes of the engine's weights, the VQ and the KV cache."""
        vq = self.loaded.vq
        vq_bytes = 0 if vq is None else sum(tensor.nbytes for tensor in vq.state_dict().values())
        return self.engine.num_weight_bytes + vq_bytes + self.engine.cache.num_bytes


def _codec(loaded: LoadedCheckpoint) -> str:
    """Identity of what gives tokens their meaning: template, tokens and VQ tensors."""
    identity = hashlib.sha256(json.dumps([loaded.template.name, dict(loaded.vocab.tokens)], sort_keys=True).encode())
    for name, tensor in sorted(loaded.vq.state_dict().items() if loaded.vq is not None else ()):
        identity.update(name.encode())
        identity.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return identity.hexdigest()


class Models:
    """Every model by name; replaced and unloaded ones stay until their last request ends."""

    def __init__(
        self,
        post: Post,
        settings: Configure,
        *,
        wait_for_images: Callable[[float], None] = lambda _most_s: None,
    ) -> None:
        """The loading thread calls `wait_for_images` between pieces of its work; it blocks at most that long.

        Loading competes with the streams for the core and the GIL.
        """
        self._post, self._wait_for_images = post, partial(wait_for_images, MAX_IMAGE_WAIT_S)
        self._settings = settings
        self._device: torch.device | None = None
        self._loaded: dict[str, Model] = {}
        self._retired: list[Model] = []
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._under_way = 0
        self.all_named = False  # whether all initial checkpoints have been requested
        self.reading: Reading | None = None  # of the running check or load
        self.problem = ""  # of the last initial checkpoint that failed to load

    def configure(self, settings: Configure) -> None:
        """Configure loading; call before the first load."""
        self._settings = settings

    def close(self) -> None:
        """Wait for the running load and drop the queued ones."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Model]:
        """Iterate over active and retired models."""
        return iter((*self._loaded.values(), *self._retired))

    def __getitem__(self, name: str) -> Model:
        return self._loaded[name]

    def find(self, name: str, version: int | None = None) -> Model | None:
        """The model of that name; a given version also matches retired ones."""
        model = self._loaded.get(name)
        if version is None or (model is not None and model.version == version):
            return model
        return next((m for m in self._retired if (m.name, m.version) == (name, version)), None)

    @property
    def versions(self) -> dict[str, int]:
        """Versions of active models by name."""
        return {name: model.version for name, model in self._loaded.items()}

    @property
    def num_retired(self) -> int:
        """Number of models that wait for their last request."""
        return len(self._retired)

    @property
    def marks(self) -> bool:
        """Whether outputs are followed by marks."""
        return self._settings.marks

    @property
    def settled(self) -> bool:
        """Whether no load is pending, so that an unknown name stays unknown."""
        return self.all_named and self._under_way == 0

    def memory(self) -> dict[str, Any]:
        """Bytes held and free; `models` by name, `retired` for models about to be freed."""
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

    def check(self, folder: str, ticket: int) -> None:
        """Post a `Reply` with the footprint after validating the folder."""

        def check() -> Reply:
            self._wait_for_images()
            plan = serving_plan(Path(folder), self._settings, self._prepare(), self._memory())
            validate_checkpoint(folder, on_bytes=self._counter(folder, f"checkpoint {Path(folder).name} is checked"))
            return Reply(ticket, plan.footprint)

        self._in_thread(check, lambda error: Reply(ticket, error=error_pair(error, "check_failed")))

    def load(self, name: str, folder: str, version: int, ticket: int | None) -> None:
        """Post a `LoadEnded` after loading, successful or not."""
        self._under_way += 1

        def load() -> LoadEnded:
            self._wait_for_images()
            model = Model.load(
                name,
                folder,
                version,
                device=self._prepare(),
                settings=self._settings,
                memory=self._memory(),
                on_bytes=self._counter(folder, f"checkpoint {name} is loaded"),
                wait_for_images=self._wait_for_images,
            )
            return LoadEnded(name, model, None, ticket)

        def failed(error: Exception) -> LoadEnded:
            if is_shortage(error):
                error = CheckpointError("insufficient_memory", f"memory ran out while it was loaded: {error}")
            expected = isinstance(error, CheckpointError)
            log.error("checkpoint %s could not be loaded: %s", name, error, exc_info=None if expected else error)
            return LoadEnded(name, None, error, ticket)

        self._in_thread(load, failed)

    def take(self, name: str, model: Model | None) -> None:
        """Activate a loaded model: it takes its name's requests from now on. None reports a failed load."""
        self._under_way -= 1
        if model is None:
            self._loader.submit(_give_back_memory)
        else:
            self.retire(name)
            self._loaded[name] = model

    def retire(self, name: str) -> None:
        """Remove a name; `sweep` frees its model."""
        model = self._loaded.pop(name, None)
        if model is not None:
            self._retired.append(model)

    def rename(self, name: str, to: str, ticket: int) -> Reply:
        """Give a model another name, whose requests it takes from now on."""
        model = self._loaded.pop(name, None)
        if model is None:
            return Reply(ticket, error=("unknown_checkpoint", f"checkpoint {name} is not loaded"))
        self.retire(to)
        model.name = to
        self._loaded[to] = model
        return Reply(ticket)

    def sweep(self, used: Collection[Model]) -> list[Model]:
        """Free the retired models that are not in use; return them."""
        gone = [model for model in self._retired if model not in used]
        if gone:
            self._retired = [model for model in self._retired if model in used]
            self._loader.submit(_give_back_memory)
        return gone

    def _counter(self, folder: str, what: str) -> Progress:
        return Progress(Path(folder), what, self._move)

    def _move(self, reading: Reading | None) -> None:
        self.reading = reading
        self._post(ReadingMoved())

    def _memory(self) -> int:
        """Bytes that a checkpoint could have if it were alone in this process."""
        device = self._prepare()
        return min(total_bytes(device), free_bytes(device) + sum(model.num_bytes for model in self))

    def _prepare(self) -> torch.device:
        if self._device is None:
            if self._settings.num_threads is not None:
                torch.set_num_threads(self._settings.num_threads)
            self._device = resolve_device(self._settings.device)
        return self._device

    def _in_thread(self, work: Callable[[], object], failed: Callable[[Exception], object]) -> None:
        def run() -> None:
            try:
                message = work()
            except Exception as error:
                message = failed(error)
            self.reading = None
            self._post(message)

        self._loader.submit(run)


def _give_back_memory() -> None:
    """Return the memory of freed models to the system; off the step loop, since a collection takes long."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; musl returns memory by itself
        if trim is not None:
            trim(0)
