"""A job's review on a terminal: who, what, how far, who learns what, and what is new.

Written for 80 columns, wrapped to whatever the terminal has up to 120; Chinese titles count double.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clients.cli.common import display_width, table

if TYPE_CHECKING:
    from federation.objects import DeclaredDisclosure
    from federation.review import Review

WIDTH_MAX = 120


def review_text(found: Review, width: int | None = None) -> str:
    """The review as lines of at most `width` columns, as far as a name is not longer."""
    width = min(width or shutil.get_terminal_size().columns, WIDTH_MAX)
    parts = [
        _head(found, width),
        _section("who takes part, and who approves", _parties(found)),
        _section("what is read", _fields(found, width)),
        _section("parameters", _wrapped("  ", ", ".join(_parameters(found)), width)),
        _section("who learns what, at most, in one run", _disclosures(found.disclosures, width)),
        _section(
            "exposure (questions a customer; warned above 0.02, refused above 0.05)",
            _indented(
                table(
                    ["department", "one run", "with earlier jobs"],
                    [[org, f"{now:.4f}", f"{all_:.4f}"] for org, now, all_ in found.exposure],
                )
            ),
        ),
    ]
    if found.warnings:
        lines = (line for text in found.warnings for line in _wrapped("  ! ", text, width))
        parts.append(_section("warnings", lines))
    if found.refused:
        parts.append(_section("in the place of a refused job", _refused(found, width)))
    parts.append(_section(_compared(found), _changes(found.changes, width)))
    return "\n\n".join(parts)


def _head(found: Review, width: int) -> str:
    again = "; each may ask and disclose all of this again" if found.runs > 1 else ""
    facts = {
        "manifest": found.manifest,
        "valid": f"{found.not_before} to {found.expires}",
        "registry": found.registry,
        "rows": found.cover,
        "row keys": found.row_keys,
        "runs": f"{found.runs} at most{again}",
    }
    title = f"{found.job}, proposed by {found.bank} for {found.purpose}"
    lines = (line for k, v in facts.items() for line in _wrapped(f"  {k:10} ", v, width))
    return "\n".join([title, *lines])


def _parties(found: Review) -> Iterator[str]:
    persons = {org: (needed, said) for org, needed, said in found.approvals}
    width = max(len(org) for org, _, _ in found.parties)
    for org, role, _ in found.parties:
        if org not in persons:
            words = "proposed it"
        else:
            needed, said = persons[org]
            words = "1 person approves" if needed == 1 else f"{needed} persons approve"
            if said:
                words += f"; so far {', '.join(said)}"
        yield f"  {org:{width}}  {role:10}  {words}"


def _fields(found: Review, width: int) -> Iterator[str]:
    titles = {(org, dataset): title for org, dataset, title in found.titles}
    for org, _, dataset in found.parties:
        rows = [f for f in found.fields if f.org == org and f.dataset == dataset]
        if not rows:
            continue
        title = titles.get((org, dataset), "not in the published catalogue")
        yield from _wrapped("  ", f"{org} / {dataset}: {title}", width)
        cells = [
            [f.name, f.type, f.level, "yes" if f.trade_secret else "no", f.title] for f in rows
        ]
        names = ["field", "type", "level", "secret", "meaning"]
        if not any(f.title for f in rows):
            names, cells = names[:-1], [line[:-1] for line in cells]
        yield from _indented(table(names, cells), "    ")


_LISTED = ("parameters.", "limits.", "query.")


def _parameters(found: Review) -> Iterator[str]:
    for path, value in found.parameters:
        for prefix in _LISTED:
            if path.startswith(prefix):
                yield f"{path.removeprefix('parameters.')} {value}"


def _disclosures(items: tuple[DeclaredDisclosure, ...], width: int) -> Iterator[str]:
    pairs: dict[tuple[str, str], list[DeclaredDisclosure]] = {}
    for item in items:
        pairs.setdefault((item.to, item.source), []).append(item)
    for (to, source), of_pair in pairs.items():
        yield f"  {to} learns from {source}"
        for item in of_pair:
            what = f"    {item.what.value.replace('_', ' '):22} "
            yield from _wrapped(what, _amount(item), width)


def _amount(item: DeclaredDisclosure) -> str:
    if item.bits == 0:
        return f"{item.count:,}; the number alone, nothing on anybody"
    row = ", of single enterprises" if item.per_enterprise else ""
    return f"{item.count:,} values of {item.bits} bits{row}"


def _refused(found: Review, width: int) -> Iterator[str]:
    for item in found.refused:
        reason = f": {item.words}" if item.words else ""
        yield from _wrapped("  ", f"{item.org} refused that one, {item.code}{reason}", width)
        if item.asked:
            yield from _wrapped("    it asked for a job ", "; ".join(item.asked), width)
            met = f"no: {'; '.join(item.unmet)}" if item.unmet else "yes"
            yield from _wrapped("    this manifest does so: ", met, width)
    yield "  changed since the refused one"
    yield from ("  " + line for line in _changes(found.changes_since_refused, width - 2))


def _compared(found: Review) -> str:
    if not found.has_previous:
        return "nothing approved of this bank before: there is no earlier job to compare"
    return "changed since the last job of this bank that you approved"


def _changes(changes: tuple[str, ...], width: int) -> Iterator[str]:
    for text in changes:
        yield from _wrapped("  ", text, width)


def _section(title: str, lines: Iterator[str]) -> str:
    content = list(lines)
    if not content and title.startswith("changed"):
        content = ["  nothing but its name and dates"]
    return "\n".join([title, *content])


def _indented(text: str, by: str = "  ") -> Iterator[str]:
    for line in text.splitlines():
        yield by + line


def _wrapped(head: str, text: str, width: int) -> Iterator[str]:
    """The text behind a head, its further lines below its first.

    Broken at spaces, and between any two signs where a word alone is too wide: Chinese has none.
    """
    margin, line = " " * display_width(head), head
    room = max(width - len(margin), 8)
    for word in text.split(" "):
        glue = "" if line in (head, margin) else " "
        for piece in _pieces(word, room):
            if display_width(line + glue + piece) > width and line not in (head, margin):
                yield line
                line, glue = margin, ""
            line, glue = line + glue + piece, ""
    yield line


def _pieces(word: str, room: int) -> list[str]:
    """The word, or its signs where it needs a line of its own and more."""
    return [word] if display_width(word) <= room else list(word)
