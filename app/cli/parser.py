"""The commands of `omni-r1` and their options."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, get_args

from app.cli.data import add_options as add_data_options
from app.cli.export import add_options as add_export_options
from app.cli.operate import add_commands as add_operating_commands
from app.cli.terminal import EXIT_BAD_INPUT, complain, data_place, filled, number, whole
from app.contract.words import (
    MAX_CANDIDATES,
    MAX_DRAWN_IMAGES,
    MAX_PAGE,
    MAX_SAMPLES,
    MAX_SEED,
    MAX_STEPS,
    MAX_TEMPERATURE,
    Drain,
    JobStatus,
    Level,
    Replacement,
    Slice,
)

STAGES = ("vq", "base", "pesft")
_LEVELS = "hard is beyond the training range; 1 to 8 are graded, easy to beyond hard"
_URL_HELP = "the server ($OMNI_R1_URL, else http://127.0.0.1:7860)"
METHODS = {
    "pesft": "train on traces with images (PeSFT)",
    "perpo": "train with rewards (PeRPO)",
    "zero": "generate images for text-only chains with the base model, and train on them (Omni-R1-Zero)",
    "pipeline": "run the whole recipe, stage by stage",
    "benchmark": "evaluate a checkpoint",
}
VARIANTS = ("interleaved", "text", "state")


class _Parser(argparse.ArgumentParser):
    """argparse with one error line instead of a usage block."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(EXIT_BAD_INPUT)


