"""What a process prints before it ends those of all ranks."""

import io
import os
import sys
from threading import Thread
from time import monotonic, sleep

import pytest

from fused_adamw._distributed.pipes import flush_until_read

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="does not say what is unread")


@pytest.fixture
def pipe():
    """The end that is read, and a stream that writes."""
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "w") as writer:
        yield reader, writer


def test_waits_until_the_other_side_has_read_everything(pipe):
    reader, writer = pipe
    parts = []

    def read_late():
        for _ in range(3):
            sleep(0.1)
            parts.append(reader.read(4))

    thread = Thread(target=read_late)
    thread.start()
    writer.write("error: int")
    flush_until_read(writer, 60)
    read_before = len(parts)
    thread.join()
    assert read_before >= 2  # the last part is read by then, if not noted
    assert b"".join(parts) == b"error: int"


def test_waits_no_longer_than_it_is_told_for_a_side_that_does_not_read(pipe):
    reader, writer = pipe
    writer.write("error")
    started = monotonic()
    flush_until_read(writer, 0.2)
    assert monotonic() - started >= 0.2
    assert reader.read(5) == b"error"


def test_does_not_wait_for_files(tmp_path):
    with open(tmp_path / "log", "w") as stream:
        stream.write("error")
        flush_until_read(stream, 10**9)
        assert (tmp_path / "log").read_text() == "error"


def test_takes_streams_that_cannot_be_written(pipe):
    reader, writer = pipe
    reader.close()
    unbuffered = io.TextIOWrapper(io.FileIO(os.dup(writer.fileno()), "w"))
    unbuffered.write("error")
    flush_until_read(unbuffered, 10**9)
    unbuffered.detach().close()
    for stream in (io.StringIO(), closed := io.StringIO()):
        closed.close()
        flush_until_read(stream, 10**9)
