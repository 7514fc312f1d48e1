"""The Kubernetes manifests: what is in the repository has no problem, and every kind of problem would be seen."""

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.recipes import load_recipe
from tests.kustomize import K8S, Document, apply_operation, render
from tests.manifests import NO_SCHEMAS, QUEUE, SCHEMAS, get, problems
from tests.whole_runs import REPOSITORY

LEAVES = ("base", "overlays/dev", "overlays/gpu")
COMPONENTS = ((), ("kueue",), ("monitoring",), ("kueue", "monitoring"))
COMBINATIONS = [(leaf, components) for leaf in LEAVES for components in COMPONENTS]

CLUSTER = "/spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"
POD = f"{GROUP}/template/spec"
RAY = f"{POD}/containers/0"

Damage = Callable[[list[Document]], None]


@functools.cache
def rendered(leaf: str, components: tuple[str, ...]) -> list[Document]:
    return render(K8S / leaf, components=[K8S / "components" / name for name in components])


def combination(leaf: str, components: tuple[str, ...] = ()) -> list[Document]:
    return copy.deepcopy(rendered(leaf, components))


def put(path: str, value: Any, kind: str = "RayJob") -> Damage:
    """Damage that sets one value of the first object of a kind."""

    def damage(documents: list[Document]) -> None:
        document = next(document for document in documents if document["kind"] == kind)
        apply_operation(document, {"op": "add", "path": path, "value": value})

    return damage


def drop(path: str, kind: str = "RayJob") -> Damage:
    def damage(documents: list[Document]) -> None:
        document = next(document for document in documents if document["kind"] == kind)
        apply_operation(document, {"op": "remove", "path": path})

    return damage


def lose(kind: str, name: str) -> Damage:
    def damage(documents: list[Document]) -> None:
        documents[:] = [each for each in documents if (each["kind"], each["metadata"]["name"]) != (kind, name)]

    return damage


def bring(kind: str, name: str, **content: Any) -> Damage:
    document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "mi-epo"}, **content}
    return lambda documents: documents.append(document)


def all_of(*damages: Damage) -> Damage:
    def damage(documents: list[Document]) -> None:
        for each in damages:
            each(documents)

    return damage


@pytest.mark.parametrize(("leaf", "components"), COMBINATIONS)
def test_every_combination_in_the_repository_has_no_problem(leaf: str, components: tuple[str, ...]) -> None:
    assert problems(combination(leaf, components)) == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("leaf", "components"), COMBINATIONS)
