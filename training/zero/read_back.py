r"""Filters drawn chains by whether a reader finds their answers in the drawings.

    python -m training.zero.read_back runs/zero-1 runs/zero-2 --reader zero-0 --keep-share .4 --out runs/read

A base that only draws cannot answer, but a Zero of an earlier round can: it reads images well and has seen no annotated
one. For each finished chain of Zero jobs, the reader gets the question, the steps and the drawn images, and the
likelihood of the chain's answer is measured; of several readers the geometric mean counts. Of each kind of question as
many chains are kept as have at least `--min-likelihood`, up to `--keep-share` of the finished ones: those with the
highest sum of what the base thought of its drawings and the readers of the answer. PeSFT then starts from the base.
Like PeRPO's reward, the filter uses answers only; the world's verdict on drawings is reported and never decides.

Writes ``traces.jsonl`` (the authors' PeSFT format) and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from tqdm import tqdm

from model.checkpoint.atomic import write_file
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.engine.engine import Engine
from model.engine.phases import Legal
from model.nets.attention import PackedLayout
from training.zero.job import drawn_chains, trace_row_of
from training.zero.visualiser import DrawnChain, confidence

PACKED = 2  # chains in one forward pass; attention over more costs more than it saves
LEAST = -4.0  # nats: an answer less likely says no more about its drawings


@torch.inference_mode()
def answer_logprobs(loaded: LoadedCheckpoint, engine: Engine, chains: Sequence[DrawnChain]) -> list[float]:
    """log p(answer | question, steps with their images) in nats, summed over the answer's tokens, of each chain.

    The probabilities are those of sampling, over the tokens that are legal in text, the end of the answer included.

    Args:
        loaded: the reader; its tokens and codebook are those of the drawing checkpoint.
        engine: with its weights.
        chains: with an image for every step that has one.
    """
    template, column = loaded.template, {token: k for k, token in enumerate(engine.ids_of(Legal.TEXT))}
    ids: list[int] = []
    lengths: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for one in chains:
        images = [] if one.question_codes is None else [one.question_codes]
        whole = template.render(one.question, images, one.step_parts(), one.answer)
        begin = len(whole.ids) - sum(whole.loss_mask)
        answer = template.answer_tokens(whole.ids[begin:])
        places = range(begin + answer.start, begin + answer.stop + 1)  # and what closes it
        predictors += [len(ids) + i - 1 for i in places]
        targets += [column[whole.ids[i]] for i in places]
        counts.append(len(places))
        ids += whole.ids
        lengths.append(len(whole.ids))
    hidden = engine.forward_packed(ids, PackedLayout.from_lengths(lengths, engine.device))
    logits = engine.logits(hidden[torch.tensor(predictors, device=engine.device)], Legal.TEXT)
    wanted = torch.tensor(targets, device=engine.device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0].double().cpu()
    return [float(part.sum()) for part in logprobs.split(counts)]


def kept(
    chains: Sequence[DrawnChain], answers: Sequence[float], *, keep_share: float, min_likelihood: float
) -> list[int]:
    """Indices of the chains to train on, ascending.

    Args:
        chains: finished ones.
        answers: log-probability of each chain's answer.
        keep_share: at most this share of each kind of question.
        min_likelihood: as many are kept as have answers this likely.
    """
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, one in enumerate(chains):
        kinds[one.slice, one.kind].append(index)
    chosen: list[int] = []
    for every in kinds.values():
        read = sum(answers[index] >= math.log(min_likelihood) for index in every)
        drawn = _standard(_finite([confidence(chains[index]) for index in every]))
        found = _standard([max(LEAST, answers[index]) for index in every])
        score = {index: a + b for index, a, b in zip(every, drawn, found, strict=True)}
        surest = sorted(every, key=lambda index: score[index], reverse=True)
        chosen += surest[: min(read, max(1, round(keep_share * len(every))))]
    return sorted(chosen)


def _finite(values: Sequence[float]) -> list[float]:
    """A chain without images is as unsure as the least sure one with some."""
    least = min((value for value in values if value != -math.inf), default=0.0)
    return [max(least, value) for value in values]


def _standard(values: Sequence[float]) -> list[float]:
    """Distances from the mean in standard deviations; 0 where all are equal."""
    mean, deviation = fmean(values), pstdev(values)
    return [(value - mean) / deviation if deviation else 0.0 for value in values]


def report(chains: Sequence[DrawnChain], chosen: Sequence[int]) -> dict[str, Any]:
    """Counts by kind of question, and the shares of right drawings and of chains with only right ones."""
    of_kind: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(chains):
        of_kind[one.kind or one.slice].append(index)
    taken = set(chosen)

    def row(indices: Sequence[int]) -> dict[str, Any]:
        some = [index for index in indices if index in taken]
        return {
            "finished": len(indices),
            "kept": len(some),
            "right_of_finished": _right([chains[index] for index in indices]),
            "right_of_kept": _right([chains[index] for index in some]),
        }

    return {"all": row(range(len(chains))), **{kind: row(indices) for kind, indices in sorted(of_kind.items())}}


def _right(chains: Sequence[DrawnChain]) -> dict[str, float | None]:
    verdicts = [[step.candidates[step.kept].right for step in one.steps if step.kept is not None] for one in chains]
    known = [[bool(verdict) for verdict in one] for one in verdicts if one and None not in one]
    images = [verdict for one in known for verdict in one]
    if not images:
        return {"drawings": None, "chains": None}
    return {"drawings": round(sum(images) / len(images), 4), "chains": round(sum(map(all, known)) / len(known), 4)}


def read_back(
    readers: Sequence[LoadedCheckpoint],
    jobs: Sequence[Path],
    out: Path,
    *,
    keep_share: float = 0.4,
    min_likelihood: float = 0.5,
) -> dict[str, Any]:
    """Filter the chains that the Zero jobs in these folders have drawn; write traces and report; return the report.

    Raises:
        OSError: a folder has no drawn chains.
        ValueError: no chain is finished.
    """
    chains = [one for job in jobs for one in drawn_chains(job) if one.rejected is None]
    if not chains:
        raise ValueError("the jobs have no finished chain")
    each = [_read(reader, chains) for reader in readers]
    answers = [fmean(logprobs) for logprobs in zip(*each, strict=True)]
    chosen = kept(chains, answers, keep_share=keep_share, min_likelihood=min_likelihood)
    vocab = readers[0].vocab
    rows = (json.dumps(trace_row_of(chains[index], vocab), ensure_ascii=False) + "\n" for index in chosen)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(rows)
    write_file(out / "traces.jsonl", lambda path: path.write_text(text, "utf-8"))
    found = {
        "readers": [reader.name for reader in readers],
        "keep_share": keep_share,
        "min_likelihood": min_likelihood,
        "kinds": report(chains, chosen),
    }
    write_file(out / "report.json", lambda path: path.write_text(json.dumps(found, indent=1) + "\n", "utf-8"))
    return found


def _read(reader: LoadedCheckpoint, chains: Sequence[DrawnChain]) -> list[float]:
    engine = Engine(reader.transformer, reader.vocab, reader.template, num_slots=1)
    starts = tqdm(range(0, len(chains), PACKED), desc=f"read by {reader.name}", unit="pass", mininterval=5)
    return [logprob for start in starts for logprob in answer_logprobs(reader, engine, chains[start : start + PACKED])]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.zero.read_back", description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=Path, nargs="+", metavar="JOB_DIR", help="folder of a Zero job")
    parser.add_argument(
        "--reader", required=True, action="append", metavar="CHECKPOINT", help="a name or a folder; may be repeated"
    )
    parser.add_argument("--keep-share", type=float, default=0.4)
    parser.add_argument("--min-likelihood", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    if not 0.0 < given.keep_share <= 1.0 or not 0.0 < given.min_likelihood < 1.0:
        parser.error("--keep-share must be in (0, 1], --min-likelihood in (0, 1)")
    try:
        readers = [load_checkpoint(resolve(name)) for name in given.reader]
        found = read_back(
            readers, given.jobs, given.out, keep_share=given.keep_share, min_likelihood=given.min_likelihood
        )
    except (CheckpointError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found["kinds"]["all"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