def build_parser() -> _Parser:
    """The parser of all commands; the modules that run them are imported when called."""
    parser = _Parser(prog="omni-r1", description="A model that reasons in images.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_ask(commands)
    _add_branch(commands)
    _add_why(commands)
    _add_task(commands)
    _add_export(commands)
    _add_checkpoints(commands)
    _add_evaluate(commands)
    _add_data(commands)
    _add_grade(commands)
    _add_train(commands)
    _add_jobs(commands)
    _add_sweeps(commands)
    _add_convert(commands)
    add_operating_commands(commands, _command)
    _add_doctor(commands)
    return parser


_Commands = argparse._SubParsersAction  # the return type of add_subparsers has no public name


def _command(commands: _Commands[_Parser], name: str, run: str, text: str) -> _Parser:
    """Adds a sub-command; its function `run`, as module:function, is imported when called."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_serve(commands: _Commands[_Parser]) -> None:
    parser = _command(commands, "serve", "app.cli.serve:serve", "serve the studio and the REST API on this machine")
    parser.add_argument("--port", type=whole(), help="default 7860; 0 picks a free one")
    parser.add_argument("--host", help="address to bind (127.0.0.1); non-loopback addresses require OMNI_R1_API_KEY")
    parser.add_argument("--home", help="data folder (~/.omni-r1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="device of the model (auto)")
    parser.add_argument("--checkpoint", help="checkpoint to start with (the last active one)")


def _add_ask(commands: _Commands[_Parser]) -> None:
    text = "ask a running server about an image; streams the text, saves the images"
    parser = _command(commands, "ask", "app.cli.ask:ask", text)
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or AVIF; - reads stdin")
    parser.add_argument("question", metavar="QUESTION", type=filled)
    parser.add_argument("--fit", choices=("crop", "pad"), default="crop", help="how to make the image square (crop)")
    parser.add_argument("--temperature", type=number(0, MAX_TEMPERATURE), help="0 is greedy (the checkpoint's own)")
    parser.add_argument("--top-p", type=number(0, 1), help="nucleus sampling (the checkpoint's own)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), help="for reproducible answers (random)")
    parser.add_argument("--max-new-tokens", type=whole(1), help="(the remaining context)")
    parser.add_argument("--max-images", type=whole(0, MAX_DRAWN_IMAGES), help="(as many as fit)")
    _add_running_options(parser)


def _add_branch(commands: _Commands[_Parser]) -> None:
    text = "keep the first steps of a trace on a running server, optionally edited, and let the model go on from there"
    parser = _command(commands, "branch", "app.cli.ask:branch", text)
    parser.add_argument("trace", metavar="TRACE", type=filled, help="id of a trace that has ended or is paused")
    parser.add_argument(
        "--after", metavar="K", type=whole(0, MAX_STEPS), required=True, help="keep steps 1 to K; 0 keeps none"
    )
    parser.add_argument("--text", metavar="STEP=TEXT", action="append", default=[], help="replace a kept step's text")
    parser.add_argument(
        "--image",
        metavar="STEP=IMAGE",
        action="append",
        default=[],
        help="replace a kept step's image: a file, or previous (the image before), blank, question, or reference "
        "(the task's own)",
    )
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--then", metavar="TEXT", type=filled, help="the beginning of the next step")
    then.add_argument("--answer", action="store_true", help="let the model answer at once")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), help="(the trace's own)")
    parser.add_argument("--temperature", type=number(0, MAX_TEMPERATURE), help="0 is greedy (the trace's own)")
    _add_running_options(parser, checkpoint="the trace's own weights", candidates="the trace's own")


def _add_why(commands: _Commands[_Parser]) -> None:
    text = "measure how much a trace on a running server relies on its images, and what replacing them changes"
    parser = _command(commands, "why", "app.cli.ask:why", text)
    parser.add_argument("trace", metavar="TRACE", help="id of a trace with an answer")
    kinds = get_args(Replacement)
    parser.add_argument("--with", dest="with_", metavar="KIND", action="append", choices=kinds, help=", ".join(kinds))
    parser.add_argument("--steps", metavar="K", type=whole(1), nargs="+", help="replace these steps' images (all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_url(parser)


def _add_task(commands: _Commands[_Parser]) -> None:
    text = "show a task of the embedded world, optionally with its solution, or let the model answer it"
    parser = _command(commands, "task", "app.cli.ask:task", text)
    parser.add_argument("task_id", metavar="TASK_ID", nargs="?", help="e.g. natural-1000000123 (random)")
    parser.add_argument("--slice", choices=get_args(Slice), help="(random)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), help="(random and held out)")
    parser.add_argument("--level", choices=get_args(Level), help=_LEVELS)
    parser.add_argument("--reveal", action="store_true", help="include the reference steps and the answer")
    parser.add_argument("--ask", action="store_true", help="let the model answer it and check the answer")
    _add_running_options(parser)


def _add_export(commands: _Commands[_Parser]) -> None:
    text = (
        "save traces of a running server as a file: JSON, training data (jsonl), a page of HTML, or a zip of all that"
    )
    parser = _command(commands, "export", "app.cli.export:export", text)
    add_export_options(parser)
    _add_url(parser)


def _add_running_options(parser: _Parser, *, checkpoint: str = "the active one", candidates: str = "1") -> None:
    text = f"samples, at most {MAX_SAMPLES}; N > 1 prints a tally (1)"
    parser.add_argument("--n", metavar="N", type=whole(1, MAX_SAMPLES), default=1, help=text)
    drawn = f"images drawn per step, at most {MAX_CANDIDATES}, of which a verifier chooses one ({candidates})"
    parser.add_argument("--candidates", metavar="N", type=whole(1, MAX_CANDIDATES), help=drawn)
    parser.add_argument("--checkpoint", help=f"({checkpoint})")
    parser.add_argument("--out", metavar="DIR", help="folder for the images (./trace-ID for one trace)")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--quiet", action="store_true", help="print only the answer (of samples, the most frequent)")
    _add_url(parser)


def _add_url(parser: _Parser) -> None:
    parser.add_argument("--url", help=_URL_HELP)


def _add_checkpoints(commands: _Commands[_Parser]) -> None:
    text = "list a server's checkpoints; show, register, activate or delete one"
    parser = _command(commands, "checkpoints", "app.cli.checkpoints:list_all", text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    _command(actions, "list", "app.cli.checkpoints:list_all", "list them all (the default)")
    show = _command(actions, "show", "app.cli.checkpoints:show", "show one as JSON")
    register = _command(
        actions, "register", "app.cli.checkpoints:register", "register a folder on the server's machine or a hub id"
    )
    register.add_argument("source", metavar="SOURCE", type=filled, help="folder, or owner/name on the hub")
    register.add_argument("--name", help="(the manifest's)")
    activate = _command(actions, "activate", "app.cli.checkpoints:activate", "activate one for new traces")
    activate.add_argument(
        "--drain", choices=get_args(Drain), help="if memory cannot hold both: wait for running traces, or cancel them"
    )
    delete = _command(actions, "delete", "app.cli.checkpoints:delete", "delete an unused one")
    delete.add_argument("--unload", action="store_true", help="unload it first, if no trace uses it")
    for action in (show, activate, delete):
        action.add_argument("id", metavar="ID", type=filled)
    _everywhere(parser, actions)


def _everywhere(parser: _Parser, actions: _Commands[_Parser]) -> None:
    """Adds the options that are valid before and after an action."""
    for action in (parser, *actions.choices.values()):
        default = None if action is parser else argparse.SUPPRESS
        action.add_argument("--json", action="store_true", default=default, help="print JSON")
        action.add_argument("--url", default=default, help=_URL_HELP)


def _add_evaluate(commands: _Commands[_Parser]) -> None:
    text = "evaluate a checkpoint on held-out tasks of the embedded world"
    parser = _command(commands, "evaluate", "app.cli.train:evaluate", text)
    name = "name, folder or hub id (nano-omni-r1)"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", default="nano-omni-r1", help=name)
    parser.add_argument(
        "--tasks", type=whole(1), default=1000, help="total number, alternating between the four slices (1000)"
    )
    parser.add_argument("--level", choices=get_args(Level), default="normal", help=_LEVELS)
    parser.add_argument(
        "--first-seed", type=whole(0, MAX_SEED), metavar="N", help="seed of the first task (the first held-out one)"
    )
    parser.add_argument("--text-only", action="store_true", help="disallow images in the answers")
    drawn = "images drawn per step, of which a verifier chooses one (1)"
    parser.add_argument("--candidates", type=whole(1, MAX_CANDIDATES), default=1, metavar="N", help=drawn)
    judge = "the checkpoint that judges them (the evaluated one, or the nearest of its bases that can)"
    parser.add_argument("--verifier", metavar="NAME", help=judge)
    parser.add_argument("--quant", choices=("int8", "fp8"), help="form of the matrices in memory (not quantised)")
    parser.add_argument("--threads", type=whole(1), help="CPU threads (torch's default)")
    parser.add_argument("--out", metavar="DIR", help="folder for predictions and summary")


def _add_grade(commands: _Commands[_Parser]) -> None:
    parser = _command(commands, "grade", "app.cli.grade:run", "grade an answer as training and benchmarks do")
    parser.add_argument("answer", metavar="ANSWER")
    parser.add_argument("reference", metavar="REFERENCE", help="the correct answer")
    parser.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an option of the question; repeat in order"
    )
    parser.add_argument("--similarity", action="store_true", help="award partial credit for similar text")
    reward = "a reward of yours to try: FILE.py:FUNCTION, the name of an entry point, or a URL; repeatable"
    parser.add_argument("--reward", action="append", default=[], metavar="REWARD", help=reward)
    parser.add_argument("--json", action="store_true")


def _add_train(commands: _Commands[_Parser]) -> None:
    text = "start a training job on a running server, or train the embedded models from scratch"
    train = commands.add_parser("train", help=text, description=text[0].upper() + text[1:] + ".")
    methods = train.add_subparsers(title="methods", metavar="METHOD", required=True)
    for name, what in METHODS.items():
        _add_method(methods, name, what)
    parser = _command(methods, "nano", "app.cli.train:train_nano", "train the embedded family, one stage at a time")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--preset", default="nano", help="sizes and step counts: nano, or smoke for a test in seconds")
    parser.add_argument("--out", metavar="DIR", default="runs/nano", help="folder for checkpoints and logs (runs/nano)")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in --out")
    parser.add_argument("--seed", type=whole(), default=0)
    parser.add_argument(
        "--threads", type=whole(1), help="CPU threads (torch's default); results are reproducible for equal numbers"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 if the CPU supports it in hardware",
    )
    parser.add_argument(
        "--variant", choices=VARIANTS, default="interleaved", help="for pesft: the recipe, or a control without images"
    )
    parser.add_argument("--perception-weight", type=number(), help="for pesft: override the recipe's lambda")
    parser.add_argument("--steps", type=whole(1), help="for pesft: a shorter run, named after it")


def _add_method(methods: _Commands[_Parser], name: str, what: str) -> None:
    parser = _command(methods, name, "app.cli.jobs:train", f"{what}, as a job on a running server")
    parser.set_defaults(method=name)
    parser.add_argument("--preset", help="preset to start from (the training page's)")
    parser.add_argument("--spec", help="a whole spec instead: JSON, a JSON or YAML file, or - for stdin")
    parser.add_argument("--base", metavar="CHECKPOINT", help="checkpoint to start from (the preset's)")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="override one value, e.g. hyperparameters.steps=40",
    )
    parser.add_argument(
        "--data", metavar="FILE", type=data_place, help="jsonl, parquet or zip to upload, or hf://datasets/OWNER/NAME"
    )
    parser.add_argument("--seed", type=whole())
    parser.add_argument("--output-name", metavar="NAME", help="name prefix of its checkpoints")
    parser.add_argument(
        "--gpu", choices=("shared", "exclusive"), help="exclusive: run no other job in parallel (shared)"
    )
    parser.add_argument("--activate", action="store_true", help="activate the resulting checkpoint")
    parser.add_argument("--detach", action="store_true", help="print the job's id and exit")
    parser.add_argument("--estimate", action="store_true", help="print how long it will take here instead of starting")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    _add_url(parser)


def _add_data(commands: _Commands[_Parser]) -> None:
    parser = _command(commands, "data", "app.cli.data:check", "check a data set before a job")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "report usable rows by method, every rejection, and the first rows"
    add_data_options(_command(actions, "check", "app.cli.data:check", text))


def _add_jobs(commands: _Commands[_Parser]) -> None:
    text = "list a server's training jobs; show, watch, cancel, resume or delete one"
    parser = _command(commands, "jobs", "app.cli.jobs:jobs_list", text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = _command(actions, "list", "app.cli.jobs:jobs_list", "list the newest jobs (the default)")
    for one in (parser, listing):
        quiet = argparse.SUPPRESS
        one.add_argument("--status", choices=get_args(JobStatus), default=None if one is parser else quiet)
        one.add_argument("--method", choices=tuple(METHODS), default=None if one is parser else quiet)
        one.add_argument("--name", default=None if one is parser else quiet, help="only jobs of this name")
        one.add_argument("--tag", default=None if one is parser else quiet, help="only jobs with this tag")
        one.add_argument(
            "--limit", type=whole(1, MAX_PAGE), default=20 if one is parser else quiet, help=f"at most {MAX_PAGE} (20)"
        )
    actions_of_one = {
        "show": "show one",
        "watch": "follow one to its end",
        "cancel": "stop one at the end of its step, with a checkpoint",
        "resume": "resume an ended one from its saved state",
        "delete": "delete an ended one; its checkpoints stay",
        "label": "name, tag or annotate one",
    }
    for name, what in actions_of_one.items():
        _command(actions, name, f"app.cli.jobs:{name}", what).add_argument("id", metavar="ID", type=filled)
    actions.choices["cancel"].add_argument("--wait", action="store_true", help="wait until it has stopped")
    actions.choices["resume"].add_argument("--detach", action="store_true", help="do not follow it")
    more = _command(
        actions, "continue", "app.cli.jobs:continue_", "go on from a finished one for more steps, as a new one"
    )
    more.add_argument("id", metavar="ID", type=filled)
    more.add_argument("--steps", metavar="N", type=whole(1), required=True, help="further steps")
    more.add_argument("--name", help="of the new job (the finished one's)")
    more.add_argument("--output-name", metavar="NAME", help="name prefix of its checkpoints")
    more.add_argument("--detach", action="store_true", help="print the job's id and exit")
    label = actions.choices["label"]
    label.add_argument("--name", help='several jobs may have the same; "" removes it')
    label.add_argument("--tag", action="append", help='in place of its tags; repeatable; "" removes them')
    label.add_argument("--note", help='"" removes it')
    _everywhere(parser, actions)


def _add_sweeps(commands: _Commands[_Parser]) -> None:
    sweep = _command(commands, "sweep", "app.cli.jobs:sweep", "start a job for each combination of a grid")
    sweep.add_argument("file", metavar="FILE", type=filled, help="YAML or JSON with name, spec and grid; - for stdin")
    sweep.add_argument("--name", help="(the file's)")
    sweep.add_argument("--detach", action="store_true", help="do not wait for its jobs")
    sweep.add_argument("--json", action="store_true", help="print it as JSON")
    _add_url(sweep)
    parser = _command(commands, "sweeps", "app.cli.jobs:sweeps_list", "list sweeps; show, cancel or resume one")
    parser.add_argument("--limit", type=whole(1, MAX_PAGE), default=20, help=f"at most {MAX_PAGE} (20)")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    for name, what in {
        "show": "show one as a table",
        "cancel": "stop its jobs",
        "resume": "queue its jobs again that did not succeed",
    }.items():
        _command(actions, name, f"app.cli.jobs:sweeps_{name}", what).add_argument("id", metavar="ID", type=filled)
    _everywhere(parser, actions)


def _add_convert(commands: _Commands[_Parser]) -> None:
    text = "make a servable folder of Meta's release layout, a wrapped model's save, or a LoRA adapter and its base"
    parser = _command(commands, "convert", "app.cli.train:convert", text)
    parser.add_argument("source", metavar="SOURCE", help="folder with models/, config.json or adapter_config.json")
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--name", help="(the folder's)")
    parser.add_argument("--template", choices=("plain", "tagged"), default="plain")
    parser.add_argument("--size", default="7b", help="sub-folder of models/ (7b)")
    parser.add_argument("--adapter", action="store_true", help="SOURCE is a LoRA adapter (otherwise its files say so)")
    parser.add_argument("--base", help="of a LoRA adapter: folder, name or hub id (the one its config names)")
    text = "measure the scale of the perception score for a checkpoint, and write it into its manifest"
    parser = _command(commands, "calibrate", "app.cli.train:calibrate", text)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or name of one")
    parser.add_argument("--images", metavar="DIR", required=True, help="images like those it should draw")
    parser.add_argument("--json", action="store_true")


def _add_doctor(commands: _Commands[_Parser]) -> None:
    text = "check this machine and installation, or what a checkpoint folder is and which memory it needs"
    parser = _command(commands, "doctor", "app.cli.doctor:doctor", text)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="a checkpoint: folder, or name of a shipped one")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="device to count for (this machine's)")
    parser.add_argument("--memory-gb", metavar="GIB", type=number(0.1, 1e6), help="its memory in GiB (this machine's)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of the weights (fp32 on a CPU, else bf16)")
    parser.add_argument("--quant", choices=("int8", "fp8"), help="form of its matrices in memory (not quantised)")
    parser.add_argument("--port", type=whole(), help="the port that should be free (7860)")
    parser.add_argument("--json", action="store_true")


class _Version(argparse.Action):
    def __call__(self, *_: object) -> NoReturn:
        from model.build import commit, package_version

        sys.stdout.write(f"omni-r1 {package_version()} ({commit()[:12]})\n")
        raise SystemExit(0)
