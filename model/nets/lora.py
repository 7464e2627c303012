"""LoRA (arXiv 2106.09685): frozen matrices plus trained products of two thin ones, y = x W + s (x A) B.

:func:`attach` gives every targeted projection of a transformer such a pair and freezes everything else. Training reads
the pair beside the frozen matrix, so no gradient of a full matrix is ever formed; the engine reads the merged matrix W
+ s A B, made anew at each refresh. A plain transformer is not affected.

Legend: D inputs, F outputs, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.low_rank import TARGETS, LoRASettings

_Model = TypeVar("_Model", bound=nn.Module)


class LowRank(nn.Module):
    """The pair of one projection: ``a`` [R, D] and ``b`` [F, R], as PEFT stores them."""

    def __init__(self, linear: nn.Linear, settings: LoRASettings, generator: torch.Generator) -> None:
        """A is uniform as in PEFT (Kaiming with a = sqrt 5), and B is zero: at first nothing changes."""
        super().__init__()
        bound = linear.in_features**-0.5
        values = torch.empty(settings.rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(values.to(linear.weight.device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, settings.rank, device=linear.weight.device))
        self.scale, self.dropout = settings.scale, settings.dropout


class Adapter(NamedTuple):
    """The pairs of one product of the forward, in its layout: ``a`` [D, R] and ``b`` [R, F], b scaled."""

    a: Tensor
    b: Tensor
    dropout: float

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., D] -> s (x A) B [..., F]; drops inputs if there is a dropout."""
        if self.dropout:
            x = F.dropout(x, self.dropout)
        return x @ self.a.to(x.dtype) @ self.b.to(x.dtype)


class LayerAdapters(NamedTuple):
    """A layer's adapters; None where no projection has a pair."""

    qkv: Adapter | None
    o: Adapter | None
    gate_up: Adapter | None
    down: Adapter | None


NO_ADAPTERS = LayerAdapters(None, None, None, None)


def attach(transformer: nn.Module, settings: LoRASettings, *, seed: int = 0) -> None:
    """Give the targeted projections of every layer a trainable pair, and freeze everything else.

    Raises:
        ValueError: there are pairs already, a target is unknown, or the rank is not positive.
    """
    if settings.rank < 1 or not settings.targets or not {*settings.targets} <= {*TARGETS}:
        raise ValueError(f"LoRA needs a rank of at least 1 and targets among {', '.join(TARGETS)}")
    if next(pairs(transformer), None) is not None:
        raise ValueError("the transformer has LoRA pairs already")
    transformer.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, linear in _projections(transformer):
        if name.rpartition(".")[2] in settings.targets:
            linear.lora = LowRank(linear, settings, generator)


def pairs(transformer: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Every projection's name and its pair, in the model's order."""
    for name, linear in _projections(transformer):
        pair = pair_of(linear)
        if pair is not None:
            yield name, pair


def pair_of(linear: nn.Linear) -> LowRank | None:
    """The pair of a projection, if it has one."""
    pair = getattr(linear, "lora", None)
    return pair if isinstance(pair, LowRank) else None


def effective(linear: nn.Linear) -> Tensor:
    """The projection's matrix [F, D] with its pair merged in."""
    pair = pair_of(linear)
    if pair is None:
        return linear.weight
    return torch.addmm(linear.weight.float(), pair.b, pair.a, alpha=pair.scale).to(linear.weight.dtype)


def adapter(*linears: nn.Linear, rows: Callable[[int, Tensor], Tensor] = lambda _, b: b, train: bool) -> Adapter | None:
    """The adapter of projections whose outputs stand side by side; None without any pair.

    Args:
        linears: of the same input.
        rows: reorders the outputs of linear number i, whose b [F, R] is given.
        train: whether inputs are dropped.
    """
    found = [pair_of(linear) for linear in linears]
    given = [pair for pair in found if pair is not None]
    if not given:
        return None
    a = torch.cat([pair.a for pair in given])
    columns, start = [], 0
    for i, (linear, pair) in enumerate(zip(linears, found, strict=True)):
        if pair is None:
            columns.append(a.new_zeros(a.shape[0], linear.out_features))
            continue
        own = rows(i, pair.scale * pair.b).t()
        rank = own.shape[0]
        columns.append(F.pad(own, (0, 0, start, a.shape[0] - start - rank)))
        start += rank
    return Adapter(a.t(), torch.cat(columns, dim=1), given[0].dropout if train else 0.0)


def trained_state(transformer: nn.Module) -> dict[str, Tensor]:
    """What training changes, to save and restore: the pairs if there are any, otherwise all weights."""
    state = transformer.state_dict()
    own = {name: value for name, value in state.items() if ".lora." in name}
    return own or state


def load_trained_state(transformer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what :func:`trained_state` saved.

    Raises:
        RuntimeError: it belongs to another model or to other LoRA settings.
    """
    expected = trained_state(transformer)
    if {*expected} != {*state}:
        raise RuntimeError("the saved state belongs to other LoRA settings")
    transformer.load_state_dict(dict(state), strict=False)


class MergedState(Mapping[str, Tensor]):
    """The state dict of the plain transformer that answers the same: pairs merged in, their names gone.

    A matrix is merged whenever it is read: a reader that drops each one takes the memory of one.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._state = {name: value for name, value in transformer.state_dict().items() if ".lora." not in name}
        self._merged = {f"{name}.weight": linear for name, linear in _projections(transformer) if pair_of(linear)}

    def __getitem__(self, name: str) -> Tensor:
        """The weights as they are now."""
        if (linear := self._merged.get(name)) is None:
            return self._state[name]
        with torch.no_grad():
            return effective(linear)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def shared_copy(module: _Model) -> _Model:
    """A copy that shares all frozen parameters with the original; trainable ones are copied."""
    memo: dict[int, Any] = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, memo)


def _projections(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            yield name, module
