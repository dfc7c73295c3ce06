"""The platform's part of a job in rounds: Flower's own strategy applies what the banks sum.

A strategy averages the replies of a round by their number of examples. Here one reply comes in, the
mean over all banks that secure aggregation opened; what a strategy does besides (the adaptive steps
of FedAdam, the proximal term of FedProx) it does as in any other Flower federation.

`state` and `restore` carry everything from one finished round to the next, so that a new process
goes on where the last one stopped.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from federation.objects import NeuralParameters
from federation.tasks.party import RoundOrder, RoundReply
from protocols.errors import ProtocolError

Weights = NDArray[np.float32]
KEY = "weights"
MOMENTS = ("m_t", "v_t")


class Conductor:
    """All rounds of one job, one after the other."""

    def __init__(self, parameters: NeuralParameters, first: Weights, nodes: Iterable[int]) -> None:
        """first: the weights of the first round. nodes: Flower's ids of the banks' nodes."""
        self._rounds, self._nodes = parameters.rounds, _Nodes(nodes)
        self._strategy = _strategy(parameters, len(self._nodes.ids))
        self._weights, self._number = first.astype(np.float32), 1
        self._is_asked = False

    @property
    def number(self) -> int:
        """The round that is due; one more than the job has for the last evaluation."""
        return self._number

    def order(self) -> RoundOrder:
        """What every bank is sent now; the same until `take`."""
        if not self._is_asked and self._number <= self._rounds:
            record, config = ArrayRecord({KEY: Array(self._weights)}), ConfigRecord({})
            grid = cast(Grid, self._nodes)
            list(self._strategy.configure_train(self._number, record, config, grid))
            self._is_asked = True
        return RoundOrder(self._number, self._weights, is_last=self._number > self._rounds)

    def take(self, reply: RoundReply) -> None:
        """The mean over all banks; raises ProtocolError if it cannot be that of this round."""
        if reply.number != self._number or not self._is_asked:
            raise ProtocolError(f"a reply to round {reply.number}, round {self._number} is open")
        if reply.weights is None or reply.weights.shape != self._weights.shape:
            raise ProtocolError(f"round {reply.number}: other weights than were sent")
        if not np.isfinite(reply.weights).all() or reply.customers < 1:
            raise ProtocolError(f"round {reply.number}: weights that are no numbers")
        content = RecordDict(
            {
                "arrays": ArrayRecord({KEY: Array(reply.weights.astype(np.float32))}),
                "metrics": MetricRecord({"num-examples": reply.customers, "loss": reply.loss}),
            }
        )
        message = Message(content, dst_node_id=self._nodes.ids[0], message_type="train")
        arrays, _ = self._strategy.aggregate_train(self._number, [message])
        if arrays is None:
            raise ProtocolError(f"round {reply.number}: nothing came of it")
        self._weights = np.asarray(arrays[KEY].numpy(), np.float32)
        self._number, self._is_asked = self._number + 1, False

    def state(self) -> bytes:
        """Everything that the next round needs."""
        kept = {"number": np.array(self._number), KEY: self._weights}
        for name in MOMENTS:
            if moments := getattr(self._strategy, name, None):
                kept[name] = moments[KEY]
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **cast(Any, kept))
        return buffer.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from there; raises ProtocolError for a state of another network."""
        with np.load(io.BytesIO(state), allow_pickle=False) as kept:
            weights = kept[KEY]
            if weights.shape != self._weights.shape or weights.dtype != np.float32:
                raise ProtocolError("the kept round is of another network")
            self._weights, self._number = weights, int(kept["number"])
            for name in MOMENTS:
                if name in kept:
                    setattr(self._strategy, name, {KEY: kept[name]})


def stand_alone() -> None:
    """Where no ServerApp's task is (tests, examples): messages name a run 1 of this process."""
    if getattr(TaskIdentity, "_run_id", None) is None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    logging.getLogger("flwr").setLevel(logging.WARNING)


class _Nodes:
    """As much of Flower's grid as a strategy asks for."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = list(ids)

    def get_node_ids(self) -> list[int]:
        return self.ids


def _strategy(parameters: NeuralParameters, nodes: int) -> FedAvg:
    common = {
        "min_train_nodes": nodes,
        "min_available_nodes": nodes,
    }
    if parameters.strategy == "fedprox":
        return FedProx(**cast(Any, common), proximal_mu=float(parameters.proximal))
    if parameters.strategy == "fedadam":
        return FedAdam(**cast(Any, common), eta=float(parameters.server_rate))
    return FedAvg(**cast(Any, common))
