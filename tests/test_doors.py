"""What must not get out: secrets. What must not get in: code and paths from files that others wrote, and strangers."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from scgpt_ray.cli import BAD_INPUT, DONE, FAILED, main
from scgpt_ray.network.download import locate_file
from scgpt_ray.records import IndexDescription, Manifest
from tests.test_notices import absent

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hunter2"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
    "OPENLINEAGE_API_KEY", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip


@pytest.fixture
def planted(monkeypatch):
    """An environment full of secrets, with receivers that do not answer: what is said of them must not show it."""
    with absent() as (url, _):
        address = url.replace("//", f"//me:{SECRET}@")
        for name in VARIABLES:
            monkeypatch.setenv(name, SECRET)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/?token={SECRET}")
        monkeypatch.setenv("OPENLINEAGE_URL", f"{url}/{SECRET}")
        monkeypatch.setenv("SCGPT_RAY_WEBHOOK", f"{url}/{SECRET}?sig={SECRET}")
        yield


def holding(folder, secret=SECRET):
    """The files below a folder that hold a secret; their number must not be 0."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    return [str(path) for path in paths if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_file_and_no_line_holds_a_secret(planted, blood_file, checkpoint, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG, logger="scgpt_ray")
    cells = ["--checkpoint", str(checkpoint), "--executor", "serial"]
    embed = ["embed", "--atlas", str(blood_file), *cells, "--obs-columns", "cell_type", "--output", f"{tmp_path}/e"]
    index = ["index", "--embeddings", f"{tmp_path}/e", "--label-columns", "cell_type", "--output", f"{tmp_path}/i"]
    query = ["map", "--query", str(blood_file), *cells, "--index", f"{tmp_path}/i", "--output", f"{tmp_path}/m"]
    assert main(embed) == DONE
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the store of these is a file next to the output folder
    assert [main([*command, "--executor", "serial"]) for command in (index, query)] == [DONE, DONE]
    next((tmp_path / "i").glob("shard-*.faiss")).write_bytes(b"torn")
    assert main([*query[:-1], f"{tmp_path}/again"]) in (FAILED, BAD_INPUT)
    assert {path.name for path in tmp_path.rglob("*")} >= {"tracking.jsonl", "mlflow.db", "plan.json", "report.html"}
    assert holding(tmp_path) == []
    lines = [*str(capfd.readouterr()).splitlines(), *caplog.text.splitlines()]
    assert any("MLflow at http://me:***@127.0.0.1" in line for line in lines)
    assert [line for line in lines if SECRET in line] == []


