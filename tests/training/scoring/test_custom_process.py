"""Rewards of your own in their process: what they are given, and everything that they may do wrong."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.e2e.real_server import runs
from tests.patience import PATIENCE_S
from tests.training.packages import write_package
from training.jobs.context import JobStopped
from training.scoring.custom import Case, CustomValue, Response, ResponseStep, RewardError, Sample, read_value
from training.scoring.custom_process import GIVE_UP_AFTER, FunctionReward
from training.spec.hyperparameters import CustomReward

FUNCTIONS = """
import ctypes, os, sys, time
from dataclasses import dataclass

@dataclass
class Mean:
    value: float

def half(sample, response):
    return Mean(0.5).value

def parts(sample, response):
    return {"steps": len(response.steps), "right": response.answer == sample.reference}

def pixels(sample, response):
    image = response.steps[0].image
    return {"red": image.getpixel((0, 0))[0] / 255, "width": image.width, "given": len(sample.images)}

def raises(sample, response):
    raise KeyError("no such thing")

def nan(sample, response):
    return float("nan")

def text(sample, response):
    return "0.5"

def nothing(sample, response):
    pass

def leaves(sample, response):
    sys.exit(3)

def dies(sample, response):
    os._exit(3)

def crashes(sample, response):
    ctypes.string_at(0)

def hangs(sample, response):
    if sample.question == "hang":
        print("now I hang")
        while True:
            time.sleep(1)
    return 1.0

def sleeps(sample, response):
    time.sleep(60)

def prints(sample, response):
    line = "x" * 1_000_000
    for _ in range(1_000):
        print(line)
    print("the end", file=sys.stderr)
    return 1.0

def reads(sample, response):
    return {"key": float("JUDGE_KEY" in os.environ), "api": float("OMNI_R1_API_KEY" in os.environ)}

def ignores_signals(sample, response):
    import signal
    os.kill(os.getpid(), signal.SIGTERM)
    return 1.0

number = 3
"""
CASE = Case(Sample("Which colour?", "red"), Response("red", (ResponseStep("I look."), ResponseStep("I see."))))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


class Open:
    """Opens rewards and closes them at the end of a test."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.opened: list[FunctionReward] = []

    def __call__(self, function: str, **settings: object) -> FunctionReward:
        given = {"file": f"{self.file}:{function}", "timeout_s": float(PATIENCE_S), **settings}
        self.opened.append(FunctionReward(CustomReward.model_validate(given)))
        return self.opened[-1]


@pytest.fixture
def reward(file: Path) -> Iterator[Open]:
    opened = Open(file)
    yield opened
    for one in opened.opened:
        one.close()


def test_function_of_a_file_scores(reward: Open) -> None:
    assert reward("half").score([CASE, CASE]) == [CustomValue(0.5)] * 2


def test_named_values_are_added_up(reward: Open) -> None:
    assert reward("parts").score([CASE]) == [CustomValue(3.0, {"steps": 2.0, "right": 1.0})]


def test_images_arrive_pixel_for_pixel(reward: Open) -> None:
    red = Image.new("RGB", (64, 48), (255, 0, 0))
    case = Case(Sample("?", "red", images=(red,)), Response(None, (ResponseStep("Box.", (1, 2), red),)))
    assert reward("pixels").score([case]) == [CustomValue(66.0, {"red": 1.0, "width": 64.0, "given": 1.0})]


def test_case_survives_its_json() -> None:
    case = Case(Sample("?", "3", ("3", "4"), "own"), Response("3", (ResponseStep("a", (1, 2)), ResponseStep("b"))))
    assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("raises", "KeyError"),
        ("nan", "nan"),
        ("text", "a str, not a number"),
        ("nothing", "a NoneType, not a number"),
        ("leaves", "SystemExit"),
        ("dies", "its process ended"),
        ("crashes", "its process ended"),
    ],
)
def test_bad_value_is_one_responses_error(reward: Open, function: str, problem: str) -> None:
    found = reward(function).score([CASE, CASE])
    assert all(isinstance(one, str) and problem in one for one in found), found


