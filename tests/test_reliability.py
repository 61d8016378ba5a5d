"""docs/reliability.md against the tests: every test it names exists, and every code in a test's name has its row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
CODE = re.compile(r"[A-H][1-9]\d?")
CODE_IN_NAME = re.compile(r"_([a-h][1-9]\d?)(?=_)")
CODE_IN_PROSE = re.compile(r"\b[A-H][1-9]\d?\b")
CODE_IN_ID = re.compile(r"([A-H][1-9]\d?)-")  # the ids of parameters begin so: "B5-alg-none"
SOAK_MARKS = {"pytest.mark.soak", "pytest.mark.only_soak"}
NAMED_TEST = re.compile(r"`(test_\w+)`( \(soak\))?")


@dataclass(frozen=True)
class Row:
    """One row of the page. `tests` are the tests it names, each with True if the page marks it as (soak)."""

    code: str
    cells: list[str]
    tests: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of the page: the faults that tests show, and the faults that they do not show yet."""

    letter: str
    shown: list[Row]
    missing: list[Row]


@dataclass(frozen=True)
class Function:
    """One test function."""

    name: str
    file: str
    docstring: str
    is_soak: bool


@cache
def parts() -> list[Part]:
    found = []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        if heading := re.match(r"([A-H])\. ", section):
            shown, *rest = re.split(r"^### .*: not covered yet$", section, flags=re.MULTILINE)
            found.append(Part(heading[1], list(rows(shown)), list(rows("".join(rest)))))
    return found


def rows(text: str) -> Iterator[Row]:
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "code":
            yield Row(cells[0], cells, {name: bool(soak) for name, soak in NAMED_TEST.findall(cells[-1])})


def shown_rows() -> dict[str, Row]:
    return {row.code: row for part in parts() for row in part.shown}


@cache
def modules(pattern: str = "test_*.py") -> dict[str, ast.Module]:
    paths = [path for path in sorted(TESTS.rglob(pattern)) if "node_modules" not in path.parts]
    return {str(path.relative_to(TESTS)): ast.parse(path.read_text()) for path in paths}


@cache
def functions() -> list[Function]:
    return [
        Function(
            node.name,
            file,
            ast.get_docstring(node) or "",
            not SOAK_MARKS.isdisjoint(map(ast.unparse, node.decorator_list)),
        )
        for file, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def codes_of_parameters() -> set[tuple[str, str]]:
    """Return each code that begins a string in a test or in a module of samples, with that file."""
    return {
        (file, code[1])
        for file, module in (modules() | modules("*_samples.py")).items()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (code := CODE_IN_ID.match(node.value))
    }


def fail_with(problems: list[str]) -> None:
    """Fail with one line for each of `problems`, if there are any."""
    if problems:
        pytest.fail("docs/reliability.md and the tests differ:\n  " + "\n  ".join(problems), pytrace=False)


def test_every_part_of_the_page_is_read() -> None:
    assert [part.letter for part in parts()] == list("ABCDEFGH")
    assert all(part.shown for part in parts())
    assert any(part.missing for part in parts())
    assert len(functions()) > 400


def test_codes_are_unique_in_order_and_without_a_gap() -> None:
    problems = []
    for part in parts():
        for table in (part.shown, part.missing):
            codes = [row.code for row in table]
            if wrong := [code for code in codes if not CODE.fullmatch(code) or code[0] != part.letter]:
                problems.append(f"part {part.letter}: not codes of this part: {', '.join(wrong)}")
            elif codes != sorted(set(codes), key=lambda code: int(code[1:])):
                problems.append(f"part {part.letter}: codes are doubled or not in order: {', '.join(codes)}")
        numbered = {row.code for row in part.shown + part.missing}
        last = max(int(code[1:]) for code in numbered if CODE.fullmatch(code))
        for code in (f"{part.letter}{number}" for number in range(1, last + 1)):
            if code not in numbered:
                problems.append(f"row {code} is missing")

    fail_with(problems)


def test_every_row_is_complete() -> None:
    problems = []
    for part in parts():
        for table, columns in ((part.shown, 4), (part.missing, 3)):
            problems += [
                f"row {row.code}: {len(row.cells)} columns, not {columns}" for row in table if len(row.cells) != columns
            ]
            problems += [f"row {row.code}: an empty column" for row in table if "" in row.cells]
        problems += [f"row {row.code}: names no test" for row in part.shown if not row.tests]

    fail_with(problems)


def test_every_named_test_exists() -> None:
    known = {function.name for function in functions()}

    fail_with(
        [
            f"row {code}: there is no test {name}"
            for code, row in shown_rows().items()
            for name in row.tests
            if name not in known
        ]
    )


def test_soak_tests_are_marked_as_such() -> None:
    soak = {function.name: function.is_soak for function in functions()}
    problems = []
    for code, row in shown_rows().items():
        for name, is_marked in row.tests.items():
            if soak.get(name, is_marked) != is_marked:
                problems.append(f"row {code}: {'remove' if is_marked else 'add'} (soak) behind {name}")

    fail_with(problems)


def test_every_code_in_a_test_has_its_row() -> None:
    shown = shown_rows()
    problems = []
    for function in functions():
        for code in (code.upper() for code in CODE_IN_NAME.findall(function.name)):
            if code not in shown:
                problems.append(f"{function.file}: the name of {function.name} has the code {code}, which has no row")
            elif function.name not in shown[code].tests:
                problems.append(f"row {code}: does not name {function.name}")
        for code in CODE_IN_PROSE.findall(function.docstring):
            if code not in shown:
                problems.append(
                    f"{function.file}: the docstring of {function.name} has the code {code}, which has no row"
                )
    for file, code in sorted(codes_of_parameters()):
        if code not in shown:
            problems.append(f"{file}: a parameter has the code {code}, which has no row")

    fail_with(problems)


def test_promises_name_rows_that_exist() -> None:
    promises = PAGE.read_text().partition("## Promises")[2].partition("\n## ")[0]
    known = {row.code for part in parts() for row in part.shown + part.missing}
    named = CODE_IN_PROSE.findall(promises)

    assert len(named) > 20
    fail_with([f"the promises name {code}, which has no row" for code in named if code not in known])


def test_names_of_tests_are_unique() -> None:
    files: dict[str, list[str]] = {}
    for function in functions():
        files.setdefault(function.name, []).append(function.file)

    fail_with([f"{name} is defined in {' and in '.join(where)}" for name, where in files.items() if len(where) > 1])
