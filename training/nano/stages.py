"""The recipe of the embedded family: VQ -> ``nano-base`` -> PeSFT ``nano-omni-r1``, and its controls.

Every stage stops by step count, resumes exactly, and is a function of the seed. A stage reads its inputs from the
output folder (``vq/``, ``nano-base/``) and writes a checkpoint that the server, transformers and the next stage load.

Launch: ``omni-r1 train nano --stage vq|base|pesft`` (``--variant text|state`` and ``--perception-weight 0`` give the
controls).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.checkpoint import VQ_FILE, load_checkpoint, save_checkpoint
from model.checkpoint.manifest import GenerationDefaults, ImageCount, Manifest, Perception
from model.checkpoint.memory import VQ_PREFIX
from model.config import ModelConfig, TransformerConfig
from model.images.codes import perception_of
from model.nets.transformer import Transformer
from model.nets.vq import VQModel
from model.precision import PrecisionChoice
from model.text.template import Template
from model.text.tokenizer import TextTokenizer, train_bpe
from model.text.vocab import Vocabulary
from training.data.drills import drill_set
from training.data.token_sets import EncodedTask, ImageCoder, TokenSet, encode_tasks, id_to_code, training_tasks
from training.jobs.loop import provenance
from training.nano.recipe import RECIPES, NanoRecipe
from training.nano.vq import train_decoder, train_vq
from training.pesft.loop import SFTModel, SFTSpec, train_sft
from training.world.drills import KINDS, make_drill
from training.world.world import SLICES, make_task

CONTEXT_LEN = 768
PESFT_SEEDS = 20_000_000
DRILLS_OF_A_SEED = 1_000_000
SEEDS_OF_A_RUN = 200_000
TRACES_A_STEP = 16  # for short runs; about 13 fill a batch
LICENCE = "MIT"
CARD_NOTES = (
    "This small model learned drawn objects, charts, diagrams and grids. On a photo its answer is a guess; a 7B "
    "checkpoint reads photos."
)


def run(
    stage: str,
    *,
    preset: str = "nano",
    out: Path,
    resume: bool = False,
    seed: int = 0,
    threads: int | None = None,
    variant: str = "interleaved",
    perception_weight: float | None = None,
    steps: int | None = None,
    precision: PrecisionChoice = "auto",
) -> Path:
    """Run one stage and return its output folder: the VQ's run, or a checkpoint.

    Args:
        stage: ``vq``, ``base`` or ``pesft``.
        preset: a name in ``RECIPES``.
        out: folder of the whole family.
        resume: continue an interrupted run of this stage.
        seed: of weights, data order and images.
        threads: torch threads; results are bit-identical for equal numbers.
        variant: of ``pesft``: ``interleaved``, or the controls ``text`` and ``state``.
        perception_weight: lambda of ``pesft`` instead of the recipe's.
        steps: of ``pesft``, instead of the recipe's: a shorter schedule, visible in the name.
        precision: of the forward; ``auto`` is bf16 on CPUs with bf16 hardware, otherwise fp32.

    Raises:
        ValueError: unknown stage or preset, or an earlier stage's result is missing.
    """
    if preset not in RECIPES:
        raise ValueError(f"unknown preset {preset!r}: use one of {', '.join(RECIPES)}")
    if threads is not None:
        torch.set_num_threads(threads)
    recipe = replace(RECIPES[preset], seed=seed, precision=precision)
    if stage == "vq":
        return vq_stage(recipe, out, resume=resume)
    if stage == "base":
        return base_stage(recipe, out, resume=resume)
    if stage == "pesft":
        if perception_weight is not None:
            recipe = replace(recipe, perception_weight=perception_weight)
        name = pesft_name(variant, recipe.perception_weight)
        if steps is not None:
            enough = min(recipe.traces, TRACES_A_STEP * steps)
            recipe, name = replace(recipe, pesft_steps=steps, traces=enough, polish=()), f"{name}-{steps}"
        return pesft_stage(recipe, out, name=name, resume=resume, variant=variant)
    raise ValueError(f"unknown stage {stage!r}: use vq, base or pesft")


def vq_stage(recipe: NanoRecipe, out: Path, *, resume: bool = False) -> Path:
    """Train the image tokenizer and write it rounded to bf16, as every later stage reads it."""
    spec = replace(recipe.vq, seed=recipe.seed, precision=recipe.precision)
    folder = out / "vq"
    model = _rounded(train_vq(spec, folder, resume=resume)).requires_grad_(False)
    train_decoder(spec, model, folder / "decoder", resume=resume)
    state = {VQ_PREFIX + name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / VQ_FILE, metadata={"format": "pt"})
    return folder


def _rounded(model: VQModel) -> VQModel:
    model.load_state_dict({name: t.to(torch.bfloat16).float() for name, t in model.state_dict().items()})
    return model


def load_stage_vq(recipe: NanoRecipe, out: Path) -> VQModel:
    """Load the VQ of :func:`vq_stage` in fp32, frozen.

    Raises:
        ValueError: the stage has not been run in this folder.
    """
    path = out / "vq" / VQ_FILE
    if not path.exists():
        raise ValueError(f"{path} is missing: run the vq stage first")
    model = VQModel(recipe.vq.config())
    model.load_state_dict({k.removeprefix(VQ_PREFIX): v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)


def base_stage(recipe: NanoRecipe, out: Path, *, resume: bool = False) -> Path:
    """Train ``nano-base`` on drills: captions, copies, drawing instructions, single moves, answers, text chains."""
    vq = load_stage_vq(recipe, out)
    run_folder = out / "runs" / "base"
    run_folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(recipe, run_folder)
    config = ModelConfig(_transformer_config(recipe, tokenizer), vq.config, _vocabulary_map(tokenizer))
    vocab = Vocabulary.from_parts(config, tokenizer)
    text = TextTokenizer.from_object(tokenizer)
    templates = [Template("plain", vocab, text), Template("tagged", vocab, text)]
    coded = partial(drill_set, coder=ImageCoder(vq), templates=templates, context_len=CONTEXT_LEN)
    first = recipe.seed * DRILLS_OF_A_SEED
    data = cached_tokens(run_folder / "data.npz", partial(coded, first, recipe.drills))
    transformer = Transformer(config.transformer)
    transformer.init_weights(recipe.seed)
    _start_codes_from_codebook(transformer, vq, vocab, recipe.seed)
    spec = SFTSpec(
        steps=recipe.base_steps,
        lr=recipe.base_lr,
        seed=recipe.seed,
        max_tokens=recipe.base_tokens,
        label="base",
        precision=recipe.precision,
    )
    model = SFTModel.start(spec, transformer, vq.codebook, id_to_code(vocab))
    train_sft(spec, model, data, run_folder, resume=resume)
    seen = recipe.drills
    for number, polish in enumerate(recipe.base_polish, 2):
        again = out / "runs" / f"base-{number}"
        again.mkdir(exist_ok=True)
        if polish.traces:
            fresh = partial(coded, first + seen, polish.traces, shares=dict(polish.shares) or KINDS)
            data = cached_tokens(again / "data.npz", fresh)
            seen += polish.traces
        part = replace(spec, steps=polish.steps, lr=polish.lr, seed=spec.seed + number, label=again.name)
        part = replace(part, max_tokens=polish.tokens or spec.max_tokens)
        train_sft(part, model, data, again, resume=resume)
    manifest = Manifest(
        name="nano-base",
        template="plain",
        licence=LICENCE,
        description="Reads and draws images of the task world; does not reason in images.",
        images=ImageCount(0, 1),
        perception=measure_perception(vq, recipe.seed, recipe.reference_tasks),
        card_notes=CARD_NOTES,
        lineage={"stage": "base", "recipe": asdict(recipe), "data": _data_json(data), **provenance()},
    )
    return save_checkpoint(
        out / "nano-base",
        config=config,
        transformer_state=transformer.state_dict(),
        tokenizer=tokenizer,
        manifest=manifest,
        vq_file=out / "vq" / VQ_FILE,
        generation=GenerationDefaults(temperature=0.0, top_p=1.0),
        overwrite=True,
    )


def pesft_stage(
    recipe: NanoRecipe, out: Path, *, name: str = "nano-omni-r1", resume: bool = False, variant: str = "interleaved"
) -> Path:
    """PeSFT from ``nano-base`` on annotated traces (L_CE + lambda L_Pe); the controls are variants of the same run."""
    folder = out / "nano-base"
    if not (folder / "manifest.json").exists():
        raise ValueError(f"{folder} is missing: run the base stage first")
    base = load_checkpoint(folder)
    if base.vq is None:
        raise ValueError(f"{folder} has no VQ")
    run_folder = out / "runs" / name
    run_folder.mkdir(parents=True, exist_ok=True)
    vq, template = base.vq, base.template
    traces = partial(_trace_set, recipe, vq, template, variant)
    data = cached_tokens(run_folder / "data.npz", partial(traces, count=recipe.traces))
    weight = recipe.perception_weight if variant == "interleaved" else 0.0
    main = run_folder.with_name(pesft_name("interleaved", 1.0) + name.removeprefix(pesft_name(variant, weight)))
    spec = SFTSpec(
        steps=recipe.pesft_steps,
        lr=recipe.pesft_lr,
        seed=recipe.seed,
        # equal data and steps: a control's batch has as many traces, not as many tokens
        max_tokens=round(recipe.pesft_tokens * (1.0 if variant == "interleaved" else _length_share(data, main))),
        perception_weight=weight,
        perception_reduction=recipe.perception_reduction,
        label=name,
        precision=recipe.precision,
    )
    transformer = base.transformer.train().requires_grad_(True)
    model = SFTModel.start(spec, transformer, vq.codebook, id_to_code(base.vocab))
    train_sft(spec, model, data, run_folder, resume=resume)
    seen = recipe.traces
    for number, polish in enumerate(recipe.polish):
        again = run_folder / ("polish" if number == 0 else f"polish-{number + 1}")
        if polish.traces:
            again.mkdir(exist_ok=True)
            fresh = partial(traces, first=seen, shares=polish.shares)
            data = cached_tokens(again / "data.npz", partial(fresh, count=polish.traces))
            seen += polish.traces
        part = replace(spec, steps=polish.steps, lr=polish.lr, seed=spec.seed + number, label=again.name)
        train_sft(part, model, data, again, resume=resume)
    manifest = Manifest(
        name=name,
        template="plain",
        base="nano-base",
        licence=LICENCE,
        description="Answers questions about images of the task world by drawing its way there (PeSFT).",
        images=ImageCount(1, 1),
        perception=base.manifest.perception,
        card_notes=CARD_NOTES,
        lineage={"stage": "pesft", "variant": variant, "recipe": asdict(recipe), "data": _data_json(data)}
        | provenance(),
    )
    return save_checkpoint(
        out / name,
        config=base.config,
        transformer_state=transformer.state_dict(),
        tokenizer=folder / "tokenizer.json",
        manifest=manifest,
        vq_file=folder / VQ_FILE,
        generation=GenerationDefaults(temperature=0.0, top_p=1.0),
        extra_state={"perception.weight": model.projection.weight.detach().to(torch.bfloat16)} if weight else None,
        overwrite=True,
    )


def pesft_name(variant: str, perception_weight: float) -> str:
    """Name of the checkpoint: the family's own, or that of a control."""
    if variant == "interleaved":
        return "nano-omni-r1" if perception_weight else "nano-lambda0"
    return f"nano-{variant}-only"


