"""The documents name only commands, options, targets and files that exist, and the twins agree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from clients.cli.main import group

ROOT = Path(__file__).parent.parent
TWINS = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*(ROOT / name for name in TWINS), ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")]
    if path.parent.name != "design"  # intent: names commands that are still to be built
)

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) +(.+?) *$", re.M)
PROMPT = re.compile(r"^(?:\$ +)?(?:[A-Z_]+=\S* +)*")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return FENCE.findall(text)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def command_lines(text: str, program: str) -> Iterator[list[str]]:
    """Every command line of a program, in blocks and in `code`, as its arguments."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *INLINE.findall(prose(text))]:
        bare = PROMPT.sub("", line.strip())
        if bare == program or bare.startswith(f"{program} "):
            yield shlex.split(bare, comments=True)[1:]


def options_of(command: click.Command) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def complaint(arguments: list[str]) -> str | None:
    """What is wrong with one command line; capitals such as NOUN stand for anything."""
    command: click.Command = group
    allowed = options_of(group)
    rest = list(arguments)
    while rest and isinstance(command, click.Group):
        word = rest.pop(0)
        if word.startswith("-"):
            if word not in allowed:
                return f"no option {word}"
            if word == "--home":
                rest = rest[1:]
        elif word.isupper() or word == "...":
            return None
        else:
            inner = command.get_command(click.Context(command), word)
            if inner is None:
                return f"no command {word}"
            command = inner
    allowed = options_of(command)
    unknown = [
        word for word in rest if word.startswith("--") and word.partition("=")[0] not in allowed
    ]
    return f"no option {unknown[0]}" if unknown else None


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", ""))
    return kept.replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_exists(document: str) -> None:
    found = {
        shlex.join(arguments): complaint(arguments)
        for arguments in command_lines(text_of(document), "lianmo")
    }
    assert not {line: what for line, what in found.items() if what}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    named = {line[0] for line in command_lines(text_of(document), "make") if line}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    for target in LINK.findall(prose(text_of(document))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = HEADING.findall(prose(path.read_text(encoding="utf-8")))
            assert anchor in {slug(title) for _, title in headings}, target


def test_every_page_is_in_the_index() -> None:
    for index in ("docs/README.md", "docs/adr/README.md"):
        folder = (ROOT / index).parent
        linked = {target.partition("#")[0] for target in LINK.findall(text_of(index))}
        assert {path.name for path in folder.glob("*.md")} - {"README.md"} <= linked


def test_the_chinese_readme_keeps_step_with_the_english_one() -> None:
    english, chinese = (text_of(name) for name in TWINS)
    levels = [[len(marks) for marks, _ in HEADING.findall(prose(t))] for t in (english, chinese)]
    assert levels[0] == levels[1]
    assert len(blocks(english)) == len(blocks(chinese))
    for program in ("lianmo", "make"):
        assert list(command_lines(english, program)) == list(command_lines(chinese, program))
    figures = [re.findall(r"\b0\.\d{3,4}\b", t) for t in (english, chinese)]
    assert sorted(figures[0]) == sorted(figures[1])


def test_what_the_checks_would_find() -> None:
    assert complaint(["job", "grant"]) == "no command grant"
    assert complaint(["job", "approve", "J", "--all"]) == "no option --all"
    assert complaint(["--home", "h", "job", "approve", "J", "--days=3"]) is None
    assert complaint(["NOUN", "VERB"]) is None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_documents_program_imports_is_there(document: str) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", text_of(document), re.M | re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name) or importlib.util.find_spec(
                        f"{node.module}.{name}"
                    )
