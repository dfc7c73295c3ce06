"""What differs between two manifests, in words: what an approver compares before signing.

Every field of a manifest is compared, so nothing can change without a line; those that differ in
every job (name, dates of making, the manifest before) say nothing and are left out.
"""

from __future__ import annotations

import re
from typing import Any

from federation.objects import JobManifest, utc_time

_PASSING = frozenset({"created", "job", "not_before", "expires", "previous"})
_LABELS = {
    "purpose": "purpose",
    "task": "task",
    "alignment": "how row keys are agreed on",
    "package_sha256": "release of the program",
    "cover.kind": "cover",
    "cover.decoys": "decoys for each customer",
    "cover.rows": "rows of the cover",
    "registry.digest": "registry list",
    "registry.rows": "enterprises on the registry",
    "registry.region": "region of the registry",
    "registry.as_of": "day of the registry",
    "limits.customers_max": "customers at most",
    "limits.customers_min": "customers at least",
    "limits.row_keys": "row keys that the bank can get",
    "limits.tokens": "questions to each department",
    "limits.tokens_between": "questions between two departments",
    "limits.wall_time_s": "time that the run may take, in seconds",
    "limits.attempts": "runs at most",
}
_OF_PARTY = {
    "role": "role",
    "dataset": "dataset",
    "catalogue_digest": "description of its dataset",
    "persons": "persons who approve",
}


def between(before: JobManifest, after: JobManifest) -> tuple[str, ...]:
    """One line for each difference, parties and fields first."""
    old, new = leaves(before), leaves(after)
    found = []
    for path in sorted(old.keys() | new.keys(), key=_order):
        if path in _PASSING or old.get(path) == new.get(path):
            continue
        if line := _line(path, old, new):
            found.append(line)
    days = [utc_time(m.expires) - utc_time(m.not_before) for m in (before, after)]
    if days[0] != days[1]:
        found.append(f"life of the job: {_days(days[0])} -> {_days(days[1])}")
    return tuple(found)


def _line(path: str, old: dict[str, str], new: dict[str, str]) -> str | None:
    was, now = old.get(path, "none"), new.get(path, "none")
    if match := re.fullmatch(r"parties\[(.+?)\]\.(.+)", path):
        return _line_of_party(match[1], match[2], old, new)
    if match := re.fullmatch(r"disclosures\[(.+)\]\.(.+)", path):
        return _line_of_disclosure(match[1], match[2], old, new)
    if match := re.fullmatch(r"outputs\[(.+)\]", path):
        return f"{match[1]} receives the report{'' if path in new else ' no more'}"
    label = _LABELS.get(path) or path.removeprefix("parameters.").replace("_", " ")
    return f"{label}: {_short(was)} -> {_short(now)}"


def _line_of_party(org: str, path: str, old: dict[str, str], new: dict[str, str]) -> str | None:
    there = f"parties[{org}].org"
    if there not in old or there not in new:
        if path != "org":
            return None  # said once, of the party as a whole
        role = (new if there in new else old)[f"parties[{org}].role"]
        if there in new:
            return f"{org} takes part, as {role}"
        return f"{org} takes part no more (it was {role})"
    full = f"parties[{org}].{path}"
    if match := re.fullmatch(r"fields\[(.+)\]", path):
        return f"{org}: {match[1]} is {'read as well' if full in new else 'no longer read'}"
    was, now = _short(old.get(full, "none")), _short(new.get(full, "none"))
    return f"{org}: {_OF_PARTY.get(path, path)}: {was} -> {now}"


def _line_of_disclosure(
    about: str, path: str, old: dict[str, str], new: dict[str, str]
) -> str | None:
    there = f"disclosures[{about}].count"
    if there not in old or there not in new:
        if path != "count":
            return None
        side = new if there in new else old
        amount = _amount(f"disclosures[{about}]", side)
        return f"{about}: {f'also, {amount}' if there in new else f'no more (was {amount})'}"
    full = f"disclosures[{about}].{path}"
    name = {"count": "values", "bits": "bits each", "per_enterprise": "of one enterprise"}
    return f"{about}: {name.get(path, path)}: {_short(old[full])} -> {_short(new[full])}"


def _amount(path: str, side: dict[str, str]) -> str:
    return f"{_short(side[f'{path}.count'])} values of {side[f'{path}.bits']} bits"


def leaves(manifest: JobManifest) -> dict[str, str]:
    """Every leaf of the manifest with its path; members of lists go by name, not by place."""
    return dict(_flat(manifest.model_dump(mode="json")))


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            leaf
            for key in sorted(value)
            for leaf in _flat(value[key], f"{path}.{key}" if path else key)
        ]
    if isinstance(value, list):
        return [
            leaf
            for place, item in enumerate(value)
            for leaf in (
                [(f"{path}[{item}]", "yes")]
                if isinstance(item, str)
                else _flat(item, f"{path}[{_name(item, place)}]")
            )
        ]
    return [(path, str(value))]


def _name(item: Any, place: int) -> str:
    """What a member of a list is called: its organisation, or who tells whom what."""
    if isinstance(item, dict):
        if "org" in item:
            return str(item["org"])
        if {"source", "to", "what"} <= item.keys():
            return f"{item['source']} to {item['to']}, {str(item['what']).replace('_', ' ')}"
    return str(place)


_PLACES = ("parties", "purpose", "task", "parameters", "limits", "disclosures")


def _order(path: str) -> tuple[int, str]:
    head = re.split(r"[.\[]", path, maxsplit=1)[0]
    return (_PLACES.index(head) if head in _PLACES else len(_PLACES), path)


def _short(text: str) -> str:
    """Digests by their beginning, numbers with separators, yes and no."""
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text[:12]
    if re.fullmatch(r"[0-9]{4,15}", text):
        return f"{int(text):,}"
    return {"True": "yes", "False": "no", "None": "none"}.get(text, text)


def _days(life: Any) -> str:
    days, seconds = divmod(int(life.total_seconds()), 86_400)
    return f"{days} days" + (f" {seconds // 3600} hours" if seconds >= 3600 else "")
