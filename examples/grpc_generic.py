"""A service in any language needs nothing of ours but what the servers tell: it can learn the messages by reflection.

The calls are those of `grpcurl`: ask RoutingService.Route where to go, then call GenerationService.Generate there with
the ticket. `pip install grpcio grpcio-reflection` is all it takes.
"""

import os

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

API = "lbcore.api.v1"


class Generic:
    """Calls methods by name, with messages built from dictionaries of fields."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))

    def __enter__(self) -> "Generic":
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def call(self, service: str, method: str, **fields: object):
        """The response, or for a streaming method an iterator of responses."""
        descriptor = self._pool.FindServiceByName(f"{API}.{service}").FindMethodByName(method)
        request, response = GetMessageClass(descriptor.input_type), GetMessageClass(descriptor.output_type)
        kind = self._channel.unary_stream if descriptor.server_streaming else self._channel.unary_unary
        invoke = kind(
            f"/{API}.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return invoke(request(**fields), timeout=60)


with Generic(os.environ.get("LB_SCHEDULER", "127.0.0.1:50050")) as scheduler:
    route = scheduler.call("RoutingService", "Route", request_id="example-1", model="demo")
    print("worker:", route.worker.address, "ticket:", route.ticket)

    conversation = {"messages": [{"role": "user", "content": "Who are you?"}]}
    typed = {"model": "demo", "conversation": conversation, "sampling": {"temperature": 0}}
    with Generic(route.worker.address) as worker:
        for answer in worker.call(
            "GenerationService", "Generate", request_id="example-1", ticket=route.ticket, typed=typed
        ):
            if answer.HasField("delta"):
                print(answer.delta.text, end="", flush=True)
            elif answer.HasField("finished"):
                print(f"\n{answer.finished.prompt_token_count} in, {answer.finished.output_token_count} out")
