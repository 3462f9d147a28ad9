"""Every resource, data source, block and attribute of the modules against the AWS provider's schema.

A provider cannot be had everywhere; CDK for Terraform's bindings, a package on PyPI, are generated from its schema.
They are read, not imported (they would want Node). So: names, what is required, and which are blocks. Not values, and
no plan.

    python deploy/terraform/check.py BINDINGS      where BINDINGS is the unpacked package cdktf_cdktf_provider_aws
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2

MODULES = Path(__file__).parent / "modules"
META = {"count", "for_each", "depends_on", "lifecycle", "provider", "dynamic", "provisioner", "connection"}
OF_THE_BINDINGS = {"scope", "id_", "self", "connection", "count", "depends_on", "for_each", "lifecycle", "provider",
                   "provisioners"}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Arguments of a resource or block: name -> (required, name of the block's class or None)."""

    arguments: Mapping[str, tuple[bool, str | None]]


@cache
def classes(package: Path) -> Mapping[str, ast.ClassDef]:
    tree = ast.parse((package / "__init__.py").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def shape(package: Path, name: str) -> Shape:
    """What the constructor of a class takes."""
    known = classes(package)
    body = [node for node in known[name].body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    found = {}
    for argument, default in zip(body[0].args.kwonlyargs, body[0].args.kw_defaults, strict=True):
        if argument.arg in OF_THE_BINDINGS:
            continue
        said = ast.unparse(argument.annotation) if argument.annotation else ""
        block = next(
            (each for each in re.findall(r"'(\w+)'|\"(\w+)\"", said) for each in each if each in known), None
        )
        found[argument.arg.rstrip("_")] = (default is None, block)
    return Shape(found)


def package_of(bindings: Path, kind: str, data: bool) -> tuple[Path, str]:
    """Package and class of `aws_ecr_repository`: each says for which Terraform name it was made."""
    folder = ("data_" if data else "") + kind
    package = bindings / folder
    if not package.exists():
        package = bindings / (("data_" if data else "") + kind.removeprefix("aws_"))
    if not package.exists():
        raise LookupError(f"the provider knows no {kind}")
    for name, node in classes(package).items():
        config = f"{name}Config"
        if config in classes(package) and any("TerraformResource" in ast.unparse(base) or "TerraformDataSource" in
                                              ast.unparse(base) for base in node.bases):  # fmt: skip
            return package, name
    raise LookupError(f"no class for {kind} in {package.name}")


def unquoted(name: str) -> str:
    return name.strip('"')


def wrong(package: Path, name: str, body: Mapping[str, Any], where: str) -> Iterator[str]:
    """What of a body the provider does not take, or misses."""
    known = shape(package, name).arguments
    given = {unquoted(each): value for each, value in body.items() if not each.startswith("__")}
    for each in given.pop("dynamic", []):
        for label, inner in each.items():
            content = inner["content"]
            more = content if isinstance(content, list) else [content]
            given[unquoted(label)] = [*given.get(unquoted(label), []), *more]
    for argument, value in given.items():
        if argument in META:
            continue
        if argument not in known:
            yield f"{where}: there is no {argument}"
            continue
        is_block = isinstance(value, list) and any(
            isinstance(each, dict) and "__is_block__" in each for each in value
        )
        block = known[argument][1]
        if is_block and block is None:
            yield f"{where}: {argument} is an attribute, not a block"
        elif block is not None and is_block:
            for each in value:
                yield from wrong(package, block, each, f"{where}.{argument}")
    for argument, (required, _) in known.items():
        if required and argument not in given:
            yield f"{where}: {argument} is missing"


def main(bindings: Path) -> int:
    """Print what is wrong; 0 where nothing is."""
    seen, found = 0, []
    for path in sorted(MODULES.rglob("*.tf")):
        with path.open() as file:
            parsed = hcl2.load(file)
        for data, entries in ((False, parsed.get("resource", [])), (True, parsed.get("data", []))):
            for entry in entries:
                for kind, named in entry.items():
                    for label, body in named.items():
                        seen += 1
                        where = f"{path.relative_to(MODULES)}: {unquoted(kind)}.{unquoted(label)}"
                        try:
                            package, name = package_of(bindings, unquoted(kind), data)
                        except LookupError as error:
                            found.append(f"{where}: {error}")
                            continue
                        found += wrong(package, name, body, where)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{seen} resources and data sources against the provider's schema: {len(found)} wrong")
    return 1 if found or not seen else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
