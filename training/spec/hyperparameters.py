"""Hyperparameters of every training method, strict and bounded, each default with its source.

Sources in the descriptions: [P] the paper (arXiv 2601.09536), [C] its authors' code, [D] this project's own choice.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

LONGEST_CONTEXT = 16_384  # as in `model.config`: positions of the released models are not scaled
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Candidates = Annotated[int, Field(ge=1, le=8)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e4)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Variant = Literal["interleaved", "text", "state"]
TemplateName = Literal["plain", "tagged"]
Precision = Literal["auto", "fp32", "bf16"]
Replacement = Literal["previous", "blank", "question", "other", "reference"]


class Strict(BaseModel):
    """Rejects unknown keys, wrong types and NaN; immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


class LoRAHyperparameters(Strict):
    """Low-rank pairs beside frozen matrices (arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(16, description="columns of the thin matrices")
    alpha: float = Field(32.0, gt=0.0, le=1e4, description="the product's scale is alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of a pair's inputs dropped in training; 0 in PeRPO")
    targets: list[Projection] = Field(
        default_factory=lambda: [*PROJECTIONS],
        min_length=1,
        max_length=len(PROJECTIONS),
        description="projections of every layer that get a pair",
    )


class _Optimisation(Strict):
    """Shared by every method that updates weights."""

    precision: Precision = Field(
        "fp32",
        description="of the forward; auto: bf16 on devices with bf16 hardware; trained weights are fp32 [D]",
    )
    lora: LoRAHyperparameters | None = Field(
        None, description="train low-rank pairs, with the base's weights frozen; null: train all weights [D]"
    )
    recompute: bool = Field(
        False, description="keep only each layer's input for the backward: less memory, about a third more time [D]"
    )
    context: Annotated[int, Field(ge=64, le=LONGEST_CONTEXT)] | None = Field(
        None,
        description="tokens of a sequence, and the context of the checkpoints made; null: the base's own, or what "
        "max_len, or the longest prompt with max_new_tokens, asks for [D]",
    )
    weight_decay: Weight = Field(0.1, description="[P] of PeRPO; weights of linear layers and embeddings, not of pairs")
    clip_norm: float = Field(1.0, gt=0.0, le=1e3, description="[P]")
    save_every: Positive = Field(200, description="steps between two checkpoints")
    keep_states: Positive = Field(3, description="checkpoints that keep train/; all stay servable")
    log_every: Positive = Field(5, description="steps between two rows of metrics")


class PeSFTHyperparameters(_Optimisation):
    """L = L_CE + lambda * L_Pe (Eqs. 1-3) over packed batches. Defaults suit the embedded model."""

    steps: Positive | None = Field(None, description="optimiser steps; from epochs when absent")
    epochs: float = Field(1.0, gt=0.0, le=1e4, description="[C] 1")
    lr: LearningRate = Field(5e-4, description="[D] a quarter of the embedded model's own run; [C] 1e-5 for the 7B")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Count = 20
    floor: Share = Field(0.05, description="share of lr at the end of the cosine")
    betas: tuple[Share, Share] = Field((0.9, 0.95), strict=False)
    batch_tokens: Positive = Field(3_072, description="tokens of an optimiser batch [D]")
    batch_samples: Positive | None = Field(None, description="samples of an optimiser batch, instead of batch_tokens")
    micro_batches: Positive = Field(1, description="parts of a batch whose gradients are added up")
    max_len: Positive | None = Field(None, description="longer samples are dropped and counted; default: the context")
    normalisation: Literal["batch", "micro_batch"] = Field("batch", description="[C] micro_batch")
    perception_weight: Weight = Field(1.0, description="lambda [P] 1")
    perception_reduction: Literal["sum", "mean"] = Field(
        "mean", description="over D: [P] sum; [C], [D] mean: the sum undid a small base (docs/lab-log.md)"
    )
    perception_projection: Literal["learned", "frozen"] = Field("learned", description="W: [C] random and frozen")
    perception_state: Literal["predict", "token"] = Field("predict", description="h_t: [C] the state at the token")
    variant: Variant = Field("interleaved", description="text and state are the controls without images")
    drills: float = Field(
        0.0, ge=0.0, le=0.9, description="share of the sequences that are new drills, against forgetting to draw [D]"
    )
    template: TemplateName | None = Field(None, description="of the checkpoint made; the base's own when absent")
    precision: Precision = Field(
        "auto", description="bf16 [C] on devices with bf16 hardware, otherwise fp32; trained weights are fp32"
    )
    sample_every: Count = Field(100, description="steps between two sampled looks at the model; 0: never")
    show_samples: Annotated[int, Field(ge=1, le=16)] = Field(4, description="traces shown at each look")

    @model_validator(mode="after")
    def _drills_draw(self) -> PeSFTHyperparameters:
        if self.drills and self.variant != "interleaved":
            raise ValueError("drills draw: they need variant interleaved")
        return self

    @model_validator(mode="after")
    def _micro_batches_have_samples(self) -> PeSFTHyperparameters:
        if self.batch_samples is not None and self.micro_batches > self.batch_samples:
            raise ValueError(f"{self.micro_batches} micro_batches cannot be made of {self.batch_samples} samples")
        return self


class CustomReward(Strict):
    """A reward of your own, named by exactly one of name, file and url (docs/own-rewards-and-tasks.md) [D]."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="an entry point of the group omni_r1.rewards"
    )
    file: str | None = Field(
        None,
        max_length=1_000,
        pattern=r"^[^\x00]*[^\x00/]\.py:[A-Za-z_][A-Za-z0-9_]{0,63}$",
        description="file.py:function in OMNI_R1_REWARDS_DIR; without that setting the server rejects it",
    )
    url: str | None = Field(
        None, pattern=r"^https?://[^\s@]+$", max_length=500, description="an endpoint that scores batches"
    )
    weight: Weight = Field(1.0, description="of its value in the total reward")
    label: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
        description="its name in metrics and samples; the entry point's, the function's, or `url` when absent",
    )
    images: bool = Field(False, description="give it the question's images and the drawings, too")
    timeout_s: float = Field(10.0, gt=0.0, le=600.0, description="of a call, or of a request")
    retries: int = Field(3, ge=0, le=10, description="of a request")
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(64, description="responses of a request")
    api_key_env: str | None = Field(
        None,
        pattern=r"^REWARD_[A-Z0-9_]{1,100}$",
        description="environment variable that holds the endpoint's key; only those called REWARD_... are ever read",
    )

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label"):
            named = [data.get("name"), str(data.get("file") or "").rpartition(":")[2], data.get("url") and "url"]
            data = {**data, "label": next((name for name in named if isinstance(name, str) and name), "")}
        return data

    @model_validator(mode="after")
    def _one_place(self) -> CustomReward:
        if sum(place is not None for place in (self.name, self.file, self.url)) != 1:
            raise ValueError("give exactly one of name, file and url")
        if self.api_key_env is not None and self.url is None:
            raise ValueError("api_key_env belongs to a url")
        return self


