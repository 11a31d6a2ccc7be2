"""The client over real HTTP: what it raises, how it pages, and how a stream goes on after it broke."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from backend import embedded
from backend.accounts.actors import Actor
from backend.client import Refused, Studio, Unreachable
from tests.conftest import PASSWORD


@pytest.fixture
def studio(served: str, admin: Actor) -> Iterator[Studio]:
    with Studio(served) as client:
        client.sign_in("ada@example.org", PASSWORD)
        yield client


def test_a_refusal_says_what_happened_where_and_what_to_do(studio: Studio) -> None:
    studio.create_project("Tone")
    with pytest.raises(Refused) as taken:
        studio.create_project("Tone")
    assert (taken.value.status, taken.value.problem["field"]) == (409, "name")
    assert str(taken.value) == "Another project has this name. “Tone” exists. (field name)\n→ Choose another name."
    with pytest.raises(Refused) as missing:
        studio.run(987654321)
    assert missing.value.status == 404


def test_everything_wrong_with_a_request_is_said_at_once(studio: Studio) -> None:
    with pytest.raises(Refused) as several:
        studio.post("/people", {"nome": "x"})
    assert [word for word in ("name", "email", "nome") if word not in str(several.value)] == []


def test_nobody_there_and_somebody_else_there_are_told_apart() -> None:
    with (
        Studio(f"http://127.0.0.1:{embedded.free_port()}", "sts_x") as nobody,
        pytest.raises(Unreachable, match="No studio answers"),
    ):
        nobody.me()


class _Broken(BaseHTTPRequestHandler):
    """A studio whose stream breaks after every second event, as one behind a bad network does."""

    asked: list[str]

    def do_GET(self) -> None:
        if not self.path.endswith("/events"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>a router's own page</html>")
            return
        last = int(self.headers["Last-Event-ID"])
        type(self).asked.append(str(last))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for seq in (last + 1, last + 2):
            name, data = ("run", {"state": "succeeded"}) if seq == 5 else ("metrics", {"step": seq})
            event = f": still here\n\nid: {seq}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.flush()
        self.close_connection = True  # without the closing chunk: the connection is lost

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def broken() -> Iterator[str]:
    _Broken.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_broken_stream_goes_on_where_it_broke_without_loss_or_repetition(broken: str) -> None:
    with Studio(broken, "sts_x") as studio:
        events = list(studio.follow(7))
    assert [event.id for event in events] == [1, 2, 3, 4, 5]
    assert events[-1].data == {"state": "succeeded"}
    assert _Broken.asked == ["0", "2", "4"]


def test_a_page_that_is_no_studio_is_not_taken_for_one(broken: str) -> None:
    with Studio(broken, "sts_x") as studio, pytest.raises(Unreachable, match="not like a studio"):
        studio.me()