def test_hung_call_is_ended_and_the_next_works(reward: Open) -> None:
    hangs = reward("hangs", timeout_s=0.5)
    bad = Case(Sample("hang", "red"), Response("red"))
    first, second = hangs.score([bad, CASE])
    assert first == "it took longer than 0.5 s (it printed: now I hang)"
    assert second == CustomValue(1.0)


def test_function_that_always_hangs_is_given_up(reward: Open) -> None:
    found = reward("sleeps", timeout_s=0.1).score([CASE] * (GIVE_UP_AFTER + 50))
    assert [str(one).startswith("given up") for one in found].index(True) == GIVE_UP_AFTER
    assert all(isinstance(one, str) for one in found)


def test_printed_gigabyte_goes_nowhere(reward: Open, tmp_path: Path) -> None:
    prints = reward("prints")
    before = psutil.Process().memory_info().rss
    assert prints.score([CASE]) == [CustomValue(1.0)]
    assert psutil.Process().memory_info().rss - before < 50e6
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.py")) < 10_000


def test_secrets_are_not_passed_on(reward: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setenv("OMNI_R1_API_KEY", "secret")
    assert reward("reads").score([CASE]) == [CustomValue(0.0, {"key": 0.0, "api": 0.0})]


def test_signals_of_the_job_do_not_end_it(reward: Open) -> None:
    assert reward("ignores_signals").score([CASE]) == [CustomValue(1.0)]


@pytest.mark.parametrize(
    ("target", "problem"),
    [("unknown", "no function unknown"), ("number", "a int, not a function"), ("half", "SyntaxError")],
)
def test_unusable_function_is_refused_at_once(reward: Open, file: Path, target: str, problem: str) -> None:
    if target == "half":
        file.write_text("def half(:")
    with pytest.raises(RewardError, match=problem) as refused:
        reward(target)
    assert refused.value.code == "reward_unusable"


def test_unknown_entry_point_is_refused(reward: Open) -> None:
    with pytest.raises(RewardError, match="entry point nobody-has-this"):
        FunctionReward(CustomReward(name="nobody-has-this"))


def test_entry_point_of_a_package_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_too.py").write_text(FUNCTIONS)
    write_package(tmp_path, rewards={"half-of-it": "mine_too:half"})
    monkeypatch.syspath_prepend(str(tmp_path))
    named = FunctionReward(CustomReward(name="half-of-it"))
    try:
        assert named.score([CASE]) == [CustomValue(0.5)]
    finally:
        named.close()


class Stop:
    """A stop that may be asked for."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


def test_stopped_job_does_not_wait(file: Path) -> None:
    stop = Stop()
    sleeps = FunctionReward(CustomReward(file=f"{file}:sleeps", timeout_s=50.0), stop=stop)
    stop.asked = True
    with pytest.raises(JobStopped):
        sleeps.score([CASE])
    sleeps.close()


def test_forgotten_process_is_ended(file: Path) -> None:
    reward = FunctionReward(CustomReward(file=f"{file}:half"))
    assert len(children()) == 1
    del reward
    gc.collect()
    assert not children()


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process(os.getpid()).children() if runs(one, "custom_child")]


@pytest.mark.parametrize("value", [True, 1, -0.5, {"a": 1, "b": 0.5}])
def test_numbers_are_values(value: object) -> None:
    assert isinstance(read_value(value), CustomValue)


@pytest.mark.parametrize(
    "value",
    [None, "1", [1], 1j, float("inf"), 1e7, {}, {"a": "b"}, {1: 1.0}, {"a/b": 1.0}, {f"{k}": 0 for k in range(17)}],
)
def test_anything_else_is_no_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"return|name"):
        read_value(value)
