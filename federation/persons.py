"""How many persons an organisation needs to say yes: two from field level L3 up (GOVERNANCE.md).

The owner's signed catalogue entry decides, by the levels of the fields that a job takes. A manifest
states the number for each party, so that everybody can count without the entry; the owner's gate
computes it again from its own entry and refuses a manifest that says less.

A person is a holder as the organisation's card names one, whatever keys it has. So an admin key
that certifies an invented second person gets round the rule, in a card that everybody sees.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from federation.catalogue import Dataset, Field, FieldType, Level
from federation.errors import RefusalCode, Refused
from federation.objects import JobParty, Role
from federation.trust import Verified

TWO_FROM = (Level.L3, Level.L4, Level.L5)


def persons_of(fields: Iterable[Field]) -> int:
    """How many persons decide on these fields. The key is the public registry's."""
    levels = {field.level for field in fields if field.type is not FieldType.KEY}
    return 2 if levels & set(TWO_FROM) else 1


def persons_for(entry: Dataset, names: Iterable[str], role: Role) -> int:
    """How many persons of the owner approve a job that takes these fields.

    One of the bank: it proposes the job, over data that it sees anyway.
    """
    if role is not Role.DEPARTMENT:
        return 1
    known, wanted = {field.name: field for field in entry.fields}, set(names)
    if not wanted <= known.keys():
        return 2  # a field that nobody described is none to be careless with
    return persons_of(known[name] for name in wanted)


def distinct(holders: Iterable[str]) -> int:
    """How many persons these names are; case, width and spaces make nobody another person."""
    return len({" ".join(unicodedata.normalize("NFKC", h).casefold().split()) for h in holders})


def require_stated(entry: Dataset, party: JobParty) -> None:
    """The manifest asks for as many persons as the entry does, or for more."""
    needed = persons_for(entry, party.fields, party.role)
    if party.persons < needed:
        text = f"fields of level L3 and above: {needed} persons approve, the manifest asks for less"
        raise Refused(text, code=RefusalCode.FIELD_LEVEL, party=entry.owner)


def needed_for_entry(entry: Dataset, before: Dataset | None) -> int:
    """How many persons sign a catalogue entry.

    What the entry before said counts as well, or one person could lower the levels first.
    """
    return max(persons_of(item.fields) for item in (entry, before) if item is not None)


def require_signed_by_enough(found: Verified[Dataset], before: Dataset | None = None) -> None:
    """Raises Refused if too few persons signed a catalogue entry."""
    needed, signed = needed_for_entry(found.object, before), distinct(found.holders)
    if signed < needed:
        name = found.object.name
        what = f"the entry of {name} has fields of level L3 and above, and one person signed it"
        todo = f"a second one signs: `lianmo catalogue publish {name} --key FILE`"
        raise Refused(what, code=RefusalCode.FIELD_LEVEL, party=found.org, todo=todo)
