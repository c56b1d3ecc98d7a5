"""Mutants: places of the kit where one operator, constant or call can be changed so that a wrong formula results."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kit import ROOT

# Everything that a result or a table depends on.
MUTATED = ["train.py", "include.py", "utils.py", "params/**/*.py", "model/**/*.py", "engine/**/*.py"]
MUTATED += ["folder/history.py", "folder/manifest.py", "folder/locate.py"]
MUTATED += ["report/*.py", "report/plots/ranking.py"]
MUTATED += ["search/strategy*", "search/selection*", "search/children*", "search/validation*"]

# Building and checking of datasets, logs, queues, the look of figures and pages: they change no result and no table.
LEFT_OUT = ["model/images/build/*.py", "model/images/check*", "engine/observers*", "engine/use/submit*"]
LEFT_OUT += ["report/figures*", "report/watch*", "report/tree*", "report/image_sheets*"]


def mutated_files(only: list[str]) -> list[str]:
    """Paths in the repository, those below one of `only` when it names any."""
    paths = {path for pattern in MUTATED for path in ROOT.glob(pattern) if path.suffix == ".py"}
    paths -= {path for pattern in LEFT_OUT for path in ROOT.glob(pattern)}
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [name for name in names if not only or name.startswith(tuple(only))]


COMPARISONS = {
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: (r"not\s+in", ["in"]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: (r"is\s+not", ["is"]),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "equal", "isclose", "allclose", "add", "gcd"}  # order means nothing
WITHOUT_EFFECT = {"non_blocking", "stacklevel", "strict"}  # arguments that change no result on a CPU
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SPEAKS = {"print", "log", "logging", "logger", "warnings", "console", "say"}  # calls whose words are for people


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text from `start` to `end` (offsets into its bytes) becomes one of `instead`."""

    file: str
    line: int
    start: int
    end: int
    instead: tuple[str, ...]

    def apply(self, source: bytes, choice: int) -> bytes:
        return source[: self.start] + self.instead[choice].encode() + source[self.end :]


class Places(ast.NodeVisitor):
    """Collects the places of a file that can be mutated; annotations, messages and docstrings cannot."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.mutants = file, source, []
        self.begins = [0]
        for line in source.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.visit(ast.parse(source))

    def offset(self, line: int, column: int) -> int:
        return self.begins[line - 1] + column

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self.offset(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.start(node) : self.end(node)].decode()

    def add(self, node: ast.expr | ast.stmt, start: int, end: int, *instead: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.mutants.append(Mutant(self.file, line, start, end, instead))

    def replace_between(self, left: ast.expr, right: ast.expr, pattern: str, instead: Iterable[str]) -> None:
        """The operator that stands between two operands, whatever parentheses and comments are around it."""
        start = self.end(left)
        match = re.search(rf"(?<![\w<>=!*/]){pattern}(?![<>=*/])", self.source[start : self.start(right)].decode())
        if match:
            self.add(right, start + match.start(), start + match.end(), *instead)

    # What is not looked into.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for child in [*node.args.defaults, *node.args.kw_defaults, *node.body]:
            if child:
                self.visit(child)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in WITHOUT_EFFECT:
            self.visit(node.value)

    # What is mutated.

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            pattern, instead = COMPARISONS[type(operator)]
            self.replace_between(left, right, pattern, instead)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        has_text = any(
            isinstance(side, ast.JoinedStr | ast.Constant) and not is_number(side) for side in (node.left, node.right)
        )
        if type(node.op) in ARITHMETIC and not has_text:
            operator, instead = ARITHMETIC[type(node.op)]
            self.replace_between(node.left, node.right, re.escape(operator), [instead])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            operator, instead = ARITHMETIC[type(node.op)]
            start = self.end(node.target)
            place = self.source.index(f"{operator}=".encode(), start)
            self.add(node, place, place + len(operator), instead)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.replace_between(left, right, words[0], [words[1]])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node, self.start(node), self.start(node.operand), "")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.add(node, self.start(node.test), self.end(node.test), f"(not ({self.text(node.test)}))")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, self.start(node), self.end(node), str(not node.value))
        elif is_number(node):
            others = ["1"] if node.value == 0 else ["0", "2"] if node.value == 1 else [f"({self.text(node)} + 1)"]
            self.add(node, self.start(node), self.end(node), *others)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            words = set(re.split(r"\W+|_", ast.unparse(node.value.func)))
            if words & SPEAKS:
                return
            self.add(node, self.start(node), self.end(node), "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in NAMES:
            end = self.end(node.func)
            self.add(node, end - len(function), end, NAMES[function])
        plain = len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args)
        if plain and function not in SYMMETRIC and self.text(node.args[0]) != self.text(node.args[1]):
            first, second = node.args[:2]
            between = self.source[self.end(first) : self.start(second)].decode()
            if "(" not in between and ")" not in between:
                self.add(node, self.start(first), self.end(second), f"{self.text(second)}{between}{self.text(first)}")
        self.generic_visit(node)


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def mutants_of(file: str) -> list[tuple[Mutant, int]]:
    """Every mutant of a file and its choices, as (mutant, choice); each one can be parsed."""
    source = (ROOT / file).read_bytes()
    found = []
    for mutant in Places(file, source).mutants:
        for choice in range(len(mutant.instead)):
            try:
                ast.parse(mutant.apply(source, choice))
            except SyntaxError:
                continue
            found.append((mutant, choice))
    return found


def draw(files: list[str], num: int, seed: int) -> list[tuple[Mutant, int]]:
    """`num` mutants: places uniformly over all files, then one of a place's choices."""
    by_place: dict[Mutant, list[int]] = defaultdict(list)
    for file in files:
        for mutant, choice in mutants_of(file):
            by_place[mutant].append(choice)
    rng = random.Random(seed)
    places = sorted(by_place, key=lambda mutant: (mutant.file, mutant.start, mutant.end))
    drawn = rng.sample(places, min(num, len(places))) if num else places
    return [(mutant, rng.choice(by_place[mutant])) for mutant in drawn]


# --- where a mutant is ------------------------------------------------------------------------------


def place_of(mutant: Mutant) -> tuple[int, int, bool]:
    """(first line, last line of the statement of a mutant or of its header; whether that runs at import)."""
    source = (ROOT / mutant.file).read_bytes()
    last = source.count(b"\n", 0, max(mutant.start, mutant.end - 1)) + 1
    places = Places(mutant.file, source)
    start, end, at_import = mutant.line, last, True
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while pending:
        node, outside = pending.pop()
        if isinstance(node, ast.expr | ast.stmt):
            if not places.start(node) <= mutant.start <= mutant.end <= places.end(node):
                continue
            at_import = outside
            if isinstance(node, ast.stmt):
                body = getattr(node, "body", None)
                start, end = node.lineno, body[0].lineno - 1 if body else node.end_lineno or node.lineno
                end = max(start, end)
        for field, value in ast.iter_fields(node):
            inner = outside and not (isinstance(node, FUNCTIONS) and field == "body")
            children = value if isinstance(value, list) else [value]
            pending += [(child, inner) for child in children if isinstance(child, ast.AST)]
    return start, end, at_import
