"""A server of Amazon's protocol on loopback, with a bucket, as fixtures for all tests."""

import collections
import os
import random
import socket
import threading

import pytest

BUCKET = "s3://bucket"


class Server:
    """moto's, in a thread of this process; it counts requests and can fail some of them."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_):
                pass

        self.requests, self.failing = collections.Counter(), 0.0
        self._random, self._counting = random.Random(0), threading.Lock()
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _answer(self, environment, start):
        kind = environment["REQUEST_METHOD"]
        if "list-type" in environment["QUERY_STRING"]:
            kind = "LIST"
        with self._counting:
            self.requests[kind] += 1
            chance = self._random.random()
        if chance < self.failing / 2:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if chance < self.failing:
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return self._application(environment, start)

    def close(self):
        self._server.shutdown()


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """The server, known to this process and those that it starts; left out without moto."""
    if not os.environ.get("CI"):
        pytest.importorskip("moto.server")
        pytest.importorskip("s3fs")
    server = Server()
    server.environment["HUBERT_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    yield server
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    server.close()


@pytest.fixture
def bucket(bucket_server, request):
    """A folder of the bucket for one test."""
    from hubert_jax import storage

    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    bucket_server.failing = 0.0
    yield storage.path(BUCKET, f"{name}-{os.getpid()}")
    bucket_server.failing = 0.0


@pytest.fixture
def memory(request, tmp_path, monkeypatch):
    """A folder of fsspec's memory for one test."""
    pytest.importorskip("fsspec")
    from hubert_jax import storage

    monkeypatch.setenv("HUBERT_JAX_CACHE", str(tmp_path / "cache"))
    return storage.path("memory://bucket", "".join(filter(str.isalnum, request.node.name)))