def measure_perception(vq: VQModel, seed: int, count: int = 400) -> Perception:
    """Scale of the perception score for this codebook, from reference images of the world (training seeds)."""
    images = [s.image for i in range(count) for s in make_task(SLICES[i % len(SLICES)], 1_000_000 + seed + i).steps]
    return perception_of(vq, ImageCoder(vq).encode(np.stack([np.asarray(p) for p in images])).tolist())


def world_texts(count: int) -> Iterator[str]:
    """Training texts of the tokenizer: questions, steps, states and answers, and the drills' words."""
    for i in range(count):
        task = make_task(SLICES[i % len(SLICES)], i)
        yield task.question
        yield f"\nFinal Answer: {task.answer}"
        for k, step in enumerate(task.steps, 1):
            yield f"THOUGHT {k}: {step.text}"
            yield f" {step.state}"
        drill = make_drill(i)
        yield drill.prompt_text
        yield from (part for part in drill.response if isinstance(part, str))


def _tokenizer(recipe: NanoRecipe, folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.exists():
        made = train_bpe(world_texts(recipe.tokenizer_tasks), recipe.vq.num_embeddings, recipe.text_vocab)
        path.write_text(made.to_str())
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def _vocabulary_map(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {**tokenizer["model"]["vocab"], **added}


def _transformer_config(recipe: NanoRecipe, tokenizer: dict[str, Any]) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=len(_vocabulary_map(tokenizer)),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        num_kv_heads=recipe.num_kv_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_position_embeddings=CONTEXT_LEN,
    )


@torch.no_grad()
def _start_codes_from_codebook(transformer: Transformer, vq: VQModel, vocab: Vocabulary, seed: int) -> None:
    """Initialise similar codes similarly: a code's embedding and output row start as a random map of its vector."""
    generator = torch.Generator().manual_seed(seed + 1)
    vectors = (vq.codebook - vq.codebook.mean(0)) / vq.codebook.std()
    ids = torch.tensor(vocab.code_ids)
    for table in (transformer.model.embed_tokens.weight, transformer.lm_head.weight):
        mix = torch.randn(vectors.shape[1], table.shape[1], generator=generator) * vectors.shape[1] ** -0.5
        table[ids] = 0.02 * (vectors @ mix) + 0.3 * table[ids]


def _trace_set(
    recipe: NanoRecipe,
    vq: VQModel,
    template: Template,
    variant: str,
    *,
    count: int,
    first: int = 0,
    shares: Sequence[tuple[str, float]] = (),
) -> TokenSet:
    tasks = training_tasks(PESFT_SEEDS + recipe.seed * SEEDS_OF_A_RUN + first, count, dict(shares))
    encoded: Iterable[EncodedTask] = encode_tasks(tasks, ImageCoder(vq), total=count)
    return TokenSet.build((task.render(template, variant) for task in encoded), CONTEXT_LEN)


def _length_share(data: TokenSet, main: Path) -> float:
    """Mean length of a control's traces as a share of the interleaved ones', if available."""
    if not (main / "data.npz").exists():
        return 1.0
    return float(data.lengths.mean() / TokenSet.load(main / "data.npz").lengths.mean())


def cached_tokens(path: Path, build: Callable[[], TokenSet]) -> TokenSet:
    """The token set stored at ``path``; it is built and stored if missing."""
    if path.exists():
        return TokenSet.load(path)
    data = build()
    data.save(path)
    return data


def _data_json(data: TokenSet) -> dict[str, int]:
    return {"sequences": len(data), "tokens": int(data.offsets[-1]), "dropped": data.dropped}
