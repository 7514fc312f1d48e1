"""What is wrong with Kubernetes manifests.

What an API server or KubeRay would refuse (by the schemas of KubeRay, where they are at hand, and by the rules of its
validation), and what both would take and a run would then suffer from.
"""

import functools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
import yaml

from orchestrator.cluster.placement import Node, demands, obstacles
from orchestrator.errors import BadInput
from orchestrator.recipes import parse_recipe
from tests.kustomize import Document, containers
from tests.whole_runs import REPOSITORY

SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
NO_SCHEMAS = "the closed schemas of RayJob and RayCluster are not beside this checkout, in ../shared/kuberay"
KINDS = {"ConfigMap", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PodMonitor", "ServiceAccount"}
RAY_KINDS = {"RayJob": 47, "RayCluster": 53}
"""Kind -> longest name: KubeRay appends to it."""
MADE_BY_HAND = {"Secret/mi-epo-secrets"}
"""What deploy/k8s/README.md has the user create, optional for every pod."""
GRACE_S = 240
"""Longer than the stop of a job takes (RAY_JOB_STOP_WAIT_TIME_S), or a pod that leaves takes the checkpoint with it."""
IDENTITY = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
OWNERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
DOORS = {
    *(("ingress", None), ("egress", None)),  # Ray's nodes to each other
    *(("ingress", 8265), ("egress", 53), ("egress", 443)),  # the operator to the dashboard; names; models, wandb
    *(("ingress", 8080), ("ingress", 44217), ("ingress", 44227)),  # Prometheus to the metrics
}
"""Directions and ports (None: every one) that a run needs."""
QUEUE = "kueue.x-k8s.io/queue-name"
GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod template of a Ray cluster. Example: Pod("learner", {"groupName": "learner", "template": ...})"""

    name: str  # the group's, or head
    group: Document

    @property
    def spec(self) -> Document:
        return get(self.group, "template", "spec") or {}

    @property
    def ray(self) -> Document:
        """Its first container, in which KubeRay starts Ray."""
        return get(self.spec, "containers", 0) or {}

    @property
    def count(self) -> int:
        return int(quantity(self.group.get("replicas", 0)) * quantity(self.group.get("numOfHosts", 1)))

    def amount(self, resource: str) -> float:
        """What Ray is told the pod has: `rayStartParams`, then `resources` of the group, then of the container."""
        given = {"cpu": ("num-cpus", "CPU"), GPU: ("num-gpus", "GPU")}[resource]
        for text in (
            get(self.group, "rayStartParams", given[0]),
            get(self.group, "resources", given[1]),
            get(self.ray, "resources", "limits", resource),
            get(self.ray, "resources", "requests", resource),
        ):
            if text is not None:
                return quantity(text)
        return 0.0

    def mounts(self, kind: str) -> dict[str, str]:
        """Where the Ray container has volumes of a kind: path -> name of the claim or ConfigMap."""
        key = {"persistentVolumeClaim": "claimName", "configMap": "name"}[kind]
        named = {volume["name"]: volume[kind][key] for volume in self.spec.get("volumes", []) if kind in volume}
        mounts = self.ray.get("volumeMounts", [])
        return {mount["mountPath"]: named[mount["name"]] for mount in mounts if mount["name"] in named}


def get(node: Any, *path: str | int) -> Any:
    """The value at a path, or None where there is none."""
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number. Example: quantity("500m") == 0.5"""
    units = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    return float(match[1]) * units[match[2]] if match and match[2] in units else math.nan


def problems(documents: Sequence[Document]) -> list[str]:
    """What is wrong, one line each; none for manifests that are right."""
    found = [*_objects(documents), *_doors(documents)]
    for document in documents:
        if document["kind"] not in RAY_KINDS:
            continue
        where, spec = _name(document), document.get("spec", {})
        found += [f"{where}: {problem}" for problem in _schema(document)]
        cluster = spec
        if document["kind"] == "RayJob":
            found += [f"{where}: {problem}" for problem in _job(document, spec)]
            cluster = spec.get("rayClusterSpec") or {}
        pods = [Pod("head", cluster.get("headGroupSpec") or {})]
        pods += [Pod(group.get("groupName", "?"), group) for group in cluster.get("workerGroupSpecs") or []]
        found += [f"{where}: {problem}" for problem in _cluster(cluster, pods)]
        for pod in pods:
            found += [f"{where}: {pod.name}: {problem}" for problem in [*_group(pod), *_pod(pod), *_security(pod)]]
            found += [f"{where}: {pod.name}: {name} is not declared" for name in _missing(pod, documents)]
        found += [f"{where}: {problem}" for problem in _run(document, pods, documents)]
    return found


def _broken(rules: Sequence[tuple[Any, str]]) -> list[str]:
    """What is said of the rules that are broken, of (is it broken, what to say)."""
    return [said for is_broken, said in rules if is_broken]


def _name(document: Document) -> str:
    return f"{document['kind']}/{get(document, 'metadata', 'name')}"


def _is_dns_1035(name: Any, longest: int = 63) -> bool:
    return isinstance(name, str) and len(name) <= longest and bool(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name))


