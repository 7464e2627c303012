"""A minimal job worker: `fake_worker.py WHAT JOB_DIR [--attached] [--resume]`.

WHAT: full | silent (wait for disk space until a file `go` exists; `silent` has no space for events either) |
succeed | fail | crash | obey (until SIGTERM, then saves; --resume finishes) | stubborn (ignores SIGTERM) |
wait (until a file `go` exists in the job's folder).
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

WHAT, FOLDER = sys.argv[1], Path(sys.argv[2])
STOP = threading.Event()


def tell(kind, **data):
    with (FOLDER / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "2026-01-01T00:00:00.000Z", "type": kind, "data": data}) + "\n")


def step(number, total=4):
    tell("progress", stage="pesft", step=number, total=total, eta_s=1.5)
    tell("metrics", stage="pesft", step=number, values={"loss/ce": 2.0 / number, "loss/text": float("nan")})


def checkpoint(number):
    name = f"{json.loads((FOLDER / 'job.json').read_text())['output_prefix']}-step-{number}"
    folder = FOLDER / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    (FOLDER / "runs" / "pesft").mkdir(parents=True, exist_ok=True)
    (FOLDER / "runs" / "pesft" / "state.pt").write_bytes(b"state")
    tell("checkpoint", name=name, folder=str(folder), stage="pesft", step=number, metrics={"loss/ce": 2.0 / number})
    return name


def finish(number):
    (FOLDER / "samples").mkdir(exist_ok=True)
    (FOLDER / "samples" / "a-1.png").write_bytes(b"\x89PNG")
    tell(
        "sample",
        stage="pesft",
        step=number,
        question="?",
        question_image="samples/a-1.png",
        steps=[{"text": "I look", "image": "samples/a-1.png"}, {"text": "and see", "image": None}],
        answer="red",
        reference="red",
        slice=None,
        rewards={},
        advantage=None,
        prompt=0,
        index=0,
    )
    (FOLDER / "result.json").write_text(json.dumps({"checkpoint": checkpoint(number), "loss/ce": 0.5}))
    sys.exit(0)


def watch_stdin():
    while os.read(0, 100):
        pass
    STOP.set()


sys.stderr.write("the worker says hello\n")
if WHAT == "fail":
    tell("log", line="something is odd")
    (FOLDER / "error.json").write_text(json.dumps({"code": "loss_not_finite", "detail": "NaN at step 3"}))
    sys.exit(1)
if WHAT == "crash":
    step(1)
    sys.stderr.write("boom\x1b[31m\n")
    os._exit(7)
if WHAT == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    step(1)
    checkpoint(1)
    time.sleep(600)
if WHAT == "obey":
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    threading.Thread(target=watch_stdin, daemon=True).start()
    if "--resume" not in sys.argv:
        step(1)
        STOP.wait(600)
        checkpoint(2)
        sys.exit(3)
if WHAT in ("full", "silent"):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from training.jobs import disk
    from training.jobs.log import JobLog

    class Stop:
        def __bool__(self):
            return STOP.is_set()

    def write(room):
        if not (FOLDER / "go").exists():
            raise OSError(28, "No space left on device")
        room()

    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    disk.POLL_S = 0.02
    log = JobLog(FOLDER, tensorboard=False, stop=Stop())
    log.progress("pesft", 1, 4, 1.5)
    log.metrics("pesft", 1, {"loss/ce": 2.0})
    if WHAT == "silent":
        real = log._write
        log._write = lambda line: write(lambda: real(line))
    try:
        log.disk.write(lambda: write(lambda: None))
    except OSError:
        sys.exit(3)
if WHAT == "wait":
    step(1)
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
for number in (3, 4):
    step(number)
finish(4)
