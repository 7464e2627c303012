"""Drawn chains filtered by a reader: which are kept, what the reader is asked, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.analysis import token_logprobs
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from tests.training.contexts import job
from tests.training.zero.test_visualiser import DATA, SETTINGS
from training.data.traces import TraceSample, read_traces
from training.zero import job as zero
from training.zero.job import drawn_chains
from training.zero.read_back import answer_logprobs, kept, main, report
from training.zero.visualiser import Candidate, DrawnChain, DrawnStep


def chain(name: str, logprob: float, *, kind: str = "find", right: bool | None = True) -> DrawnChain:
    image = Candidate((1,) * 16, 1.0, 0.5, 0.5, logprob, flat=False, copied=False, right=right)
    step = DrawnStep("I mark it.", (image,), 0)
    return DrawnChain(name, "natural", "Which?", "red", (0,) * 16, (step.text,), [step], kind=kind)


LIKELY, UNLIKELY = math.log(0.9), math.log(0.01)


def test_as_many_are_kept_as_are_read_and_not_more_than_the_share() -> None:
    chains = [chain(str(number), -1.0) for number in range(8)]
    answers = [LIKELY if number in (1, 3, 7) else UNLIKELY for number in range(8)]
    assert kept(chains, answers, keep_share=1.0, min_likelihood=0.5) == [1, 3, 7]
    assert len(kept(chains, answers, keep_share=0.25, min_likelihood=0.5)) == 2
    assert kept(chains, [UNLIKELY] * 8, keep_share=1.0, min_likelihood=0.5) == []


def test_drawings_count_as_much_as_answers() -> None:
    answers = [LIKELY, LIKELY, LIKELY, UNLIKELY]
    assert kept([chain(str(n), -float(n)) for n in range(4)], answers, keep_share=0.5, min_likelihood=0.5) == [0, 1]
    assert kept([chain(str(n), float(n)) for n in range(4)], answers, keep_share=0.5, min_likelihood=0.5) == [1, 2]


def test_the_share_is_of_each_kind() -> None:
    chains = [chain(f"{kind}{n}", -n - 10.0 * (kind == "bar"), kind=kind) for kind in ("find", "bar") for n in range(4)]
    chosen = kept(chains, [LIKELY] * 8, keep_share=0.5, min_likelihood=0.5)
    assert [chains[index].chain_id for index in chosen] == ["find0", "find1", "bar0", "bar1"]


def test_the_worlds_verdict_does_not_decide() -> None:
    chains = [chain(str(number), -float(number)) for number in range(8)]
    judged = [replace(one, steps=chain(one.chain_id, -float(one.chain_id), right=False).steps) for one in chains]
    answers = [LIKELY if number in (2, 5) else UNLIKELY for number in range(8)]
    found = [kept(some, answers, keep_share=1.0, min_likelihood=0.5) for some in (chains, judged)]
    assert found[0] == found[1]


def test_report_counts_by_kind() -> None:
    chains = [chain("a", -1.0), chain("b", -2.0, right=False), chain("c", -1.0, kind="bar", right=None)]
    found = report(chains, [0])
    assert found["find"] == {
        "finished": 2,
        "kept": 1,
        "right_of_finished": {"drawings": 0.5, "chains": 0.5},
        "right_of_kept": {"drawings": 1.0, "chains": 1.0},
    }
    assert found["bar"]["right_of_finished"] == {"drawings": None, "chains": None}
    assert (found["all"]["finished"], found["all"]["kept"]) == (3, 1)


@pytest.fixture(scope="module")
def zero_folder(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Of a Zero job that has ended."""
    hyper: dict[str, Any] = {**SETTINGS, "pesft": None}
    folder = tmp_path_factory.mktemp("zero") / "job"
    zero.run(job(folder, {"method": "zero", "data": DATA, "hyperparameters": hyper}, base))
    return folder


def test_likelihood_is_that_of_sampling_the_answer(base: Path, zero_folder: Path) -> None:

    loaded = load_checkpoint(base, template="tagged")
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=1)
    chains = [one for one in drawn_chains(zero_folder) if one.rejected is None]
    assert len(chains) > 2
    together = answer_logprobs(loaded, engine, chains)
    for one, logprob in zip(chains, together, strict=True):
        assert one.question_codes is not None
        prompt = loaded.template.prompt_ids(one.question, [one.question_codes])
        response = loaded.template.response_ids(one.step_parts(), one.answer)
        answer = loaded.template.answer_tokens(response)
        sampled = token_logprobs(engine, prompt, response, SamplingParams(max_images=len(one.steps)))
        assert logprob == pytest.approx(sum(sampled[answer.start : answer.stop + 1]), abs=1e-3)


def test_command_writes_traces_that_pesft_reads(base: Path, zero_folder: Path, tmp_path: Path) -> None:
    command = [str(zero_folder), "--reader", str(base), "--reader", str(base), "--out", str(tmp_path)]
    finished = sum(one.rejected is None for one in drawn_chains(zero_folder))
    assert main([*command, "--keep-share", "1", "--min-likelihood", "1e-300"]) == 0
    samples = [one for one in read_traces(tmp_path / "traces.jsonl") if isinstance(one, TraceSample)]
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert len(found["readers"]) == 2
    assert len(samples) == found["kinds"]["all"]["kept"] == found["kinds"]["all"]["finished"] == finished > 0
    assert all(step.image is not None for sample in samples for step in sample.steps)


def test_command_names_what_is_missing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--reader", str(base), "--out", str(tmp_path / "out")]) == 2
    assert "not the folder of a Zero job" in capsys.readouterr().err
    assert main([str(tmp_path), "--reader", "no-such", "--out", str(tmp_path / "out")]) == 2
    assert "no-such" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--reader", str(base), "--out", str(tmp_path), "--min-likelihood", "2"])


def test_unlikely_answers_are_counted_in_nats() -> None:
    chains = [chain("a", -1.0)]
    assert kept(chains, [math.log(0.49)], keep_share=1.0, min_likelihood=0.5) == []
    assert kept(chains, [math.log(0.51)], keep_share=1.0, min_likelihood=0.5) == [0]


def test_chain_without_images_is_as_unsure_as_the_least_sure_one() -> None:
    bare = replace(chain("bare", 0.0), steps=[DrawnStep("I see it.", (), None)])
    chains = [chain("a", -1.0), chain("b", -2.0), bare]
    assert kept(chains, [LIKELY] * 3, keep_share=0.34, min_likelihood=0.5) == [0]
    assert kept([bare], [LIKELY], keep_share=1.0, min_likelihood=0.5) == [0]
