"""What `make test` leaves to `make test ALL=1`: a proof once more, and no module without a reason."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
ONLY_THOROUGH = {
    "integration/test_detect.py": "kills and replicas; test_new_type.py runs detect to its end",
    "integration/test_history.py": "a lake of a month; test_silver.py sees what a cycle reads",
    "integration/test_oracle.py": "the auditor of `make faults`; test_reconcile.py has the books",
    "ui/test_openid.py": "logins by a provider; test_access.py has who may come in",
    "ui/test_states.py": "pages without data or a login; test_pages.py opens them, test_data.py has no table",
}
"""Module -> what it proves again, and where `make test` proves it."""


def only_thorough(path: Path) -> bool:
    marks = [
        {ast.unparse(mark) for mark in node.decorator_list}
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return all("pytest.mark.thorough" in mark for mark in marks)


def test_no_other_module_is_left_out_as_a_whole() -> None:
    left_out = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py") if only_thorough(path)}
    assert left_out == ONLY_THOROUGH.keys()


def test_what_takes_their_place_is_there() -> None:
    names = {path.name for path in TESTS.rglob("test_*.py")}
    told = {word.strip(",;") for reason in ONLY_THOROUGH.values() for word in reason.split() if ".py" in word}
    assert told <= names
