"""Log-probabilities with hidden images, and attention, against the sampler, a naive forward and a hand-made model."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.analysis import attention_to, likeliest, token_logprobs
from model.engine.commands import Configure
from model.engine.engine import Engine
from model.engine.messages import WholeResponse
from model.engine.phases import Legal
from model.engine.sequence import SamplingParams
from model.nets.attention import CausalAttention
from model.text.template import StepPart
from model.worker import scoring
from model.worker.models import Model
from tests.model.engine.test_engine import a_prompt

GREEDY = SamplingParams()
PLAIN = list(range(32))  # codes that the hand-made model ignores
RED, BLUE = list(range(32, 48)), list(range(48, 64))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_sampling(drawing: LoadedCheckpoint, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_new_tokens=90)
    engine = Engine(drawing.transformer, drawing.vocab, drawing.template)
    prompt = a_prompt(drawing, 1)
    sampled = engine.generate([prompt], params)[0]
    scored = token_logprobs(engine, prompt, sampled.token_ids, params)
    assert Legal.CODE in sampled.mask_bytes
    assert scored == pytest.approx(sampled.logprobs, abs=1e-3)


def test_likeliest_tokens_have_their_logprobs(engine: Engine, loaded: LoadedCheckpoint) -> None:
    prompt = a_prompt(loaded, 2)
    (token, logprob), *_ = likeliest(engine, prompt, [], GREEDY, 3)
    assert token_logprobs(engine, prompt, [token], GREEDY) == [pytest.approx(logprob, abs=1e-4)]
    with pytest.raises(ValueError, match="complete"):
        likeliest(engine, prompt, [loaded.vocab.eos_id], GREEDY, 1)


def test_hiding_nothing_changes_no_bit(engine: Engine, loaded: LoadedCheckpoint) -> None:
    prompt, response = a_prompt(loaded, 3), a_response(loaded, 3)
    assert token_logprobs(engine, prompt, response, GREEDY) == token_logprobs(
        engine, prompt, response, GREEDY, hidden=range(7, 7)
    )


def test_hidden_positions_equal_a_naive_mask(engine: Engine, loaded: LoadedCheckpoint) -> None:
    prompt, response = a_prompt(loaded, 4), a_response(loaded, 4)
    for hidden in (range(5, 9), range(len(prompt) + 2, len(prompt) + 7)):
        ours = token_logprobs(engine, prompt, response, GREEDY, hidden=hidden)
        assert ours == pytest.approx(naive_logprobs(loaded, prompt, response, hidden), abs=1e-3)
        before = max(0, hidden.stop - len(prompt))
        seen = token_logprobs(engine, prompt, response, GREEDY)
        assert ours[:before] == pytest.approx(seen[:before], abs=1e-6)
        assert ours[before + 1 :] != pytest.approx(seen[before + 1 :], abs=1e-3)


def test_tokens_that_are_not_legal_count_nothing(engine: Engine, loaded: LoadedCheckpoint) -> None:
    prompt, vocab = a_prompt(loaded, 5), loaded.vocab
    ids = [*vocab.image_ids([1, 2, 3, 4]), vocab.text_ids[9]]
    scored = token_logprobs(engine, prompt, ids, replace(GREEDY, max_images=0))
    assert scored[0] == 0.0
    assert all(math.isfinite(value) for value in scored)
    assert token_logprobs(engine, prompt, ids, GREEDY)[0] < 0.0


def test_attention_sums_to_one_and_never_looks_ahead(engine: Engine, loaded: LoadedCheckpoint) -> None:
    ids = a_prompt(loaded, 6, 40)
    weights = attention_to(engine, ids, [20, 25])
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert max(weights[26:]) == 0.0
    assert min(weights[:21]) > 0.0
    assert attention_to(engine, ids, [0])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("colour", [RED, BLUE])
def test_a_copied_image_gets_all_the_reliance(tiny_checkpoint: str, colour: list[int]) -> None:
    model = copying_model(tiny_checkpoint)
    answer = "red" if colour is RED else "star"
    response = a_whole_response(model, [PLAIN, colour, PLAIN], answer)
    found = scoring.reliance(model, response)
    assert [image.step for image in found.images] == [1, 2, 3]
    copied = found.images[1].answer
    assert copied > 3.0
    assert found.answer_logprob > -0.1
    assert [image.answer for image in found.images] == pytest.approx([0.0, copied, 0.0], abs=1e-3)
    assert found.images[1].per_step[:2] == (0.0, 0.0)  # a step does not rely on its own image or a later one
    grids = scoring.attention(model, response, None)
    shares = [sum(map(sum, image.grid)) for image in grids]
    assert shares[1] > 0.25 > shares[0] + shares[2]  # one of four heads looks for it, the others look everywhere


def test_a_model_blind_to_images_relies_on_none(tiny_checkpoint: str) -> None:
    model = copying_model(tiny_checkpoint)
    response = a_whole_response(model, [PLAIN, PLAIN], "red")
    assert [image.answer for image in scoring.reliance(model, response).images] == pytest.approx([0, 0], abs=1e-3)


def test_a_model_trained_on_texts_relies_little_on_images(tiny_checkpoint: str) -> None:
    """Both models are trained on steps with images; the answer stands in the text, or only in the image."""
    by_text, by_image = (trained_model(tiny_checkpoint, tells=tells) for tells in ("text", "image"))
    relied = {"text": 0.0, "image": 0.0}
    for seed in range(900, 906):
        for tells, model in (("text", by_text), ("image", by_image)):
            response = an_example(model, seed, tells)
            found = scoring.reliance(model, response)
            assert found.answer_logprob > -1.0, "the model has not learned to answer"
            relied[tells] += found.images[0].answer / 6
    assert abs(relied["text"]) < 0.1
    assert relied["image"] > 0.5


# ---- helpers


@pytest.fixture(scope="module")
def drawing(drawing_checkpoint: str) -> LoadedCheckpoint:
    return load_checkpoint(drawing_checkpoint)


def a_response(loaded: LoadedCheckpoint, seed: int) -> list[int]:
    rng, vocab = random.Random(seed), loaded.vocab
    image = vocab.image_ids(rng.choices(range(64), k=4))
    return [*rng.choices(vocab.text_ids, k=6), *image, *rng.choices(vocab.text_ids, k=9)]


def naive_logprobs(loaded: LoadedCheckpoint, prompt: list[int], response: list[int], hidden: range) -> list[float]:
    """The same from explicit scores, token by token, over the whole vocabulary's legal part."""

    class Naive:
        def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            groups = q.shape[2] // k.shape[2]
            out = torch.zeros_like(q)
            for i in range(q.shape[1]):
                seen = [j for j in range(i + 1) if j not in hidden or i < hidden.stop]
                for head in range(q.shape[2]):
                    keys, values = k[0, seen, head // groups], v[0, seen, head // groups]
                    weights = torch.softmax(keys @ q[0, i, head] * q.shape[-1] ** -0.5, 0)
                    out[0, i, head] = weights @ values
            return out.flatten(-2)

    ids = torch.tensor([*prompt, *response])[None]
    with torch.no_grad():
        states = loaded.transformer(ids, torch.arange(ids.shape[1])[None], Naive())[0]
        logits = loaded.transformer.logits(states)[len(prompt) - 1 : -1]
    vocab, out, codes_left = loaded.vocab, [], -1
    text = [*loaded.template.text_legal_ids(), vocab.boi_id]
    for row, token in zip(logits, response, strict=True):
        if codes_left == 0:
            out.append(0.0)
        else:
            legal = list(vocab.code_ids) if codes_left > 0 else text
            out.append(float(row[token] - row[legal].logsumexp(0)))
        codes_left = vocab.codes_per_image if token == vocab.boi_id else codes_left - 1
    return out


def copying_model(folder: str) -> Model:
    """A model that answers "red" or "star" after the codes it has seen of either, and ignores all others.

    Keys of such codes point where every query does, values are +1 or -1, and the two words read their mean. The feature
    lies in the pair of dimensions that the rotation turns least.
    """
    model = Model.load("copying", str(folder), 1, device=torch.device("cpu"), settings=Configure("cpu", 2, None))
    transformer = copy.deepcopy(load_checkpoint(folder).transformer)
    vocab, encode = model.loaded.vocab, model.loaded.template.tokenizer.encode
    state = {name: torch.zeros_like(value) for name, value in transformer.state_dict().items()}
    for name, value in state.items():
        if name.endswith("norm.weight"):
            value.fill_(3.0 if "q_norm" in name or "k_norm" in name else 1.0)
    embed = state["model.embed_tokens.weight"]
    embed[:, 0] = 1.0
    for codes, sign in ((RED, 1.0), (BLUE, -1.0)):
        for code in codes:
            embed[vocab.code_to_id(code), 1:3] = torch.tensor([2.0, sign])
    layer, slowest = "model.layers.1.self_attn.", transformer.config.head_dim // 2 - 1
    state[f"{layer}q_proj.weight"][slowest, 0] = 1.0
    state[f"{layer}k_proj.weight"][slowest, :2] = torch.tensor([-1.0, 1.0])
    state[f"{layer}v_proj.weight"][0, 2] = 1.0
    state[f"{layer}o_proj.weight"][3, 0] = 1.0
    for word, sign in (("red", 1.0), ("star", -1.0)):
        for token in encode(f" {word}"):
            state["lm_head.weight"][token, 3] = 10.0 * sign
    transformer.load_state_dict(state)
    model.engine = Engine(transformer, vocab, model.loaded.template, num_slots=2)
    return model


def a_whole_response(model: Model, images: list[list[int]], answer: str) -> WholeResponse:
    template, rng = model.loaded.template, random.Random(0)
    codes = [tuple(rng.choices(some, k=template.vocab.codes_per_image)) for some in images]
    steps = [StepPart("I look.", image) for image in codes]
    each = [template.step_ids(step, k, after_text=False) for k, step in enumerate(steps, 1)]
    whole = template.response_ids(steps, answer)
    last = whole[sum(map(len, each)) :]
    return WholeResponse("copying", 1, "Which colour?", (), tuple(map(tuple, each)), tuple(last), GREEDY)


def an_example(model: Model, seed: int, tells: str) -> WholeResponse:
    """A step with an image, and an answer that the step's text names, or only the image's codes."""
    answer = random.Random(seed).choice(["red", "star"])
    colour = RED if tells == "image" and answer == "red" else BLUE if tells == "image" else PLAIN
    text = f"I look for the {answer}." if tells == "text" else "I look."
    template, rng = model.loaded.template, random.Random(seed)
    codes = tuple(rng.choices(colour, k=template.vocab.codes_per_image))
    step = StepPart(text, codes)
    first = template.step_ids(step, 1, after_text=False)
    last = template.response_ids([step], answer)[len(first) :]
    return WholeResponse("copying", 1, "Which colour?", (), (tuple(first),), tuple(last), GREEDY)


def trained_model(folder: str, *, tells: str) -> Model:
    """The tiny model after a few hundred steps on such examples."""
    model = Model.load("trained", str(folder), 1, device=torch.device("cpu"), settings=Configure("cpu", 2, None))
    transformer = load_checkpoint(folder).transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=3e-3, weight_decay=0.0)
    prompt = model.loaded.template.prompt_ids("Which colour?", [])
    for number in range(120):
        loss = torch.zeros(())
        for seed in range(8 * number, 8 * number + 8):
            example = an_example(model, seed % 800, tells)
            ids = torch.tensor([*prompt, *example.steps[0], *example.last])[None]
            states = transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())
            losses = torch.nn.functional.cross_entropy(transformer.logits(states)[0, :-1], ids[0, 1:], reduction="none")
            loss = loss + losses[-len(example.last) :].mean() / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.engine = Engine(transformer, model.loaded.vocab, model.loaded.template, num_slots=2)
    return model
