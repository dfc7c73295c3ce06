"""Which program a manifest's task is: drafts, gate, review and nodes call any task by this.

A task's modules are loaded when they are first used: its kernels take their time, and a review or a
help text needs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Protocol, cast

from federation.objects import (
    DeclaredDisclosure,
    JobManifest,
    NeuralParameters,
    QueryParameters,
    ScorecardParameters,
    TreesParameters,
)
from federation.tables import BankData, DepartmentData
from federation.tasks.party import Party

Parameters = ScorecardParameters | TreesParameters | NeuralParameters
MODULES = {
    "scorecard": "federation.tasks.scorecard",
    "trees": "federation.tasks.boosting",
    "neural": "federation.tasks.horizontal",
}


class Output(Protocol):
    """What any party program leaves; the rest is the task's own."""

    def digest(self) -> bytes:
        """Of this party's part of the model, for its run record."""


class Task(Protocol):
    """A task's module."""

    def plan(
        self,
        *,
        rows: int,
        customers_max: int,
        bank_fields: int,
        department_fields: Mapping[str, int],
        parameters: Any,
        banks: int = 1,
    ) -> tuple[QueryParameters, int, int]:
        """For the manifest: query parameters, tokens a department, tokens between departments."""

    def declare(self, manifest: JobManifest) -> tuple[DeclaredDisclosure, ...]:
        """Everything that a job of this manifest can reveal, at most."""

    def run_bank(self, party: Party, data: BankData) -> Output:
        """The bank's program."""

    def run_department(self, party: Party, data: DepartmentData) -> Output:
        """A department's program."""


def task_of(of: JobManifest | Parameters) -> Task:
    """The task of a manifest, or of parameters on their way into one."""
    parameters = of.parameters if isinstance(of, JobManifest) else of
    return cast("Task", import_module(MODULES[name_of(parameters)]))


def name_of(parameters: Parameters) -> Literal["scorecard", "trees", "neural"]:
    """What a manifest calls the task of these parameters."""
    if isinstance(parameters, NeuralParameters):
        return "neural"
    return "trees" if isinstance(parameters, TreesParameters) else "scorecard"


def run_party(party: Party, data: BankData | DepartmentData) -> Output:
    """One party's program of the manifest's task."""
    task = task_of(party.manifest)
    if isinstance(data, BankData):
        return task.run_bank(party, data)
    return task.run_department(party, data)
