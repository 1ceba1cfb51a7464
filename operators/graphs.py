"""CUDA graphs for repeated solves of one shape: a run of iterations is captured once and replayed."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invsolve.operators.cg import State, advance

if TYPE_CHECKING:
    from invsolve.operators.base import LinearOperator

ITERATIONS = 8
"""Iterations per graph, and so between two questions to the device."""

_KEPT = 2  # graphs per operator; each holds the vectors of one solve


class GraphBlock:
    """`ITERATIONS` conjugate-gradient iterations of one operator and shape, as one CUDA graph.

    The graph reads and writes the vectors of a state of its own, and the operator's arrays where they lay when it was
    captured; references to these are kept. The preconditioner is made inside the graph, since it follows the damping.

    Args:
        operator: the operator; its `normal` must be `capturable`.
        state: of a solve of the shape to capture.

    Raises:
        RuntimeError: the capture failed.
    """

    def __init__(self, operator: LinearOperator, state: State) -> None:
        self._operator = operator
        # Tensors made in inference mode could not be changed outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._state, scratch = _copy(state), _copy(state)
            stream = torch.cuda.Stream(state.x.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(state.x.device))
            with torch.cuda.stream(stream):  # plans of transforms and derived arrays are made before the capture
                self._advance(scratch, 2)
            torch.cuda.current_stream(state.x.device).wait_stream(stream)
            self._arrays = [dict(part.__dict__.get("_derived", {})) for part in operator.modules()]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._advance(self._state, ITERATIONS)

    def adopt(self, state: State) -> State:
        for field in dataclasses.fields(State):
            getattr(self._state, field.name).copy_(getattr(state, field.name))
        return self._state

    def __call__(self, count: int) -> None:
        if count == ITERATIONS:
            self._graph.replay()
        else:
            self._advance(self._state, count)

    def _advance(self, state: State, count: int) -> None:
        advance(state, self._operator.normal, self._operator.preconditioner(state.shift), count)


class GraphCache:
    """The graphs of one operator by shape, type, device and values of its arrays; made at the second such solve."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Any, ...], GraphBlock | None] = OrderedDict()  # None: the capture failed
        self._seen: tuple[Any, ...] | None = None

    def find(self, operator: LinearOperator, state: State) -> GraphBlock | None:
        """The block for solves like `state`; None at the first of a kind, and where the capture failed."""
        values = tuple(
            (id(tensor), 0 if tensor.is_inference() else tensor._version)
            for tensor in (*operator.parameters(), *operator.buffers())
        )
        key = (tuple(state.x.shape), state.x.dtype, state.x.device, values)
        if key not in self._blocks:
            if key != self._seen:
                self._seen = key
                return None
            try:
                self._blocks[key] = GraphBlock(operator, state)
            except RuntimeError:  # something waits for the device or allocates in a way that graphs don't allow
                self._blocks[key] = None
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[key]


def _copy(state: State) -> State:
    fields = (getattr(state, field.name) for field in dataclasses.fields(State))
    return State(*(_plain(value) for value in fields))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
