"""The manifests are what KubeRay's schemas and Ray's cluster launcher take, ask for a token and hold none."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from rllib_hypermarl.serving import Settings, build
from rllib_hypermarl.serving.deployment import Team

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DEFS = json.loads((Path(__file__).parent / "kuberay.json").read_text(encoding="utf-8"))["$defs"]
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
KUBERNETES = [path.name for path in sorted(DEPLOY.glob("*.yaml")) if "apiVersion:" in path.read_text(encoding="utf-8")]


def problems(value, schema, path=""):
    """What an API server with strict field validation would refuse, one line each."""
    schema = DEFS[schema["$ref"]] if "$ref" in schema else schema
    if not schema:
        return [f"{path}: this part of the schema was cut, see kuberay.json"]
    if "x-kubernetes-int-or-string" in schema:
        fits = isinstance(value, int | str) and not isinstance(value, bool) and re.match(schema["pattern"], str(value))
        return [] if fits else [f"{path}: {value!r} is no quantity"]
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return [f"{path}: {value!r} is no {schema['type']}"]
    if value not in schema.get("enum", [value]):
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in problems(item, schema["items"], f"{path}[{i}]")]
    found = [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value]
    if isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, item in value.items():
            field = fields.get(name, others)
            found += [f"{path}.{name}: unknown"] if field is None else problems(item, field, f"{path}.{name}")
    return found


def documents(name):
    parsed = list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))
    return json.loads(json.dumps(parsed))  # anchors become copies, which a test can change one by one


def load(name):
    """The claim and the Ray resource of a manifest, the cluster in it, its pods and their containers."""
    claim, ray = documents(name)
    spec = ray["spec"]
    cluster = spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    pods = [group["template"]["spec"] for group in groups]
    pods += [spec["submitterPodTemplate"]["spec"]] if "submitterPodTemplate" in spec else []
    containers = [container for pod in pods for container in pod["containers"]]
    return SimpleNamespace(claim=claim, ray=ray, cluster=cluster, pods=pods, containers=containers)


@pytest.mark.parametrize("name", KUBERNETES)
def test_kuberay_s_schema_takes_the_manifest(name):
    claim, ray = documents(name)
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert ray["apiVersion"] == "ray.io/v1"
    assert set(ray) == {"apiVersion", "kind", "metadata", "spec"}
    assert problems(ray["metadata"], DEFS["metadata"]) == []
    assert problems(ray["spec"], DEFS[ray["kind"]]) == []


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ((), "backofLimit", 3),
        ((), "backoffLimit", "3"),
        ((), "backoffLimit", True),
        (("rayClusterSpec",), "authOption", {"mode": "token"}),
        (("rayClusterSpec", "authOptions"), "mode", "tokens"),
        (("rayClusterSpec", "headGroupSpec"), "rayStartParams", {"num-cpus": 0}),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0), "securityContexts", {}),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0), "lifecycle", {}),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext"), "runAsUser", "ray"),
        (("submitterPodTemplate", "spec", "containers", 0, "resources", "limits"), "memory", "1 GB"),
    ],
)
def test_a_mistake_is_refused(where, field, value):
    spec = part = load("rayjob.yaml").ray["spec"]
    for step in where:
        part = part[step]
    part[field] = value
    (problem,) = set(problems(spec, DEFS["RayJob"]))
    assert field in problem


def test_a_missing_field_is_refused():
    spec = load("rayjob.yaml").ray["spec"]
    del spec["rayClusterSpec"]["headGroupSpec"]["template"]
    assert problems(spec, DEFS["RayJob"]) == [".rayClusterSpec.headGroupSpec.template: missing"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_need_a_token_and_are_no_root(name):
    manifest = load(name)
    assert manifest.cluster["authOptions"] == {"mode": "token"}
    for pod in manifest.pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # the Dockerfile's
    for container in manifest.containers:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("name", KUBERNETES)
def test_results_go_to_the_claim_that_the_manifest_makes(name):
    manifest = load(name)
    mounted = [pod for pod in manifest.pods if "volumes" in pod]
    assert mounted
    for pod in mounted:
        (volume,), (container,) = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"]["claimName"] == manifest.claim["metadata"]["name"]
        (mount,) = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/runs")


def test_the_job_is_a_command_that_resumes_and_has_time_to_save():
    spec = load("rayjob.yaml").ray["spec"]
    command = spec["entrypoint"].split()
    assert command[:4] == ["python", "-m", "rllib_hypermarl", "train"]
    assert (ROOT / command[4].removeprefix("/home/ray/")).is_file()
    assert command[command.index("--out") + 1].startswith("/runs/")
    assert spec["backoffLimit"] > 0
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


def test_ray_s_launcher_takes_the_cluster_and_its_dashboard_stays_on_loopback():
    (config,) = documents("ray-cluster.yaml")
    validate_config(prepare_config(config))
    options = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    assert "RAY_AUTH_TOKEN_PATH=" in options
    (head,) = [c for c in config["head_start_ray_commands"] if c.startswith("ray start")]
    assert "--dashboard-host=127.0.0.1" in head


def test_ray_s_launcher_refuses_a_mistake():
    (config,) = documents("ray-cluster.yaml")
    config["docker"]["imagee"] = "x"
    with pytest.raises(Exception, match="imagee"):
        validate_config(prepare_config(config))


def serve_configs():
    """Those of `serve deploy` and of KubeRay."""
    (ours,) = documents("serve.yaml")
    return {"serve.yaml": ours, "rayservice.yaml": yaml.safe_load(load("rayservice.yaml").ray["spec"]["serveConfigV2"])}


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
def test_serve_takes_the_applications_and_an_open_address_has_a_token(name):
    config = ServeDeploySchema.model_validate(serve_configs()[name])
    prefixes = [app.route_prefix for app in config.applications]
    assert len(set(prefixes)) == len(prefixes) == len({app.name for app in config.applications})
    for app in config.applications:
        module, _, attribute = app.import_path.partition(":")
        assert getattr(importlib.import_module(module), attribute) is build
        assert isinstance(build(app.args), Application)
        settings = Settings(**app.args)
        assert config.http_options.host == "127.0.0.1" or settings.token_env
        (deployment,) = app.deployments
        assert deployment.name == Team.name
        assert set(deployment.user_config) == {"bundle"}


def test_pods_have_the_variable_of_the_token_from_a_secret():
    (app,) = serve_configs()["rayservice.yaml"]["applications"]
    for container in load("rayservice.yaml").containers:
        (variable,) = container["env"]
        assert variable["name"] == app["args"]["token_env"]
        assert set(variable) == {"name", "valueFrom"} and set(variable["valueFrom"]) == {"secretKeyRef"}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_versions_are_those_of_the_requirements_and_no_token_is_in_a_file(path):
    text = path.read_text(encoding="utf-8")
    (ray,) = re.findall(r"^ray\[.*\]==(.*)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), flags=re.M)
    assert set(re.findall(r"rayVersion: (\S+)", text)) <= {ray}
    assert ":latest" not in text
    assert "disabled" not in text
    assert not re.search(r"RAY_AUTH_TOKEN\b", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b|\b[0-9a-f]{8}-[0-9a-f]{4}-", text)
