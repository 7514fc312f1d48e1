"""What kustomize makes of deploy/k8s, without kubectl: exactly the features used there, and a refusal of any other."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.whole_runs import REPOSITORY

Document = dict[str, Any]

K8S = REPOSITORY / "deploy" / "k8s"


def render(
    folder: Path, *, components: Sequence[Path] = (), seen: set[Path] | None = None, onto: Sequence[Document] = ()
) -> list[Document]:
    """What `kubectl kustomize FOLDER` prints, in another order, with further components added.

    Args:
        seen: collects every file that took part.
        onto: what a component changes.

    Raises:
        ValueError: a feature that is not known here, a patch without a target, a failed test of a patch.
    """
    seen = seen if seen is not None else set()
    tree = dict(_documents(folder / "kustomization.yaml", seen)[0])
    documents = copy.deepcopy(list(onto))
    hashed = not tree.pop("generatorOptions", {}).get("disableNameSuffixHash")
    for entry in tree.pop("resources", []):
        path = (folder / entry).resolve()
        documents += render(path, seen=seen) if path.is_dir() else _documents(_inside(folder, path), seen)
    for path in [*((folder / entry).resolve() for entry in tree.pop("components", [])), *components]:
        documents = render(path, seen=seen, onto=documents)
    for generator in tree.pop("configMapGenerator", []):
        if hashed:
            raise ValueError(f"{folder}: a name with a hash is not known where a RayJob uses it")
        _generate(folder, generator, documents, seen)
    for patch in tree.pop("patches", []):
        operations = yaml.safe_load(patch["patch"]) if "patch" in patch else _documents(folder / patch["path"], seen)[0]
        targets = [document for document in documents if _is_target(document, patch["target"])]
        if not targets:
            raise ValueError(f"{folder}: no object is the target {patch['target']}")
        for document in targets:
            for operation in operations:
                apply_operation(document, operation)
    namespace = tree.pop("namespace", None)
    for document in documents if namespace else []:
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = namespace
    for image in tree.pop("images", []):
        for container in containers(documents):
            name, _, tag = container["image"].rpartition(":")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
    if set(tree) - {"apiVersion", "kind"}:
        raise ValueError(f"{folder}: not known here: {sorted(set(tree) - {'apiVersion', 'kind'})}")
    return documents


def apply_operation(document: Document, operation: Document) -> None:
    """One operation of a JSON patch (RFC 6902), in place. Raises ValueError where it cannot be applied."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    name = f"{operation['op']} {operation['path']}"
    try:
        node: Any = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        key: Any = int(last) if isinstance(node, list) and last != "-" else last
        if operation["op"] == "add" and isinstance(node, list):
            node.insert(len(node) if key == "-" else key, copy.deepcopy(operation["value"]))
        elif operation["op"] == "add":
            node[key] = copy.deepcopy(operation["value"])
        elif operation["op"] == "test":
            if node[key] != operation["value"]:
                raise ValueError(f"{name}: is {node[key]!r}, not {operation['value']!r}")
        elif operation["op"] in ("replace", "remove"):
            node.pop(key)
            if operation["op"] == "replace":
                apply_operation(document, {**operation, "op": "add"})
        else:
            raise ValueError(f"{name}: not known here")
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{name}: {error!r}") from None


def _documents(path: Path, seen: set[Path]) -> list[Any]:
    seen.add(path.resolve())
    # Through JSON, so that what a YAML anchor shares becomes copies, as in kustomize.
    return [json.loads(json.dumps(each)) for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def _inside(folder: Path, path: Path) -> Path:
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: kustomize reads no file outside {folder}")
    return path


def _generate(folder: Path, generator: Document, documents: list[Document], seen: set[Path]) -> None:
    data = {}
    for entry in generator["files"]:
        path = _inside(folder, (folder / entry).resolve())
        seen.add(path)
        data[path.name] = path.read_text(encoding="utf-8")
    meta = {key: generator[key] for key in ("name", "namespace") if key in generator}
    old = [each for each in documents if each["kind"] == "ConfigMap" and each["metadata"] == meta]
    if bool(old) != (generator.get("behavior", "create") == "replace"):
        raise ValueError(f"{folder}: ConfigMap {meta}: {len(old)} before, behavior {generator.get('behavior')}")
    documents[:] = [each for each in documents if each not in old]
    documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})


def _is_target(document: Document, target: Document) -> bool:
    group = document["apiVersion"].rpartition("/")[0]
    have = {"group": group, "kind": document["kind"], "name": document["metadata"]["name"]}
    return all(re.fullmatch(target[key], have[key]) for key in target)


def containers(node: Any) -> Iterator[Document]:
    if isinstance(node, dict):
        yield from node.get("containers", [])
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from containers(child)