def _objects(documents: Sequence[Document]) -> Iterator[str]:
    names = [_name(document) for document in documents]
    namespaces = [document["metadata"]["name"] for document in documents if document["kind"] == "Namespace"]
    for document, name in zip(documents, names, strict=True):
        kind, meta, longest = document["kind"], document["metadata"], RAY_KINDS.get(document["kind"], 63)
        stray = kind != "Namespace" and [meta.get("namespace")] != namespaces
        shared = kind != "PersistentVolumeClaim" or get(document, "spec", "accessModes") == ["ReadWriteMany"]
        powerless = kind != "ServiceAccount" or document.get("automountServiceAccountToken") is False
        rules = [
            (kind not in KINDS | set(RAY_KINDS), f"no {kind} belongs here: no public door, no secret in a manifest"),
            (names.count(name) > 1, "is there twice"),
            (not _is_dns_1035(meta.get("name"), longest), f"must be a DNS-1035 name of at most {longest} characters"),
            (stray, f"must be in the one namespace of the set, {namespaces}, not {meta.get('namespace')}"),
            (not shared, "must be ReadWriteMany, every pod mounts it"),
            (not powerless, "automountServiceAccountToken must be false"),
        ]
        yield from (f"{name}: {problem}" for problem in _broken(rules))


def _doors(documents: Sequence[Document]) -> Iterator[str]:
    """The network policies close the namespace, and open what a run needs; monitors look at ports that are there."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    if not any(policy["podSelector"] == {} and len(policy["policyTypes"]) == 2 for policy in policies):
        yield "NetworkPolicy: none closes the namespace in both directions"
    rules = [(way, rule) for policy in policies for way in ("ingress", "egress") for rule in policy.get(way, [])]
    opened = {(way, get(port, "port")) for way, rule in rules for port in rule.get("ports", [None])}
    for way, port in sorted(DOORS - opened, key=str):
        yield f"NetworkPolicy: none opens {way} {port or 'on all ports'}"
    if any(way == "ingress" and not rule.get("from") for way, rule in rules):
        yield "NetworkPolicy: an ingress rule without `from` lets everybody in"
    named = {port.get("name") for container in containers(list(documents)) for port in container.get("ports", [])}
    for document in documents:
        for endpoint in get(document, "spec", "podMetricsEndpoints") or []:
            if endpoint["port"] not in named:
                yield f"{_name(document)}: no container has a port named {endpoint['port']}"


@functools.cache
def _validator(kind: str) -> Any:
    schema = json.loads((SCHEMAS / f"{kind}.v1.schema.closed.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)  # not checked itself: that takes seconds


def _schema(document: Document) -> Iterator[str]:
    if SCHEMAS.is_dir():
        for error in _validator(document["kind"]).iter_errors(document):
            yield f"{error.json_path}: {error.message:.200}"


def _job(document: Document, spec: Document) -> list[str]:
    mode, selector, cluster = (spec.get(key) for key in ("submissionMode", "clusterSelector", "rayClusterSpec"))
    shutdown, ttl = spec.get("shutdownAfterJobFinishes"), spec.get("ttlSecondsAfterFinished", 0)
    retries, suspend = spec.get("backoffLimit", 0), spec.get("suspend")
    retriable = not selector and mode != "InteractiveMode"
    restart = get(cluster, "headGroupSpec", "template", "spec", "restartPolicy")
    submitter = spec.get("submitterPodTemplate") or spec.get("submitterConfig")
    queued = QUEUE in (get(document, "metadata", "labels") or {})
    owner = spec.get("managedBy", "ray.io/kuberay-operator")
    on_head = not any(spec.get(f"entrypoint{resource}") for resource in ("NumCpus", "NumGpus", "Resources"))
    endless = any(spec.get(key, 0) < 1 for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"))
    rules = [
        (mode not in (None, *MODES), f"submissionMode: {mode!r} is none of {MODES}"),
        (mode in (None, "K8sJobMode"), "submissionMode: K8sJobMode starts a further pod from the image of the head"),
        (submitter and mode != "K8sJobMode", f"submitterPodTemplate, submitterConfig: {mode} starts no submitter"),
        (selector and mode == "SidecarMode", "clusterSelector: not in SidecarMode"),
        (mode == "SidecarMode" and restart not in (None, "Never"), "restartPolicy: must be Never in SidecarMode"),
        (retries < 0, "backoffLimit: must not be negative"),
        (retries and not retriable, "backoffLimit: not with clusterSelector or InteractiveMode"),
        (bool(selector) == bool(cluster), "exactly one of rayClusterSpec and clusterSelector must be there"),
        (suspend and (selector or not shutdown), "suspend: needs shutdownAfterJobFinishes, and a cluster of its own"),
        (queued and suspend is not None, "suspend: belongs to Kueue once the job has a queue"),
        (not shutdown, "shutdownAfterJobFinishes: must be true, or the cluster stays for ever"),
        (ttl < 0 or (ttl and not shutdown), "ttlSecondsAfterFinished: at least 0, and needs shutdownAfterJobFinishes"),
        (
            spec.get("deletionStrategy") and (shutdown or ttl),
            "deletionStrategy: excludes shutdownAfterJobFinishes, ttl",
        ),
        (endless, "activeDeadlineSeconds, preRunningDeadlineSeconds: or a run that hangs holds its nodes for ever"),
        (not on_head, "entrypointNumCpus, -NumGpus, -Resources: would move the driver off the head"),
        (owner not in OWNERS, f"managedBy: {owner!r} is none of {OWNERS}"),
        (get(cluster, "upgradeStrategy"), "upgradeStrategy: not for the cluster of a RayJob"),
        (get(cluster, "authOptions", "enableK8sTokenAuth"), "enableK8sTokenAuth: not for the cluster of a RayJob"),
    ]
    return [*_broken(rules), *_runtime_env(spec.get("runtimeEnvYAML", ""))]


def _runtime_env(text: str) -> Iterator[str]:
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML: {' '.join(str(error).split()):.200}"
        return
    if not isinstance(tree, dict) or set(tree) - {"env_vars"}:
        yield f"runtimeEnvYAML: must hold env_vars alone (code is in the image), not {text:.60}"
        return
    variables = tree.get("env_vars", {})
    for name, value in variables.items():
        if not isinstance(value, str):
            yield f"runtimeEnvYAML: {name} must be a string, got {value!r}"
    wait = str(variables.get("RAY_JOB_STOP_WAIT_TIME_S", "3"))
    if not wait.isdigit() or not 60 <= int(wait) < GRACE_S:
        yield f"runtimeEnvYAML: RAY_JOB_STOP_WAIT_TIME_S must be from 60 to below {GRACE_S}, got {wait}"


def _cluster(cluster: Document, pods: list[Pod]) -> Iterator[str]:
    head, version, scaling = pods[0], cluster.get("rayVersion"), cluster.get("enableInTreeAutoscaling")
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    too_old = not numbers or (int(numbers[1]), int(numbers[2])) < (2, 52)
    images = sorted({str(pod.ray.get("image")) for pod in pods})
    service = {head.group.get("serviceType"), get(head.group, "headService", "spec", "type")}
    public = head.group.get("enableIngress") or not service <= {None, "ClusterIP"}
    restarts = {pod.spec.get("restartPolicy", "Never") for pod in pods} != {"Never"}
    v2 = get(cluster, "autoscalerOptions", "version") == "v2"
    client = any(port.get("containerPort") == 10001 for port in head.ray.get("ports", []))
    yield from _broken(
        [
            (get(cluster, "authOptions", "mode") != "token", "authOptions: mode must be token"),
            (too_old, f"rayVersion: token authentication needs 2.52 or later, got {version}"),
            (len({pod.name for pod in pods}) < len(pods), "workerGroupSpecs: two groups have one name"),
            (len(images) > 1, f"all pods must have one image, got {images}"),
            (scaling, "enableInTreeAutoscaling: a run needs all of its actors or none"),
            (scaling and v2 and restarts, "restartPolicy: must be Never under autoscaler v2"),
            (head.amount("cpu") or head.amount(GPU), 'head: must offer no CPUs (num-cpus: "0") and no GPUs'),
            (public, "head: the dashboard must not be public: ClusterIP and no ingress"),
            (client, "head: port 10001, Ray's client, is not used"),
        ]
    )
    for image in images:
        yield from _image(image, version)
    for pod in pods[1:]:
        for path, claim in head.mounts("persistentVolumeClaim").items():
            if pod.mounts("persistentVolumeClaim").get(path) != claim:
                yield f"{pod.name}: must have {claim} at {path} as the head has: any actor may land there"


def _image(image: str, ray_version: Any) -> Iterator[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    engine = re.fullmatch(rf"[^@]+:{re.escape(project)}-(cpu|gpu)", image)
    if not engine:
        yield f"image {image}: the tag must be {project}-cpu or {project}-gpu"
        return
    pin = re.search(
        r"^ray==(\S+)", (REPOSITORY / "deploy/locks" / f"{engine[1]}.txt").read_text(encoding="utf-8"), re.M
    )
    if pin is None or pin[1] != ray_version:
        yield f"rayVersion {ray_version} is not the ray of deploy/locks/{engine[1]}.txt, {pin and pin[1]}"


def _group(pod: Pod) -> list[str]:
    params = pod.group.get("rayStartParams") or {}
    low, count, high = (pod.group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
    twice = pod.group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params)
    rules: list[tuple[Any, str]] = [
        (any(not isinstance(value, str) for value in params.values()), f"rayStartParams must be strings, got {params}"),
        (twice, "resources stand in rayStartParams and in the group; KubeRay takes one of them"),
        ("labels" in params, "rayStartParams.labels: KubeRay wants the group's own labels"),
    ]
    if pod.name != "head":
        ordered = quantity(low) <= quantity(count) <= quantity(high)
        rules += [
            (not _is_dns_1035(pod.name), "groupName must be a DNS-1035 name"),
            (not ordered, f"minReplicas <= replicas <= maxReplicas does not hold: {low}, {count}, {high}"),
            (low != high, f"a group of changing size ({low} to {high}): a run needs all of its actors or none"),
        ]
    return _broken(rules)


def _pod(pod: Pod) -> Iterator[str]:
    spec, ray, grace = pod.spec, pod.ray, pod.spec.get("terminationGracePeriodSeconds")
    wanted = "ray-head" if pod.name == "head" else "ray-worker"
    requests, limits = (get(ray, "resources", key) or {} for key in ("requests", "limits"))
    gpus, image = limits.get(GPU), str(ray.get("image"))
    tolerated = any(each.get("key") == GPU for each in spec.get("tolerations", []))
    yield from _broken(
        [
            (ray.get("name") != wanted, f"the first container must be Ray's, {wanted}, not {ray.get('name')}"),
            (grace != GRACE_S, f"terminationGracePeriodSeconds must be {GRACE_S}, got {grace}"),
            (not limits.get("memory"), "memory: must have a limit, which Ray reads"),
            (gpus and not image.endswith("-gpu"), f"asks for GPUs with the image {image}"),
            (gpus and not tolerated, f"no toleration of {GPU}: GPU nodes are commonly tainted with it"),
            *(
                (requests.get(key) != limits.get(key), f"{key}: must be asked for to the limit")
                for key in ("memory", GPU)
            ),
            *((math.isnan(quantity(text)), f"{text!r} is no quantity") for text in (requests | limits).values()),
        ]
    )
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec.get("containers", []):
        yield from (f"{key}: KubeRay adds its own" for key in container if key.endswith("Probe"))
        for variable in container.get("env", []):
            name = variable["name"]
            secret = "value" in variable and re.search("KEY|TOKEN|SECRET|PASSWORD", name)
            yield from _broken(
                [
                    (secret, f"{name}: a secret must come from a Secret"),
                    (name in ("RAY_AUTH_MODE", "RAY_enable_autoscaler_v2"), f"{name}: KubeRay sets it"),
                ]
            )
        for mount in container.get("volumeMounts", []):
            yield from _broken([(mount["name"] not in volumes, f"mounts {mount['name']}, no volume of the pod")])


def _security(pod: Pod) -> Iterator[str]:
    spec, context = pod.spec, pod.spec.get("securityContext") or {}
    identity = {key: context.get(key) for key in IDENTITY}
    yield from _broken(
        [
            (identity != IDENTITY, f"securityContext must be {IDENTITY}, got {identity}"),
            (get(context, "seccompProfile", "type") != "RuntimeDefault", "seccompProfile must be RuntimeDefault"),
            (spec.get("automountServiceAccountToken") is not False, "automountServiceAccountToken must be false"),
            *((spec.get(key), f"{key} must not be set") for key in ("hostNetwork", "hostPID", "hostIPC")),
            *(("hostPath" in volume, "hostPath: the node's files are not ours") for volume in spec.get("volumes", [])),
        ]
    )
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        own, name = container.get("securityContext") or {}, container.get("name")
        other = any(key in own and own[key] != value for key, value in IDENTITY.items())
        host = any("hostPort" in port for port in container.get("ports", []))
        yield from _broken(
            [
                (own.get("allowPrivilegeEscalation") is not False, f"{name}: allowPrivilegeEscalation must be false"),
                (own.get("capabilities") != {"drop": ["ALL"]}, f"{name}: all capabilities must be dropped, none added"),
                (own.get("privileged") or other, f"{name}: must not be privileged or another user than the pod's"),
                (host, f"{name}: hostPort must not be set"),
            ]
        )


def _missing(pod: Pod, documents: Sequence[Document]) -> list[str]:
    """Names that the pod refers to and that neither the set nor `MADE_BY_HAND` has."""
    used = [f"ServiceAccount/{pod.spec.get('serviceAccountName')}"]
    used += [f"Secret/{secret.get('name')}" for secret in pod.spec.get("imagePullSecrets", [])]
    for volume in pod.spec.get("volumes", []):
        for kind, key, name in (
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ("ConfigMap", "configMap", "name"),
            ("Secret", "secret", "secretName"),
        ):
            used += [f"{kind}/{volume[key].get(name)}"] if key in volume else []
    for container in [*pod.spec.get("containers", []), *pod.spec.get("initContainers", [])]:
        sources = [*container.get("envFrom", []), *(each.get("valueFrom", {}) for each in container.get("env", []))]
        for source in sources:
            for kind, key in (("Secret", "secret"), ("ConfigMap", "configMap")):
                used += [f"{kind}/{source[k].get('name')}" for k in (f"{key}Ref", f"{key}KeyRef") if k in source]
    return sorted(set(used) - MADE_BY_HAND - {_name(document) for document in documents})


def _run(document: Document, pods: list[Pod], documents: Sequence[Document]) -> Iterator[str]:
    """The command finds its recipe and a lasting run directory; the recipe's actors find room."""
    head = pods[0]
    texts = {
        f"{path}/{key}": text
        for path, name in head.mounts("configMap").items()
        for config in documents
        if _name(config) == f"ConfigMap/{name}"
        for key, text in config["data"].items()
    }
    if document["kind"] == "RayJob":
        match (get(document, "spec", "entrypoint") or "").split():
            case ["python", "-m", "orchestrator", "train", recipe, "--run-dir", folder]:
                if recipe not in texts:
                    yield f"entrypoint: {recipe} is in no ConfigMap that the head mounts, which has {sorted(texts)}"
                if not any(folder.startswith(f"{path}/") for path in head.mounts("persistentVolumeClaim")):
                    yield f"entrypoint: --run-dir {folder} is on no claim of the head, so no retry could go on from it"
            case _:
                yield "entrypoint: must be python -m orchestrator train RECIPE --run-dir DIR, all else in the recipe"
    nodes = [
        Node(name=pod.name, cpus=pod.amount("cpu"), gpus=pod.amount(GPU), labels=pod.group.get("labels") or {})
        for pod in pods[1:]
        if math.isfinite(pod.amount("cpu") + pod.amount(GPU))
        for _ in range(pod.count)
    ]
    for path, text in texts.items():
        try:
            recipe_asked = parse_recipe(yaml.safe_load(text), where=path)
        except BadInput as error:
            yield str(error)
            continue
        yield from (f"workerGroupSpecs: {obstacle}" for obstacle in obstacles(demands(recipe_asked), nodes))