class RewardHyperparameters(Strict):
    """R = alpha R_Acc + beta R_Fmt + gamma R_Pe + the weighted custom rewards, and the guards of R_Pe."""

    alpha: Weight = Field(0.855, description="accuracy [C]")
    beta: Weight = Field(0.095, description="format [C]")
    gamma: Weight = Field(0.05, description="perception [C]; 0 is the ablation without R_Pe")
    similarity: bool = Field(False, description="an answer in nearly the reference's words earns its similarity [C] on")
    tau: float | None = Field(None, gt=0.0, le=1e6, description="the checkpoint's own when absent; [C] 3.0 for the 7B")
    aggregation: Literal["mean", "min"] = Field("mean", description="over images: [P] mean, [C] min")
    functional: Weight = Field(
        0.0,
        description="delta, functional correctness: the checkers' verdict on each drawing; supervision, for tasks of "
        "the world or of your own family [D]",
    )
    copied_share: Share = Field(
        0.99,
        description="this share of codes equal to the previous image: a copy, which scores 0 [D] "
        "(a right mark changes 1 code of 64, so .95 would punish it)",
    )
    max_error_share: Share = Field(0.1, description="scoring errors above this share end the job [D]")
    custom: list[CustomReward] = Field(
        default_factory=list, max_length=4, description="rewards of your own; one may stand without its list [D]"
    )

    @field_validator("custom", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _labels_differ(self) -> RewardHyperparameters:
        labels = [one.label for one in self.custom]
        if len({*labels}) < len(labels):
            raise ValueError("two custom rewards have the same label: give one another label")
        return self


class ValidationHyperparameters(Strict):
    """Greedy answers to questions that the run never trains on."""

    every: Positive = Field(20, description="steps between two validations; the start and the last step have one, too")
    tasks: Annotated[int, Field(ge=1, le=10_000)] = Field(
        200, description="tasks of the world from the end of RL's seeds; of files the last rows, which are held out"
    )
    patience: Count = Field(0, description="the run ends after so many validations without a gain; 0: never")


class PeRPOHyperparameters(_Optimisation):
    """Group-relative policy optimisation with the perception reward (Eqs. 4-16). Defaults: preset `nano` [D]."""

    @model_validator(mode="before")
    @classmethod
    def _on_policy(cls, data: Any) -> Any:
        if isinstance(data, dict) and {"candidates", "verifier", "verify"} & data.keys():
            raise PydanticCustomError(
                "off_policy", "the best of several candidates is not the policy that PeRPO trains"
            )
        return data

    steps: Positive = 60
    lr: LearningRate = Field(1e-4, description="[D] 3e-4 unlearned (docs/results.md); [P] 1e-7 for the 7B")
    warmup: Count = Field(5, description="[P] 5")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="after the warm-up, to 0 [D]: the last weights are the result; [P] constant"
    )
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None, description="moving average of the weights, validated and exported instead of the last ones; null: none"
    )
    validation: ValidationHyperparameters | None = None
    final: Literal["best", "last"] = Field(
        "best", description="the job's result: the best validated checkpoint, without validation the last"
    )
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = Field(16, description="[P] 64")
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=1024)] = Field(8, description="G: [P] 16")
    oversampling: float = Field(2.0, ge=1.0, le=16.0, description="prompts sampled per prompt used: [P] 3")
    mini_batch_prompts: Positive = Field(8, description="[P] 16")
    refill_rounds: int = Field(3, ge=0, le=16)
    filter_metric: Literal["accuracy", "total", "any", "none"] = Field(
        "accuracy", description="drop groups in which this is equal; any: the accuracy and the verdict on every drawing"
    )
    credit: Literal["trajectory", "step"] = Field(
        "trajectory",
        description="where reward.functional goes: into the total, or to the tokens of each drawing's step",
    )
    code_weights: Literal["all", "changed"] = Field(
        "all", description="image codes with an advantage: all, or those where a group changes an image [D]"
    )
    clip_low: Share = Field(0.20, description="[P]")
    clip_high: Share = Field(0.28, description="[P]")
    kl_coef: Weight = Field(0.003, description="[P]")
    kl_estimator: Literal["k3", "k1"] = Field("k3", description="[P] k1")
    entropy_coef: Weight = Field(0.001, description="[P]")
    advantage_eps: float = Field(1e-6, gt=0.0, le=1.0, description="delta")
    temperature: float = Field(1.0, gt=0.0, le=4.0, description="[P]")
    top_p: float = Field(0.95, gt=0.0, le=1.0, description="[P]")
    max_new_tokens: Positive = Field(330, description="of a completion")
    max_images: Count | None = Field(None, description="of a completion; the checkpoint's own when absent")
    rollout_actors: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="sample in so many actors of the Ray cluster at RAY_ADDRESS; 0: in the job's own process [D]"
    )
    sampler_ratio_cap: float = Field(2.0, ge=1.0, le=1e3, description="truncated weight of trainer over sampler")
    reward: RewardHyperparameters = Field(default_factory=lambda: RewardHyperparameters())
    sample_every: Positive = Field(1, description="steps between two sampled traces that are shown")
    save_every: Positive = 20
    log_every: Positive = Field(1, description="steps are long enough to log each")

    @model_validator(mode="after")
    def _steps_have_verdicts(self) -> PeRPOHyperparameters:
        if self.credit == "step" and not self.reward.functional:
            raise ValueError("credit: step shares out reward.functional, which is 0: give it a weight")
        return self

    @model_validator(mode="after")
    def _policy_is_the_sampler(self) -> PeRPOHyperparameters:
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout must be 0 in PeRPO: a policy with dropout is not the one that sampled")
        return self


