"""A refusal that says what would be approved instead: less of the same job.

A counter-proposal opens nothing. The bank makes a new manifest that keeps to it (`narrowed`), names
the refused one as its previous, and every owner approves that one, or it does not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from federation.errors import UsageError
from federation.objects import (
    JobManifest,
    Narrowing,
    ScorecardParameters,
    TreesParameters,
    utc_time,
)

if TYPE_CHECKING:  # drafts know the tasks, whose kernels take their time to load
    from federation.drafts import JobDraft


def require_less(asked: Narrowing, manifest: JobManifest, org: str) -> None:
    """Raises UsageError unless each part of a counter-proposal takes something from the job."""
    fields = manifest.party(org).fields
    if unknown := [name for name in asked.drop_fields if name not in fields]:
        raise UsageError(f"the job does not read {', '.join(unknown)} of {org}", party=org)
    if asked.drop_fields and len(asked.drop_fields) == len(fields):
        todo = "refuse the job if none of its fields may be read"
        raise UsageError(
            "a job without any of your fields is no narrower one", party=org, todo=todo
        )
    for name, value, now in _figures(asked, manifest):
        if now is None:
            raise UsageError(f"a job of {manifest.task} has no {name}", party=org)
        if value >= now:
            raise UsageError(f"{name} {value} is not less than the job's {now}", party=org)
    if asked.expires is not None:
        end = utc_time(asked.expires)
        if not utc_time(manifest.not_before) < end < utc_time(manifest.expires):
            when = f"after {manifest.not_before} and before {manifest.expires}"
            raise UsageError(f"a narrower job ends {when}", party=org)


def words(asked: Narrowing) -> tuple[str, ...]:
    """A counter-proposal as a person reads it."""
    found = [f"without {name}" for name in asked.drop_fields]
    if asked.openings is not None:
        found.append(f"with {_most(asked.openings, 'opening')} of training scores")
    if asked.evaluation is False:
        found.append("with no score of each customer at the end")
    if asked.trees is not None:
        found.append(f"with {_most(asked.trees, 'tree')} asking the departments")
    if asked.attempts is not None:
        found.append(f"with {_most(asked.attempts, 'run')}")
    if asked.expires is not None:
        found.append(f"that ends at {asked.expires} at the latest")
    return tuple(found)


def _most(count: int, name: str) -> str:
    return f"at most {count} {name}" + ("" if count == 1 else "s")


def unmet(asked: Narrowing, org: str, refused: JobManifest, manifest: JobManifest) -> list[str]:
    """What a newer manifest does not keep to; nothing, if the counter-proposal is met.

    A field or dataset of this owner that the refused job did not have is not met either.
    """
    if manifest.task != refused.task or org not in {party.org for party in manifest.parties}:
        return ["it is another job"]
    old, new = refused.party(org), manifest.party(org)
    found = [f"it still reads {name}" for name in asked.drop_fields if name in new.fields]
    found += [f"it reads {name} as well" for name in new.fields if name not in old.fields]
    if new.dataset != old.dataset:
        found.append(f"it reads the dataset {new.dataset}")
    for name, value, now in _figures(asked, manifest):
        if now is not None and now > value:
            found.append(f"{name} is {now}, not {value}")
    if asked.expires is not None and utc_time(manifest.expires) > utc_time(asked.expires):
        found.append(f"it ends at {manifest.expires}")
    return found


def narrowed(draft: JobDraft, asked: Iterable[tuple[str, Narrowing]]) -> JobDraft:
    """The draft of a job that keeps to all the counter-proposals.

    draft: of `drafts.of_manifest`, which names each field.
    """
    for org, item in asked:
        changes: dict[str, Any] = {"department": _departments(draft, org, item)}
        limits, parameters = draft.limits, draft.parameters
        if item.attempts is not None:
            limits = limits.model_copy(
                update={"attempts": min(limits.attempts or item.attempts, item.attempts)}
            )
        if item.expires is not None:
            changes["until"] = min(filter(None, (draft.until, item.expires)))
        left = {f for part in (draft.bank, *changes["department"]) for f in part.fields or ()}
        if isinstance(parameters, TreesParameters):
            changes["trees"] = _trees(parameters, item, left)
        elif isinstance(parameters, ScorecardParameters):
            changes["scorecard"] = _scorecard(parameters, item, left)
        plain = draft.model_dump(exclude_unset=True) | {"limits": limits} | changes
        draft = type(draft).model_validate(plain)
    return draft


def _departments(draft: JobDraft, org: str, asked: Narrowing) -> tuple[Any, ...]:
    return tuple(
        part.model_copy(
            update={"fields": tuple(f for f in part.fields or () if f not in asked.drop_fields)}
        )
        if part.org == org
        else part
        for part in draft.department
    )


def _scorecard(now: ScorecardParameters, asked: Narrowing, left: set[str]) -> ScorecardParameters:
    changes: dict[str, Any] = {"monotone": tuple(name for name in now.monotone if name in left)}
    if asked.openings is not None:
        changes["openings"] = min(now.openings, asked.openings)
    if asked.evaluation is False:
        changes["evaluation"] = False
    return ScorecardParameters.model_validate({**now.model_dump(), **changes})


def _trees(now: TreesParameters, asked: Narrowing, left: set[str]) -> TreesParameters:
    changes: dict[str, Any] = {
        name: tuple(item for item in getattr(now, name) if item in left)
        for name in ("increasing", "decreasing")
    }
    if asked.trees is not None:
        changes["joint_trees"] = min(now.joint_trees or now.trees, asked.trees)
    return TreesParameters.model_validate({**now.model_dump(), **changes})


def _figures(asked: Narrowing, manifest: JobManifest) -> list[tuple[str, int, int | None]]:
    """(name, at most, what the manifest has) of each figure that a counter-proposal names."""
    is_scorecard = isinstance(manifest.parameters, ScorecardParameters)
    has: Mapping[str, int | None] = {
        "openings": manifest.scorecard.openings if is_scorecard else None,
        "evaluation": int(manifest.scorecard.evaluation) if is_scorecard else None,
        "trees": None if is_scorecard else manifest.trees.joint_trees or manifest.trees.trees,
        "attempts": manifest.limits.attempts,
    }
    given = {name: getattr(asked, name) for name in has}
    return [(name, int(value), has[name]) for name, value in given.items() if value is not None]