@pytest.mark.parametrize(
    "options",
    [
        ["--atlas", f"s3://me:{SECRET}@bucket/atlas"],
        ["--atlas", f"https://host/cells.h5ad?X-Amz-Signature={SECRET}"],
        ["--atlas", "a", "--storage", f"secret_access_key={SECRET}"],
        ["--atlas", "a", "--storage", f"endpoint=https://me:{SECRET}@host"],
        ["--atlas", "a", "--storage", "region=eu", f"token={SECRET}"],
        ["--atlas", "a", f"--aws-secret-access-key={SECRET}"],
        ["--atlas", "a", "--aws-secret-access-key", SECRET],
        ["--atlas", "a", "--config", "secret.yaml"],
        ["--atlas", "a", "--config", "torn.yaml"],
    ],
)
def test_a_secret_among_the_options_is_refused_and_not_shown(options, checkpoint, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    Path("secret.yaml").write_text(f"storage: {{vfs.s3.aws_secret_access_key: {SECRET}}}\n")
    Path("torn.yaml").write_text(f"seed: 1\nsecret: '{SECRET}\n")
    before = sorted(tmp_path.iterdir())
    assert main(["embed", *options, "--checkpoint", str(checkpoint), "--output", "out"]) == BAD_INPUT
    printed = str(capfd.readouterr())
    assert "scgpt-ray: " in printed
    assert SECRET not in printed + caplog.text
    assert sorted(tmp_path.iterdir()) == before


CALLS_OF_CODE = {
    "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "marshal.loads",
    "pd.read_pickle", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system",
}  # fmt: skip
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def unsafe_calls(content):
    """Calls that may run code from a file, or do not say that they do not."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
            option, value = SAFE.get(name, ("shell", keywords.get("shell", False) and "no shell"))
            if name in CALLS_OF_CODE or keywords.get(option, False if option == "shell" else None) is not value:
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_file_is_executed():
    paths = [path for folder in ("scgpt_ray", "jobs") for path in (ROOT / folder).rglob("*.py")]
    assert paths
    found = [f"{path.relative_to(ROOT)}:{call}" for path in paths for call in unsafe_calls(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("content", "is_unsafe"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, mmap_mode='r', allow_pickle=False)", False),
        ("pickle.loads(content)", True),
        ("yaml.load(text)", True),
        ("yaml.safe_load(text)", False),
        ("subprocess.run(text, shell=True)", True),
        ("subprocess.run(words)", False),
        ("network.eval()", False),
    ],
)
def test_what_executes_files(content, is_unsafe):
    assert bool(list(unsafe_calls(content))) is is_unsafe


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "..", "s3://bucket/x", "part\n"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name, make_embeddings, tmp_path, capfd):
    folder = make_embeddings(tmp_path / "e")
    path = tmp_path / "e" / Manifest.file
    manifest = json.loads(path.read_text())
    manifest["parts"] = {name if part.endswith("1.parquet") else part: n for part, n in manifest["parts"].items()}
    path.write_text(json.dumps(manifest))
    command = ["index", "--embeddings", folder.uri, "--output", str(tmp_path / "i"), "--executor", "serial"]
    assert main(command) == BAD_INPUT
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("scgpt-ray: "))
    assert "String should match pattern" in line
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("field", ["name", "ids", "labels", "vectors"])
def test_an_index_that_names_a_file_elsewhere_is_refused(field, make_embeddings, tmp_path, capfd):
    folder = make_embeddings(tmp_path / "e")
    command = ["index", "--embeddings", folder.uri, "--output", str(tmp_path / "i"), "--executor", "serial"]
    assert main(command) == DONE
    path = tmp_path / "i" / IndexDescription.file
    index = json.loads(path.read_text())
    index["shards"][0][field] = "../../x"
    path.write_text(json.dumps(index))
    assert main(["validate", "--index", str(tmp_path / "i"), "--executor", "serial"]) == BAD_INPUT
    assert f"shards.0.{field}" in capfd.readouterr().err


def test_a_commit_of_a_hub_that_is_a_path_is_refused(monkeypatch):
    """It would name a folder of the cache."""
    import http.server
    import threading

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            for name, value in {"ETag": '"a"', "X-Repo-Commit": "../../x", "Content-Length": "1"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(OSError, match="is not answered by a Hugging Face Hub"):
            locate_file("hf://owner/repo", "args.json")
        server.shutdown()


LOCAL_RAY = """
import sys, ray
from scgpt_ray.execution.cluster import connected
with connected():
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_client_without_the_token_of_a_local_ray_is_refused(tmp_path):
    """Ray listens on all interfaces; a local one, as a command starts it by default, answers its token only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", LOCAL_RAY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**environment, "HOME": str(tmp_path)}, text=True, **pipes) as driver:
        address = driver.stdout.readline().strip()
        token = (tmp_path / ".ray" / "auth_token").read_text().strip()
        found = []
        for metadata in ([("authorization", f"Bearer {token}")], [("authorization", f"Bearer {'f' * len(token)}")], []):
            with grpc.insecure_channel(address) as channel:
                ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
                try:
                    found.append(len(ask(b"", metadata=metadata, timeout=30)) > 0)
                except grpc.RpcError as error:
                    found.append(error.code())
        driver.communicate()
    assert found == [True, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED]