class ZeroHyperparameters(Strict):
    """Text-only chains -> images drawn by the base model -> traces; then PeSFT on them unless disabled."""

    splitter: Literal["list", "numbered", "sentences", "auto"] = Field("auto", description="how a chain becomes steps")
    max_steps: Positive = Field(4, description="more steps are merged")
    candidates: Annotated[int, Field(ge=1, le=64)] = Field(4, description="images drawn per step; the best is kept")
    score: Literal["perception", "likelihood", "verifier", "first"] = Field(
        "perception", description="which candidate is kept; verifier: the base must be one; first: no choice"
    )
    context: Literal["trajectory", "picture", "instruction"] = Field(
        "trajectory",
        description="what the base sees: everything so far; or the newest image and the step's text, as it stands "
        "or as an instruction ('I draw a box' -> 'Draw a box')",
    )
    pictures_shown: Annotated[int, Field(ge=1, le=4)] = Field(
        1, description="number of newest images that the base sees if it does not see everything"
    )
    copied_share: Share = Field(0.99, description="a candidate this equal to the previous image is rejected")
    keep_share: float = Field(
        1.0, gt=0.0, le=1.0, description="of the finished chains of each kind of question, those drawn surest"
    )
    on_rejected: Literal["drop", "text"] = Field(
        "drop", description="without a candidate left: the trace is dropped, or the step stays text"
    )
    template: TemplateName = Field("tagged", description="of the checkpoint that PeSFT makes [C]")
    temperature: float = Field(1.0, ge=0.0, le=4.0)
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(32, description="images drawn at once")
    min_accepted: Share = Field(0.1, description="below this share of accepted traces the job fails")
    pesft: PeSFTHyperparameters | None = Field(
        default_factory=lambda: PeSFTHyperparameters(),
        description="null: bootstrap only; in a pipeline its own stage pesft comes instead",
    )


