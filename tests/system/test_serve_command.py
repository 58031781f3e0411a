"""The command `serve`, over real HTTP: right answers whatever happens under load, tokens, signals, ports."""

import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from rllib_hypermarl import load_policy
from rllib_hypermarl.bench.measure import free_port
from rllib_hypermarl.serving import TeamClient
from rllib_hypermarl.serving.schemas import encode
from tests.helpers import ROOT, processes_of, run, start, wait_until
from tests.serving.load import Load
from tests.serving.server import Server
from tests.serving.teams import AGENTS, assert_same_actions, observations, write_bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def nothing_stays(served):
    """A test that fails stops its servers, too."""
    Server.running.discard(served)
    yield
    for server in list(Server.running):
        server.stop()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles")
    return [write_bundle(path / f"v{seed}", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def served(bundles, tmp_path_factory):
    """Two replicas of the bundle behind a link, which a test may point to another."""
    link = tmp_path_factory.mktemp("served") / "current"
    link.symlink_to(bundles[0])
    server = Server(link, "--replicas", 2)
    server.link = link
    yield server
    server.stop()


def point(link, bundle):
    aside = link.with_name("aside")
    aside.symlink_to(bundle)
    aside.rename(link)


def exchange(server, bundle, seen):
    """Lets the server read another bundle; waits until all its replicas did."""
    point(server.link, bundle)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(seen(server.metadata()) for _ in range(20)), server.process)


def serves(bundle):
    version = load_policy(bundle).version
    return lambda metadata: metadata["version"] == version and metadata["refused"] is None


# ------------------------------------------------------------------------------------------------- faults under load


def test_bundles_are_exchanged_and_damaged_ones_refused_without_a_failed_request(served, bundles, tmp_path):
    damaged = shutil.copytree(bundles[2], tmp_path / "damaged")
    (damaged / "weights.safetensors").write_bytes((damaged / "weights.safetensors").read_bytes()[:-4])
    versions = [load_policy(bundle).version for bundle in bundles]
    with Load(served.url, bundles).running() as load:
        for new in (1, 0, 1):
            exchange(served, bundles[new], serves(bundles[new]))
            before = load.answers[versions[new]]
            wait_until(lambda new=new, before=before: load.answers[versions[new]] > before + 50)
        exchange(served, damaged, lambda metadata: metadata["refused"] is not None)
        assert served.metadata()["version"] == versions[1]
        assert (
            served.metadata()["refused"]["reason"] == "current: weights.safetensors is damaged (its checksum differs)"
        )
        before = load.count()
        wait_until(lambda: load.count() > before + 50)
        exchange(served, bundles[2], serves(bundles[2]))
        wait_until(lambda: load.answers[versions[2]] > 50)
        exchange(served, bundles[0], serves(bundles[0]))
    assert load.errors == []
    assert set(load.answers) == set(versions)


def test_a_killed_replica_costs_no_client_that_asks_again_its_answer(served, bundles):
    before = served.replicas()
    assert len(before) == 2
    with Load(served.url, bundles, retries=8).running() as load:
        wait_until(lambda: load.count() > 50)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(served.replicas()) == 2 and before[0] not in served.replicas(), served.process)
        after = load.count()
        wait_until(lambda: load.count() > after + 100)
    assert load.errors == []
    assert set(load.answers) == {load_policy(bundles[0]).version}
    wait_until(lambda: serves(bundles[0])(served.metadata()))


def test_clients_that_leave_or_do_not_read_harm_nobody(served, bundles):
    body = encode({"observations": observations(64)})
    head = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    rude = []

    def connect(content):
        rude.append(socket.create_connection(("127.0.0.1", served.port)))
        rude[-1].sendall(content)
        return rude[-1]

    with Load(served.url, bundles).running() as load:
        for _ in range(30):
            connect(head.encode() + body[:100]).close()  # in the middle of a request
            connect(head.encode() + body).close()  # before the answer
            connect(head.encode() + body)  # never reads
            connect(head.encode()[:20])  # never asks
        before = load.count()
        wait_until(lambda: load.count() > before + 100)
    assert load.errors == []
    for connection in rude:
        connection.close()


# ------------------------------------------------------------------------------------------------------- the command


def test_an_interrupt_ends_it_and_frees_the_port(bundles):
    server = Server(bundles[0])
    taken = run("serve", bundles[0], "--port", server.port, cwd=ROOT)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert taken.stderr == (
        f"error: cannot listen on 127.0.0.1:{server.port} (Address already in use); choose another --port or --host\n"
    )
    returncode, out, err = server.stop(signal.SIGINT)
    assert (returncode, err) == (130, "stopped by SIGINT\n")
    assert out.splitlines()[0] == f"serving version {load_policy(bundles[0]).version}, agents {', '.join(AGENTS)}"
    with socket.socket() as again:
        again.bind(("127.0.0.1", server.port))