def test_kubectl_renders_the_same(leaf: str, components: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / leaf
    up = "/".join(".." for _ in Path(leaf).parts)
    with (folder / "kustomization.yaml").open("a") as file:
        file.write(yaml.safe_dump({"components": [f"{up}/components/{name}" for name in components]}))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    def by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
        return {(document["kind"], document["metadata"]["name"]): document for document in documents}

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(combination(leaf, components))


BY_SCHEMA: dict[str, tuple[Damage, str]] = {
    "a misspelt field deep inside": (put(f"{RAY}/imagePullPolic", "Always"), "imagePullPolic"),
    "a misspelt field of the job": (put("/spec/backofLimit", 2), "backofLimit"),
    "a field beside the specification": (put("/specs", {}), "'specs' was unexpected"),
    "a variable that is no string": (put(f"{RAY}/env/0/value", True), "True is not of type 'string'"),
    "a container without a name": (drop(f"{POD}/containers/0/name"), "'name' is a required property"),
    "a version that YAML reads as a number": (put(f"{CLUSTER}/rayVersion", 2.6), "2.6 is not of type 'string'"),
    "a number as text": (put(f"{GROUP}/replicas", "1"), "'1' is not of type 'integer'"),
}

MISTAKES: dict[str, tuple[Damage, str]] = {
    "a submission mode that does not exist": (put("/spec/submissionMode", "HttpMode"), "submissionMode: 'HttpMode'"),
    "the default submission mode": (drop("/spec/submissionMode"), "a further pod"),
    "a submitter where none starts": (put("/spec/submitterConfig", {"backoffLimit": 1}), "starts no submitter"),
    "a cluster that stays": (put("/spec/shutdownAfterJobFinishes", False), "ttlSecondsAfterFinished"),
    "two ways to clean up": (
        put(
            "/spec/deletionStrategy",
            {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]},
        ),
        "deletionStrategy: excludes",
    ),
    "suspended, and never shut down": (
        all_of(put("/spec/suspend", True), put("/spec/shutdownAfterJobFinishes", False)),
        "suspend: needs shutdownAfterJobFinishes",
    ),
    "suspend in a manifest that Kueue owns": (
        all_of(put("/spec/suspend", True), put("/metadata/labels", {QUEUE: "mi-epo"})),
        "suspend: belongs to Kueue",
    ),
    "a cluster of its own and another one": (put("/spec/clusterSelector", {"ray.io/cluster": "x"}), "exactly one of"),
    "retries in interactive mode": (put("/spec/submissionMode", "InteractiveMode"), "backoffLimit: not with"),
    "no deadline": (drop("/spec/activeDeadlineSeconds"), "activeDeadlineSeconds"),
    "a driver away from the head": (put("/spec/entrypointNumCpus", 1), "off the head"),
    "an owner that does not exist": (put("/spec/managedBy", "me"), "managedBy: 'me'"),
    "an upgrade strategy under a job": (put(f"{CLUSTER}/upgradeStrategy", {"type": "Recreate"}), "upgradeStrategy"),
    "a runtime environment that is no YAML": (put("/spec/runtimeEnvYAML", "env_vars: {"), "runtimeEnvYAML"),
    "a misspelt key of the runtime environment": (put("/spec/runtimeEnvYAML", "env_var: {}"), "env_vars alone"),
    "packages installed when the job starts": (put("/spec/runtimeEnvYAML", "pip: [x]"), "env_vars alone"),
    "a variable of the job that is a number": (
        put("/spec/runtimeEnvYAML", "env_vars: {RAY_JOB_STOP_WAIT_TIME_S: 180}"),
        "must be a string, got 180",
    ),
    "three seconds to save": (put("/spec/runtimeEnvYAML", "env_vars: {}"), "must be from 60 to below 240, got 3"),
    "a stop that outlasts the pod": (
        put("/spec/runtimeEnvYAML", 'env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "600"}'),
        "below 240, got 600",
    ),
    "the default grace period": (
        drop(f"{POD}/terminationGracePeriodSeconds"),
        "GracePeriodSeconds must be 240, got None",
    ),
    "a run directory that goes with the pod": (
        put("/spec/entrypoint", "python -m orchestrator train /etc/mi-epo/recipe.yaml --run-dir /tmp/run"),
        "/tmp/run is on no claim",
    ),
    "a run directory of its own for every attempt": (
        put("/spec/entrypoint", "python -m orchestrator train /etc/mi-epo/recipe.yaml"),
        "entrypoint: must be",
    ),
    "a recipe that is not mounted": (
        put("/spec/entrypoint", "python -m orchestrator train /etc/mi-epo/other.yaml --run-dir /runs/x"),
        "/etc/mi-epo/other.yaml is in no ConfigMap",
    ),
    "a recipe with a misspelt key": (
        put("/data/recipe.yaml", "name: x\nsteps: 3\n", "ConfigMap"),
        "steps: unknown key",
    ),
    "no authentication": (drop(f"{CLUSTER}/authOptions"), "authOptions: mode must be token"),
    "a Ray too old for tokens": (put(f"{CLUSTER}/rayVersion", "2.51.0"), "needs 2.52"),
    "another Ray than the image has": (
        put(f"{CLUSTER}/rayVersion", "2.59.0"),
        "is not the ray of deploy/locks/cpu.txt",
    ),
    "an image of another release": (put(f"{RAY}/image", "mi-epo:0.0.9-cpu"), "the tag must be"),
    "two images in one cluster": (put(f"{RAY}/image", "mi-epo:0.1.0-gpu"), "all pods must have one image"),
    "actors on the head": (drop(f"{HEAD}/rayStartParams/num-cpus"), "head: must offer no CPUs"),
    "a number among the start parameters": (
        put(f"{HEAD}/rayStartParams/num-cpus", 0),
        "rayStartParams must be strings",
    ),
    "resources in two places": (put(f"{HEAD}/resources", {"CPU": "0"}), "resources stand in rayStartParams and"),
    "labels as a start parameter": (put(f"{GROUP}/rayStartParams", {"labels": "a=b"}), "rayStartParams.labels"),
    "a public dashboard": (put(f"{HEAD}/serviceType", "LoadBalancer"), "must not be public"),
    "an ingress": (put(f"{HEAD}/enableIngress", True), "must not be public"),
    "a further door": (bring("Service", "dashboard", spec={"type": "NodePort"}), "no Service belongs here"),
    "a secret in a manifest": (
        bring("Secret", "mi-epo-secrets", stringData={"HF_TOKEN": "x"}),
        "no Secret belongs here",
    ),
    "a token as a variable": (put(f"{RAY}/env/-", {"name": "HF_TOKEN", "value": "x"}), "HF_TOKEN: a secret must come"),
    "fewer replicas than the least": (put(f"{GROUP}/minReplicas", 2), "minReplicas <= replicas <= maxReplicas"),
    "a group that may grow": (put(f"{GROUP}/maxReplicas", 4), "a group of changing size"),
    "an autoscaler": (put(f"{CLUSTER}/enableInTreeAutoscaling", True), "enableInTreeAutoscaling"),
    "autoscaler v2 with pods that restart": (
        all_of(
            all_of(
                put(f"{CLUSTER}/enableInTreeAutoscaling", True), put(f"{CLUSTER}/autoscalerOptions", {"version": "v2"})
            ),
            put(f"{POD}/restartPolicy", "Always"),
        ),
        "restartPolicy: must be Never",
    ),
    "two groups of one name": (put(f"{GROUP}/groupName", "rollout"), "two groups have one name"),
    "a group name with capitals": (put(f"{GROUP}/groupName", "Learner"), "groupName must be"),
    "a name that is too long": (put("/metadata/name", "m" * 48), "at most 47 characters"),
    "a name with a dot": (put("/metadata/name", "mi.epo"), "DNS-1035"),
    "another namespace": (put("/metadata/namespace", "default"), "must be in the one namespace"),
    "a sidecar before Ray": (
        put(f"{POD}/containers/0", {"name": "logs", "image": "mi-epo:0.1.0-cpu"}),
        "must be Ray's",
    ),
    "pods in pieces that are too small": (
        all_of(
            *(put(f"{RAY.replace('/0/', f'/{group}/', 1)}/resources/limits/cpu", "500m") for group in range(2)),
            put(f"{RAY.replace('/0/', '/2/', 1)}/resources/limits/cpu", "900m"),
        ),
        "no node has 1 CPUs for one actor",
    ),
    "a cluster of nothing": (put(f"{CLUSTER}/workerGroupSpecs", []), "rollout: no node has 1 CPUs for one actor"),
    "a recipe of another size": (
        put("/data/recipe.yaml", (K8S / "overlays/gpu/recipe.yaml").read_text(), "ConfigMap"),
        "rollout: no node carries the labels {'pool': 'rollout'}",
    ),
    "GPUs under the CPU image": (
        put(f"{RAY}/resources", {each: {"memory": "8Gi", "nvidia.com/gpu": "1"} for each in ("requests", "limits")}),
        "asks for GPUs with the image mi-epo:0.1.0-cpu",
    ),
    "less memory asked than used": (put(f"{RAY}/resources/requests/memory", "1Gi"), "must be asked for to the limit"),
    "an amount that is none": (put(f"{RAY}/resources/limits/cpu", "two"), "'two' is no quantity"),
    "a claim that does not exist": (
        put(f"{POD}/volumes/1/persistentVolumeClaim/claimName", "runs"),
        "PersistentVolumeClaim/runs is not declared",
    ),
    "a recipe that is gone": (lose("ConfigMap", "mi-epo-recipe"), "ConfigMap/mi-epo-recipe is not declared"),
    "a pull secret that nobody described": (
        put(f"{POD}/imagePullSecrets", [{"name": "registry"}]),
        "Secret/registry is",
    ),
    "a secret that nobody described": (put(f"{RAY}/envFrom/0/secretRef/name", "mine"), "Secret/mine is not declared"),
    "a key of a secret that nobody described": (
        put(f"{RAY}/env/-", {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}),
        "Secret/hub is not declared",
    ),
    "a volume of a secret that nobody described": (
        put(f"{POD}/volumes/-", {"name": "keys", "secret": {"secretName": "keys"}}),
        "Secret/keys is not declared",
    ),
    "an identity that is gone": (lose("ServiceAccount", "mi-epo"), "ServiceAccount/mi-epo is not declared"),
    "a mount without a volume": (put(f"{RAY}/volumeMounts/-", {"name": "x", "mountPath": "/x"}), "mounts x, no volume"),
    "checkpoints out of reach of a group": (
        put(f"{RAY}/volumeMounts/1/mountPath", "/run"),
        "must have mi-epo-runs at /runs",
    ),
    "a volume for one node": (
        put("/spec/accessModes", ["ReadWriteOnce"], "PersistentVolumeClaim"),
        "must be ReadWriteMany",
    ),
    "root": (put(f"{POD}/securityContext/runAsUser", 0), "securityContext must be"),
    "root in one container": (put(f"{RAY}/securityContext/runAsUser", 0), "another user than the pod's"),
    "a capability": (put(f"{RAY}/securityContext/capabilities/add", ["SYS_PTRACE"]), "none added"),
    "an escalation": (
        drop(f"{RAY}/securityContext/allowPrivilegeEscalation"),
        "allowPrivilegeEscalation must be false",
    ),
    "no system call filter": (drop(f"{POD}/securityContext/seccompProfile"), "seccompProfile must be RuntimeDefault"),
    "the network of the node": (put(f"{POD}/hostNetwork", True), "hostNetwork must not be set"),
    "a port of the node": (put(f"{RAY}/ports", [{"containerPort": 80, "hostPort": 80}]), "hostPort must not be set"),
    "the files of the node": (put(f"{POD}/volumes/-", {"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
    "a token of the API server": (drop(f"{POD}/automountServiceAccountToken"), "automountServiceAccountToken must be"),
    "a probe": (put(f"{RAY}/livenessProbe", {"httpGet": {"port": 80}}), "livenessProbe: KubeRay adds its own"),
    "an open namespace": (lose("NetworkPolicy", "default-deny"), "none closes the namespace"),
    "an operator locked out": (lose("NetworkPolicy", "operator-to-dashboard"), "opens ingress 8265"),
    "nodes that cannot meet": (lose("NetworkPolicy", "ray-to-ray"), "opens ingress on all ports"),
    "no names": (lose("NetworkPolicy", "ray-to-outside"), "opens egress 53"),
    "a door for everybody": (put("/spec/ingress", [{}], "NetworkPolicy"), "lets everybody in"),
    "a monitor of a port that is not there": (drop(f"{HEAD}/template/spec/containers/0/ports/4"), "named dash-metrics"),
}


@pytest.mark.parametrize(("damage", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_seen(damage: Damage, said: str) -> None:
    documents = combination("base", ("monitoring",))
    damage(documents)
    assert [problem for problem in problems(documents) if said in problem], problems(documents)


GPU_MISTAKES: dict[str, tuple[Damage, str]] = {
    "a GPU too few": (
        put(f"{RAY}/resources/limits/nvidia.com~1gpu", "1"),
        "room for 1 of its 4 actors",
    ),
    "GPUs without the CPUs for a rank": (
        put(f"{RAY}/resources/limits/cpu", "2"),
        "no node has 4 CPUs and 1 GPUs",
    ),
    "a pod that GPU nodes turn away": (drop(f"{POD}/tolerations"), "no toleration of nvidia.com/gpu"),
    "more GPUs used than asked": (drop(f"{RAY}/resources/requests/nvidia.com~1gpu"), "must be asked for to the limit"),
    "a group without its label": (drop(f"{GROUP}/labels"), "learner: no node carries the labels"),
    "a GPU on the head": (
        put(f"{HEAD}/template/spec/containers/0/resources/limits/nvidia.com~1gpu", "1"),
        "head: must offer no CPUs",
    ),
}


@pytest.mark.parametrize(("damage", "said"), GPU_MISTAKES.values(), ids=GPU_MISTAKES)
def test_a_mistake_with_gpus_is_seen(damage: Damage, said: str) -> None:
    documents = combination("overlays/gpu")
    damage(documents)
    assert [problem for problem in problems(documents) if said in problem], problems(documents)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=NO_SCHEMAS)
@pytest.mark.parametrize(("damage", "said"), BY_SCHEMA.values(), ids=BY_SCHEMA)
def test_a_mistake_against_the_schemas_of_kuberay_is_seen(damage: Damage, said: str) -> None:
    documents = combination("base")
    damage(documents)
    assert [problem for problem in problems(documents) if said in problem], problems(documents)


def test_a_registry_told_to_base_does_not_give_the_gpu_overlay_the_wrong_image(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    base = tmp_path / "k8s" / "base" / "kustomization.yaml"
    base.write_text(base.read_text().replace("newName: mi-epo", "newName: ghcr.io/someone/mi-epo"))
    (job,) = (document for document in render(tmp_path / "k8s" / "base") if document["kind"] == "RayJob")
    assert set(re.findall(r'"image": "(.*?)"', json.dumps(job))) == {"ghcr.io/someone/mi-epo:0.1.0-cpu"}
    assert render(tmp_path / "k8s" / "overlays" / "gpu") == combination("overlays/gpu")


def test_an_image_in_a_registry_is_as_good() -> None:
    text = json.dumps(combination("overlays/gpu")).replace("mi-epo:0.1.0-gpu", "ghcr.io/someone/mi-epo:0.1.0-gpu")
    assert problems(json.loads(text)) == []


@pytest.mark.parametrize(
    ("mounted", "original", "overrides"),
    [
        (
            "common/recipe.yaml",
            "miniature.yaml",
            ["assets.directory=/shared/miniature/k2-seed{seed}", "rollout.num_cpus=1", "learner.num_cpus=1"],
        ),
        (
            "overlays/gpu/recipe.yaml",
            "helpful-qwen3-8b.yaml",
            [
                "data.train=/runs/prompts/train.jsonl",
                "data.heldout=/runs/prompts/heldout.jsonl",
                "rollout.node_labels={pool: rollout}",
                "learner.node_labels={pool: learner}",
                *(f"objectives.{index}.node_labels={{pool: reward}}" for index in range(2)),
            ],
        ),
    ],
)
def test_a_mounted_recipe_is_the_original_in_other_folders(mounted: str, original: str, overrides: list[str]) -> None:
    assert load_recipe(K8S / mounted) == load_recipe(REPOSITORY / "deploy" / "recipes" / original, overrides)


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_recipe_in_the_config_map_loads(leaf: str, tmp_path: Path) -> None:
    (recipe,) = (document for document in combination(leaf) if document["kind"] == "ConfigMap")
    (tmp_path / "recipe.yaml").write_text(recipe["data"]["recipe.yaml"])
    assert load_recipe(tmp_path / "recipe.yaml").name == {"overlays/gpu": "helpful-qwen3-8b"}.get(leaf, "miniature")


def test_two_recipes_never_share_a_run_directory() -> None:
    jobs = [each for leaf in ("base", "overlays/gpu") for each in combination(leaf) if each["kind"] == "RayJob"]
    folders = [job["spec"]["entrypoint"].split("--run-dir ")[1] for job in jobs]
    assert len(set(folders)) == 2


def test_a_job_gets_the_variables_that_the_page_gives_a_submitted_one() -> None:
    (job,) = (document for document in combination("base") if document["kind"] == "RayJob")
    submitted = yaml.safe_load((REPOSITORY / "deploy" / "runtime_env.yaml").read_text())
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == submitted["env_vars"]


def test_every_file_takes_part() -> None:
    seen: set[Path] = set()
    for leaf, components in COMBINATIONS:
        render(K8S / leaf, components=[K8S / "components" / name for name in components], seen=seen)
    assert {path for path in K8S.rglob("*") if path.is_file()} - seen == {K8S / "README.md"}


def test_the_page_names_folders_that_are_there() -> None:
    text = (K8S / "README.md").read_text()
    named = set(re.findall(r"deploy/[A-Za-z0-9_./-]*[A-Za-z0-9]", text))
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_kueue_gets_the_label_alone() -> None:
    for leaf, kind in (("base", "RayJob"), ("overlays/dev", "RayCluster")):
        (queued,) = (document for document in combination(leaf, ("kueue",)) if document["kind"] == kind)
        assert queued["metadata"]["labels"].pop(QUEUE) == "mi-epo"
        assert queued in combination(leaf)
        assert get(queued, "spec", "suspend") is None


def test_every_patch_of_a_group_first_tests_which_group_it_is() -> None:
    patches = [
        path for path in (K8S / "overlays/gpu").glob("*.yaml") if isinstance(yaml.safe_load(path.read_text()), list)
    ]
    assert len(patches) == 4
    for path in patches:
        first, *others = yaml.safe_load(path.read_text())
        assert first["op"] == "test", path
        guarded = first["path"].removesuffix("/groupName")
        assert [
            each["path"] for each in others if "workerGroupSpecs" in each["path"] and guarded not in each["path"]
        ] == []


def test_a_patch_of_another_group_than_it_means_fails() -> None:
    (job,) = (document for document in combination("base") if document["kind"] == "RayJob")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"].reverse()
    with pytest.raises(ValueError, match="is 'reward', not 'learner'"):
        for operation in yaml.safe_load((K8S / "overlays" / "gpu" / "learner.yaml").read_text()):
            apply_operation(job, operation)


@pytest.mark.parametrize(
    ("kustomization", "said"),
    [
        ({"commonLabels": {"a": "b"}}, "not known here"),
        ({"resources": ["../secret.yaml"]}, "no file outside"),
        ({"patches": [{"target": {"kind": "RayJob"}, "patch": "[]"}]}, "no object is the target"),
        ({"configMapGenerator": [{"name": "x", "files": []}]}, "a name with a hash"),
        (
            {
                "generatorOptions": {"disableNameSuffixHash": True},
                "configMapGenerator": [{"name": "x", "files": [], "behavior": "replace"}],
            },
            "0 before",
        ),
    ],
)
def test_the_renderer_refuses_what_it_would_do_differently(kustomization: Document, said: str, tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    with pytest.raises(ValueError, match=said):
        render(tmp_path)
