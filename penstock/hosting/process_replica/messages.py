"""What a replica's worker and its parent say to each other: what to load, batches, and their answers.

Structs alone, in msgpack frames (``penstock.hosting.workers.framing``). The bytes of tensors go with them where they
are few, and else through memory that both have (``penstock.hosting.process_replica.memory``). Times are seconds that
are left or have passed, never dates: the two processes share no clock that anybody promises.
"""

from __future__ import annotations

import msgspec

from penstock.artifact.manifests import VariantSpec
from penstock.hosting.process_replica.tensor_bytes import Part
from penstock.hosting.workers.child import MAX_FRAME_BYTES
from penstock.hosting.workers.framing import Failure, framed
from penstock.policy.service_time import Timing
from penstock.process.telemetry import LogSettings
from penstock.wire.tensors import TensorSpec

NO_SLOT = -1
"""In place of a slot where there is none."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker loads. Its files have been verified just now.

    Attributes:
        spec: of the variant; its largest batch is what may be asked.
        weights: path of the model file.
        golden: the golden vectors' document.
        providers: to be tried in this order; none for the spec's own.
        device_index: of several devices of a kind, the one that runs it.
        threads: of a run; 0 for as many of ``cpus`` as make a row faster.
        rows_mixed: what was seen of its rows by another worker; None to look.
    """

    spec: VariantSpec
    weights: str
    golden: bytes | None
    is_golden_damaged: bool = False
    providers: tuple[str, ...] = ()
    device_index: int = 0
    threads: int = 0
    cpus: int = 1
    rows_mixed: str | None = None


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """The parent's first word.

    Attributes:
        slots: descriptors of the memory that both have.
    """

    model: Model
    slots: tuple[int, ...] = ()
    nice: int = 0
    log: LogSettings | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """A batch.

    Attributes:
        id: given by the parent, and used once.
        rows: of each chunk, in order.
        left_s: until the deadline of each chunk, when this was sent; none where no chunk has one.
        after_s: that passed between the batch before and this one, when they were sent: a batch that lay in the socket
            while another ran has less time left than it says.
        outputs: that are wanted; None for all.
        slot: the batch's own, for its tensors and those of its answer where they are many bytes.
        size_bytes: of its tensors in the slot; 0 where ``data`` has them.
    """

    id: str
    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    left_s: tuple[float, ...] = ()
    after_s: float = 0.0
    outputs: tuple[str, ...] | None = None
    slot: int = NO_SLOT
    size_bytes: int = 0
    data: bytes = b""


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag="ping"):
    """The parent wants a sign of life."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The worker's first word: the model has proved itself, and was measured.

    Attributes:
        max_batch: most rows of a run; 1 where rows cannot be merged, or change each other's answers.
        rows_mixed: why rows run one at a time although the spec allows more; "" where they need not.
        threads: of one run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    timing: Timing
    max_batch: int
    rows_mixed: str = ""
    threads: int = 1


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """The outputs of a batch.

    Attributes:
        late: chunks that were left out, by their place: their deadline had passed when the run began.
        slot_bytes: of the batch's slot, up to the end of its tensors; 0 where ``data`` has them.
    """

    id: str
    parts: tuple[Part, ...] = ()
    late: tuple[int, ...] = ()
    slot_bytes: int = 0
    data: bytes = b""


class Pong(msgspec.Struct, frozen=True, kw_only=True, tag="pong"):
    """A sign of life: the loop has come round."""


ToWorker = Begin | Run | Ping
FromWorker = Loaded | Answer | Pong | Failure

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker) -> bytes:
    """Write a message.

    Raises:
        TooLarge: it does not fit into any frame.
    """
    return framed(_encoder.encode(message), max_bytes=MAX_FRAME_BYTES)
