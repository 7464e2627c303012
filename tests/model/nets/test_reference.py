"""Against transformers' Chameleon, on the same files. Invariant 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.images.codes import encode_images, to_pixels
from model.images.view import model_view
from model.nets.transformer import CausalAttention
from model.text.template import StepPart
from tests.near_ties import assert_same_codes
from tests.tiny import make_tiny_checkpoint


def reference(folder: Path) -> Any:
    """transformers' model of the folder; no key may be missing, and only our decoder may be unexpected."""
    from transformers import ChameleonForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, report = ChameleonForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert not report["error_msgs"]
    assert all(key.startswith(("model.vqmodel.decoder.", "perception.")) for key in report["unexpected_keys"])
    return model.eval()


def our_logits(loaded: LoadedCheckpoint, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return loaded.transformer.logits(loaded.transformer(ids, positions, CausalAttention()))


@pytest.fixture(scope="module")
def reference_of_tiny(tiny_checkpoint: Path) -> Any:
    return reference(tiny_checkpoint)


@pytest.mark.parametrize("kind", ["heads", "dim"])
def test_invariant_2_forward_equals_transformers_chameleon(
    kind: str, tiny_checkpoint: Path, reference_of_tiny: Any, tmp_path: Path
) -> None:
    """Same weights, fp32, to 1e-4; grouped queries; image codes spliced by us. Logits of image codes are excluded, as
    transformers masks them. Its loader expects q/k norms per head, so the (head_dim,) form is compared after our
    expansion.
    """
    loaded, theirs = load_checkpoint(tiny_checkpoint), reference_of_tiny
    if kind == "dim":
        loaded = load_checkpoint(make_tiny_checkpoint(tmp_path / "dim", qk_norm="dim"))
        state = loaded.transformer.state_dict()
        theirs.load_state_dict(state, strict=False)
    assert loaded.config.transformer.num_kv_heads < loaded.config.transformer.num_heads
    steps = [StepPart("I look for the red star.", (9, 8, 7, 6)), StepPart("It is there.", (0, 63, 31, 1))]
    rendered = loaded.template.render("Where is the red star?", [(1, 2, 3, 4)], steps, "red")
    ids = torch.tensor([rendered.ids, rendered.ids[::-1]])
    with torch.no_grad():
        ours, expected = our_logits(loaded, ids), theirs(ids).logits
    off_codes = torch.ones(loaded.vocab.size, dtype=torch.bool)
    off_codes[list(loaded.vocab.code_ids)] = False
    assert (expected[..., ~off_codes] == torch.finfo(torch.float32).min).all()
    torch.testing.assert_close(ours[..., off_codes], expected[..., off_codes], rtol=0, atol=1e-4)
    assert ours.std() > 0.5  # weights large enough to expose mistakes
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours[0, 1:, off_codes], expected[0, :-1, off_codes], rtol=0, atol=1e-4)


def test_vq_encoder_equals_transformers(tiny_checkpoint: Path, reference_of_tiny: Any) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    assert loaded.vq is not None
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        tokens = reference_of_tiny.model.get_image_tokens(pixels)
    codes = loaded.vq.encode(pixels)
    assert len(codes.unique()) > 2
    theirs = torch.tensor([[loaded.vocab.id_to_code(token) for token in row] for row in tokens.tolist()])
    assert_same_codes(loaded.vq, pixels, codes, theirs)


def test_transformers_processor_gives_same_pixels(tiny_checkpoint: Path) -> None:
    """The preprocessor file matches our code: 2/255, the crop's rounding, Lanczos."""
    import numpy as np
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    processor = ChameleonImageProcessorPil.from_pretrained(tiny_checkpoint)
    rng = np.random.default_rng(1)
    for width, height in [(16, 16), (40, 40), (50, 31), (23, 64), (17, 16)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = torch.as_tensor(np.asarray(processor(image)["pixel_values"]))[0]
        ours = to_pixels([model_view(image, 16)])[0]
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=2e-6)


def test_transformers_tokenizer_reads_the_folder(tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    loaded = load_checkpoint(tiny_checkpoint)
    theirs = AutoTokenizer.from_pretrained(tiny_checkpoint)
    vocab = loaded.vocab
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (vocab.bos_id, vocab.eos_id, vocab.pad_id)
    text = "Where is the red star?"
    assert theirs(text, add_special_tokens=False).input_ids == loaded.tokenizer.encode(text)


def test_the_configs_agree(tiny_checkpoint: Path, reference_of_tiny: Any) -> None:
    ours, theirs = load_checkpoint(tiny_checkpoint), reference_of_tiny.config
    assert theirs.image_token_id == ours.vocab.image_placeholder_id
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 2, 1)
    assert theirs.rope_parameters["rope_theta"] == ours.config.transformer.rope_theta
    assert reference_of_tiny.generation_config.bos_token_id == 0
    mapping = reference_of_tiny.model.vocabulary_mapping
    assert mapping.bpe2img == {token_id: code for code, token_id in enumerate(ours.vocab.code_ids)}


def test_question_images_reach_the_model(tiny_checkpoint: Path) -> None:
    """Different question images give different logits (upstream's inference ignored them)."""
    loaded = load_checkpoint(tiny_checkpoint)
    assert loaded.vq is not None
    images = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 0, 255))]
    first, second = encode_images(loaded.vq, images)
    assert first != second
    a, b = (torch.tensor([loaded.template.prompt_ids("Which colour?", [codes])]) for codes in (first, second))
    assert (our_logits(loaded, a)[0, -1] - our_logits(loaded, b)[0, -1]).abs().max() > 0.01
