"""A hospital's line to the server: Flower's Fleet API over TLS, each call signed with the hospital's key.

Flower's own SuperNode starts a new Python process for each message, which costs TensorFlow's start and a traced step
every time, looks for messages every three seconds, and runs program code that the server sends it. Here the process that
answers stays, asks more often, and runs the code that is installed at the hospital, never any that came over the
line. The protocol is Flower's (`flwr.proto`, version 1.23), and so is the server at its other end.
"""

import dataclasses
import threading
import time
from collections.abc import Callable

import grpc
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common import Message
from flwr.common.grpc import create_channel
from flwr.common.inflatable import get_all_nested_objects, get_object_tree, iterate_object_tree, no_object_id_recompute
from flwr.common.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf, make_pull_object_fn_protobuf, make_push_object_fn_protobuf,
)
from flwr.common.inflatable_utils import inflate_object_from_contents, pull_objects, push_object_contents_from_iterable
from flwr.common.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fl_utils.deployment.flower.journal import Journal

#: A hospital that was silent for twice this is taken to be gone; Flower allows no less.
HEARTBEAT_S = 10.0
#: How often a hospital looks for messages, by how long ago the last one came: (until, wait). The stages of a secure sum
#: follow each other at once; each look costs two signatures' time.
PATIENCE_S = ((1.0, 0.03), (15.0, 0.1), (float("inf"), 0.5))
_CALL_S = 30.0


class Refused(Exception):
    """The server does not know this hospital's key."""


class Occupied(Exception):
    """The server takes another process with this key to be there: one that was killed a moment ago, or a second one."""


class LineLost(Exception):
    """The server cannot be reached."""


class RunOver(Exception):
    """The server has ended, or begun anew, the training that a message belongs to."""


@dataclasses.dataclass(frozen=True)
class Parcel:
    """An answer, made into bytes once: what is written down of it is what is sent.

    Attributes:
      message: the answer.
      message_id: SHA-256 of all of its content; the server has the same.
      contents: Flower's id of each part, its SHA-256 -> its bytes.
      tree: how the parts hang together.
    """

    message: Message
    message_id: str
    contents: dict[str, bytes]
    tree: ObjectTree

    @property
    def content_bytes(self) -> int:
        return sum(map(len, self.contents.values()))


def pack(message: Message) -> Parcel:
    """Makes an answer into bytes."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        return Parcel(message, message.object_id, contents, get_object_tree(message))


class Link:
    """One connection, from `open` to `close`.

    Args:
      address: host:port of the server.
      authority: PEM bytes of the federation's authority, which must have signed the server's certificate; None: no TLS.
      keys: the hospital's private and public key.
      journal: counts what is sent.
    """

    def __init__(self, address: str, authority: bytes | None, keys, journal: Journal):
        self._channel = create_channel(
            server_address=address, insecure=authority is None, root_certificates=authority,
            interceptors=[journal, NodeAuthClientInterceptor(*keys)],
        )
        self._stub, self._public = FleetStub(self._channel), public_key_to_bytes(keys[1])
        self._node, self._closing = Node(), threading.Event()

    def open(self) -> int:
        """Joins; from now on a thread tells the server that this hospital is there. Returns Flower's id of it.

        Raises:
          Refused: the key is not known to the server.
          Occupied: another process with this key is there.
          LineLost: the server cannot be reached.
        """
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        try:
            self._node = Node(node_id=self._call(self._stub.ActivateNode, request).node_id)
        except Refused as error:
            if "could not be activated" in str(error):  # the same code, and the key is known
                raise Occupied from None
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self._node.node_id

    def close(self) -> None:
        """Says goodbye, if anybody listens."""
        self._closing.set()
        try:
            if self._node.node_id:
                self._stub.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=self._node.node_id), timeout=2.0)
        except grpc.RpcError:
            pass
        self._channel.close()

    def receive(self) -> Message | None:
        """The next message, whole; None when there is none."""
        answer = self._call(self._stub.PullMessages, fleet_pb2.PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        header, tree = message_from_proto(answer.messages_list[0]), answer.message_object_trees[0]
        run_id, message_id = header.metadata.run_id, header.metadata.message_id
        pull = make_pull_object_fn_protobuf(self._stub.PullObject, self._node, run_id)
        wanted = [node.object_id for node in iterate_object_tree(tree)]
        contents = pull_objects(wanted, lambda object_id: self._guarded(pull, object_id), initial_backoff=0.05, max_time=60.0)
        confirm = make_confirm_message_received_fn_protobuf(self._stub.ConfirmMessageReceived, self._node, run_id)
        self._guarded(confirm, message_id)
        if len(contents) < len(set(wanted)):
            raise LineLost("the message did not arrive whole")
        message = inflate_object_from_contents(message_id, contents)
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def send(self, parcel: Parcel) -> None:
        """Sends an answer, whole."""
        run_id, failures = parcel.message.metadata.run_id, []

        def push(object_id: str, content: bytes) -> None:
            try:  # Flower's pool swallows what its threads raise
                self._guarded(make_push_object_fn_protobuf(self._stub.PushObject, self._node, run_id), object_id, content)
            except Exception as error:
                failures.append(error)

        request = fleet_pb2.PushMessagesRequest(
            node=self._node, messages_list=[message_to_proto(remove_content_from_message(parcel.message))],
            message_object_trees=[parcel.tree],
        )
        wanted = set(self._call(self._stub.PushMessages, request).objects_to_push)
        push_object_contents_from_iterable([(key, part) for key, part in parcel.contents.items() if key in wanted], push)
        if failures:
            raise failures[0]

    def _beat(self) -> None:
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        while not self._closing.wait(0.4 * HEARTBEAT_S):
            try:
                self._stub.SendNodeHeartbeat(request, timeout=5.0)
            except (grpc.RpcError, ValueError):  # ValueError: the channel was closed meanwhile
                pass  # the loop that receives notices as well, and opens a new line

    def _call(self, method: Callable, request):
        return self._guarded(lambda: method(request, timeout=_CALL_S))

    def _guarded(self, function: Callable, *arguments):
        try:
            return function(*arguments)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION):
                raise Refused(error.details()) from None
            if error.code() == grpc.StatusCode.PERMISSION_DENIED:
                raise RunOver(error.details()) from None
            raise LineLost(f"{error.code().name.lower()}: {error.details()}") from None


def answer_messages(link: Link, answer: Callable[[Message], Parcel], stop: threading.Event) -> None:
    """Receives messages one after another and sends what `answer` makes of each, until `stop` is set.

    Raises:
      Refused, LineLost: the connection is gone; open a new one.
    """
    last = time.monotonic()
    while not stop.is_set():
        try:
            message = link.receive()
            if message is None:
                silent_s = time.monotonic() - last
                stop.wait(next(wait for until, wait in PATIENCE_S if silent_s < until))
                continue
            link.send(answer(message))
        except RunOver:
            continue  # nobody waits for this answer any more
        last = time.monotonic()