class JudgeHyperparameters(Strict):
    """An OpenAI-compatible judge in addition to the rules; both verdicts are kept."""

    url: str = Field(pattern=r"^https?://[^\s@]+$", max_length=500, description="base, as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, max_length=200)
    api_key_env: str | None = Field(
        None,
        pattern=r"^JUDGE_[A-Z0-9_]{1,100}$",
        description="environment variable that holds the key; only those called JUDGE_... are ever read",
    )
    timeout_s: float = Field(30.0, gt=0.0, le=600.0)
    retries: int = Field(2, ge=0, le=10)
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4


class BenchmarkHyperparameters(Strict):
    """Greedy answers, graded by rules, by default."""

    temperature: float = Field(0.0, ge=0.0, le=4.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_new_tokens: Positive | None = None
    max_images: Count | None = Field(None, description="0: text only")
    candidates: Candidates = Field(1, description="images drawn per step; a verifier chooses the one that goes on")
    verifier: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="the checkpoint that judges them; null: the measured one, or the nearest of its bases that can",
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    compare_with: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="another checkpoint on the same tasks, paired; in a pipeline also an earlier stage's name",
    )
    interventions: list[Replacement] = Field(
        default_factory=list,
        max_length=5,
        description="replace each image of a response by these, one at a time, and go on greedily: do answers change?",
    )
    judge: JudgeHyperparameters | None = None
    show_samples: int = Field(16, ge=0, le=1000, description="traces shown while it runs")


class PipelineHyperparameters(Strict):
    """The stages of the recipe in order; null disables a stage."""

    zero: ZeroHyperparameters | None = None
    pesft: PeSFTHyperparameters | None = Field(default_factory=lambda: PeSFTHyperparameters())
    perpo: PeRPOHyperparameters | None = Field(default_factory=lambda: PeRPOHyperparameters())
    benchmark: BenchmarkHyperparameters | None = Field(default_factory=lambda: BenchmarkHyperparameters())
