"""The lane of an accelerator, with objects in place of PyTorch's streams and events; and the one of
the CPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw import offload  # noqa: E402
from fused_adamw._offload.cpu_lane import CpuLane  # noqa: E402
from fused_adamw._offload.lanes import Done, Lanes, StreamLane, Way  # noqa: E402
from fused_adamw._offload.ring import Ring  # noqa: E402


class Event:
    def __init__(self, device=None, *, enable_timing=False, blocking=False):
        assert blocking
        self.stream = None

    def query(self):
        return True

    def synchronize(self):
        pass


class Stream:
    entered = ()

    def __init__(self, device, *, priority=0):
        self.device, self.calls = device, []

    def __enter__(self):
        Stream.entered += (self,)
        return self

    def __exit__(self, *_):
        Stream.entered = Stream.entered[:-1]

    def wait_event(self, event):
        self.calls.append(("wait", event))

    def record_event(self, event=None):
        event.stream = self
        self.calls.append(("record", event))
        return event


@pytest.fixture
def current(monkeypatch):
    stream = Stream("cuda:0")
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device=None: stream)
    return stream


def test_copies_wait_for_tickets_and_later_work_for_copies(current):
    lane = StreamLane(torch.device("cuda:0"))
    ready = lane.ticket()
    assert ready.stream is current
    source, target = torch.arange(4.0), torch.zeros(4)
    done = lane.copy([(target, source)], Way.TO_HOST, [ready])
    assert torch.equal(target, source)
    assert done.stream is not current
    assert done.stream.calls == [("wait", ready), ("record", done)]
    back = lane.copy([(source, target)], Way.TO_DEVICE, [])
    assert back.stream not in (done.stream, current)
    lane.order(back)
    assert current.calls == [("record", ready), ("wait", back)]
    assert Stream.entered == ()
    lane.order(Done())
    assert len(current.calls) == 2


def test_streams_are_made_once_for_each_device(current, monkeypatch):
    accelerator = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    lanes = Lanes()
    p = torch.zeros(2, device="meta")
    lane = lanes.of(p)
    assert isinstance(lane, StreamLane)
    assert lanes.of(p) is lane is lanes.or_host(p)
    assert lanes.of(torch.zeros(2)) is None
    accelerator = torch.device("cuda")
    assert Lanes().of(p) is None


def test_the_cpu_lane_shows_what_does_not_wait():
    lane = CpuLane(delay=0.02)
    source, target = torch.ones(4), torch.zeros(4)
    done = lane.copy([(target, source)], Way.TO_HOST, [])
    assert target.isnan().all()
    source.fill_(2.0)
    done.synchronize()
    assert torch.equal(target, torch.full((4,), 2.0))
    assert lane.num_bytes[Way.TO_HOST] == 16


def test_an_error_in_the_thread_of_the_cpu_lane():
    lane = CpuLane()
    done = lane.copy([(torch.zeros(4), torch.zeros(3))], Way.TO_HOST, [])
    with pytest.raises(RuntimeError, match="a copy failed"):
        done.synchronize()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"delay": -1e-3},
            ValueError,
            "delay must be a finite number of seconds, 0 or more; got -0.001",
        ),
        ({"delay": float("nan")}, ValueError, "delay must be a finite number .*; got nan"),
        ({"delay": float("inf")}, ValueError, "delay must be a finite number .*; got inf"),
        ({"delay": "x"}, TypeError, "delay must be a real number; got 'x'"),
        ({"bandwidth": 0}, ValueError, "bandwidth must be above 0, in bytes per second; got 0"),
        ({"bandwidth": float("nan")}, ValueError, "bandwidth must be above 0"),
        ({"bandwidth": "x"}, TypeError, "bandwidth must be a real number; got 'x'"),
    ],
)
def test_a_pace_that_the_cpu_lane_cannot_have(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        CpuLane(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slots": 3}, ValueError, "slots must be a power of two, 1 or more; got 3"),
        ({"slots": 0}, ValueError, "slots must be a power of two, 1 or more; got 0"),
        ({"slots": 2.0}, TypeError, "slots must be a power of two, 1 or more; got 2.0"),
        ({"slots": np.int64(3)}, ValueError, r"slots must be a power .*; got np\.int64\(3\)"),
        ({"slots": True}, TypeError, "slots must be a power of two, 1 or more; got True"),
        (
            {"slots": 2, "slot_bytes": 1 << 16},
            ValueError,
            "slot_bytes must be a power of two, 131072 or more; got 65536",
        ),
        ({"lane": "cpu"}, TypeError, "lane must be a CpuLane or None; got 'cpu'"),
    ],
)
def test_a_simulation_that_cannot_be(options, error, message):
    with pytest.raises(error, match=f"^{message}$"), offload.simulated(**options):
        pytest.fail("the block was entered")
    with offload.simulated(slots=1, slot_bytes=1 << 17):  # the smallest works for every dtype
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        opt = offload.AdamW([p], state_dtype=None)
    p.grad = torch.ones(3, dtype=torch.float64)
    opt.step()
    assert p[0] < 1


class Late:
    def __init__(self):
        self.waited = False

    def query(self):
        return self.waited

    def synchronize(self):
        self.waited = True


def test_a_slot_is_free_when_its_last_copy_has_left():
    ring = Ring(1, 1 << 17, pinned=False)
    slot = ring.take(wait=False)
    assert ring.take(wait=True) is None
    late = Late()
    ring.give_back(slot, late, [])
    assert ring.take(wait=False) is None
    assert ring.take(wait=True) is slot
    assert late.waited