def test_a_stop_answers_what_was_asked_before(bundles):
    server = Server(bundles[0])
    with Load(server.url, bundles[:1], retries=0).running() as load:
        wait_until(lambda: load.count() > 30)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(120)
        server.running.discard(server)
    statuses = {getattr(error, "status", None) for error in load.errors}
    assert statuses <= {None, 404, 503}  # nobody there any more; never a 500, never a wrong answer
    wait_until(lambda: not processes_of(server.process.pid))


def test_a_token_is_asked_for_and_appears_nowhere_and_a_body_that_does_not_come_is_given_up(bundles, tmp_path):
    secret = "s3cret-0123456789"
    (tmp_path / "token").write_text(secret + "\n")
    server = Server(bundles[0], "--token-file", tmp_path / "token", "--timeout", 1)
    assert httpx.get(f"{server.url}/metadata").status_code == 401
    head = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        slow.settimeout(60)
        answer = slow.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"Traceback" not in answer and b"/ray" not in answer
    with TeamClient(server.url, token=secret) as client:
        assert_same_actions(client.act(observations(2)).actions, load_policy(bundles[0]).act(observations(2)))
    logs = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(OSError):
            arguments = process.info["cmdline"] or []
            if os.getsid(process.pid) == server.process.pid:
                logs += [a.removeprefix("--log_dir=") for a in arguments if a.startswith("--log_dir=")]
    returncode, out, err = server.stop()
    assert returncode == 143 and secret not in out + err
    files = [path for log in logs for path in Path(log).rglob("*") if path.is_file()]
    assert files and not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_token_that_is_missing_is_an_error_and_an_open_address_a_warning(bundles, tmp_path):
    for option in (("--token-file", tmp_path / "none"), ("--token-env", "HYPERMARL_NO_SUCH_TOKEN")):
        done = run("serve", bundles[0], *option, cwd=ROOT)
        assert done.returncode == 2 and "missing or empty" in done.stderr and "Traceback" not in done.stderr
    server = Server(bundles[0], "--host", "0.0.0.0", "--token-env", "TEAM_TOKEN", TEAM_TOKEN="x")
    assert httpx.get(f"{server.url}/metadata", headers={"Authorization": "Bearer x"}).status_code == 200
    assert server.stop()[2] == "stopped by SIGTERM\n"
    process = start("serve", bundles[0], "--host", "0.0.0.0", "--port", free_port(), cwd=ROOT)
    assert process.stderr.readline().startswith("warning: whoever reaches 0.0.0.0:")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    wait_until(lambda: not processes_of(process.pid))


def test_a_damaged_bundle_is_one_line(bundles, tmp_path):
    damaged = shutil.copytree(bundles[0], tmp_path / "damaged")
    (damaged / "bundle.json").write_text("{}")
    done = run("serve", damaged, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {damaged}: bundle.json")


def test_direct_ingress_of_this_ray_answers_on_the_replicas_own_ports(bundles):
    """A canary: direct ingress is a flag of Ray's, which no page of its promises."""
    server = Server(bundles[0], "--replicas", 2, "--ingress", "direct")
    urls, told = [f"http://127.0.0.1:{server.port + 1 + i}" for i in range(2)], []
    while sum("a replica itself" in line for line in told) < 2:
        told.append(server.process.stdout.readline())
        assert told[-1], told  # it ended
    assert [line for line in told if "itself" in line] == [f"  at {url}/v1/act, a replica itself\n" for url in urls]
    for url in (server.url, *urls):
        assert "uvicorn" in httpx.get(f"{url}/readyz").headers["server"]
        with TeamClient(url, retries=0) as client:
            assert_same_actions(client.act(observations(3)).actions, load_policy(bundles[0]).act(observations(3)))
    first = server.replicas()
    with Load([*urls, server.url], bundles[:1], retries=8).running() as load:
        wait_until(lambda: load.count() > 50)
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(server.replicas()) == 2 and first[0] not in server.replicas(), server.process)
        # The new one has the next free port: the old one's is given back too late for it.
        wait_until(lambda: sum(_listens(server.port + 1 + i) for i in range(8)) == 2, server.process)
        after = load.count()
        wait_until(lambda: load.count() > after + 50)
    assert load.errors == []
    returncode, _, _ = server.stop()
    assert returncode == 143


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
