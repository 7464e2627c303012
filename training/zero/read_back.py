r"""Filters drawn chains by whether a reader finds their answers in the drawings.

    python -m training.zero.read_back runs/zero-1 runs/zero-2 --reader zero-0 --keep-share .4 --out runs/read

A base that only draws cannot answer, but a Zero of an earlier round can: it reads images well and has seen no annotated
one. For each finished chain of Zero jobs, the reader gets the question, the steps and the drawn images, and the
likelihood of the chain's answer is measured. A chain is kept if that is at least `--min-likelihood`; of those, the ones
that the base drew surest, up to `--keep-share` of all finished chains of each kind of question. PeSFT then starts from
the base. Like PeRPO's reward, the filter uses answers only; the world's verdict on drawings is reported and never
decides.

Writes ``traces.jsonl`` (the authors' PeSFT format) and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
    chains: Sequence[DrawnChain],
    read: Callable[[Sequence[DrawnChain]], Sequence[float]],
    *,
    keep_share: float,
    min_likelihood: float,
) -> tuple[list[int], dict[int, float]]:
    """Indices of the chains to train on, ascending, and the reader's log-probabilities of those it was asked about.

    Of each kind of question the surest are read first, until enough are kept.

    Args:
        chains: finished ones.
        read: the reader's log-probabilities of the answers of some chains.
        keep_share: at most this share of each kind of question, those drawn surest.
        min_likelihood: of the answer.
    """
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, one in enumerate(chains):
        kinds[one.slice, one.kind].append(index)
    chosen: list[int] = []
    answers: dict[int, float] = {}
    for every in tqdm(kinds.values(), desc="read", unit="kind"):
        surest = sorted(every, key=lambda index: confidence(chains[index]), reverse=True)
        wanted, found = max(1, round(keep_share * len(every))), list[int]()
        for start in range(0, len(surest), PACKED):
            some = surest[start : start + PACKED]
            answers.update(zip(some, read([chains[index] for index in some]), strict=True))
            found += [index for index in some if answers[index] >= math.log(min_likelihood)]
            if len(found) >= wanted:
                break
        chosen += found[:wanted]
    return sorted(chosen), answers


def report(chains: Sequence[DrawnChain], answers: Mapping[int, float], chosen: Sequence[int]) -> dict[str, Any]:
    """Counts by kind of question, and the shares of right drawings and of chains with only right ones."""
    of_kind: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(chains):
        of_kind[one.kind or one.slice].append(index)
    taken = set(chosen)

    def row(indices: Sequence[int]) -> dict[str, Any]:
        some = [index for index in indices if index in taken]
        return {
            "finished": len(indices),
            "read": sum(index in answers for index in indices),
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
    reader: LoadedCheckpoint, jobs: Sequence[Path], out: Path, *, keep_share: float = 0.4, min_likelihood: float = 0.5
) -> dict[str, Any]:
    """Filter the chains that the Zero jobs in these folders have drawn; write traces and report; return the report.

    Raises:
        OSError: a folder has no drawn chains.
        ValueError: no chain is finished.
    """
    chains = [one for job in jobs for one in drawn_chains(job) if one.rejected is None]
    if not chains:
        raise ValueError("the jobs have no finished chain")
    engine = Engine(reader.transformer, reader.vocab, reader.template, num_slots=1)
    read = partial(answer_logprobs, reader, engine)
    chosen, answers = kept(chains, read, keep_share=keep_share, min_likelihood=min_likelihood)
    rows = (json.dumps(trace_row_of(chains[index], reader.vocab), ensure_ascii=False) + "\n" for index in chosen)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(rows)
    write_file(out / "traces.jsonl", lambda path: path.write_text(text, "utf-8"))
    found = {
        "reader": reader.name,
        "keep_share": keep_share,
        "min_likelihood": min_likelihood,
        "kinds": report(chains, answers, chosen),
    }
    write_file(out / "report.json", lambda path: path.write_text(json.dumps(found, indent=1) + "\n", "utf-8"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.zero.read_back", description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=Path, nargs="+", metavar="JOB_DIR", help="folder of a Zero job")
    parser.add_argument("--reader", required=True, metavar="CHECKPOINT", help="a name or a folder")
    parser.add_argument("--keep-share", type=float, default=0.4)
    parser.add_argument("--min-likelihood", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    if not 0.0 < given.keep_share <= 1.0 or not 0.0 < given.min_likelihood < 1.0:
        parser.error("--keep-share must be in (0, 1], --min-likelihood in (0, 1)")
    try:
        reader = load_checkpoint(resolve(given.reader))
        found = read_back(
            reader, given.jobs, given.out, keep_share=given.keep_share, min_likelihood=given.min_likelihood
        )
    except (CheckpointError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found["kinds"]["all"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
