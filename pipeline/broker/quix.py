"""Quix Streams, and nothing of what it brings along for schema registries and for Quix's own cloud.

Its serialisers import Confluent's client of a schema registry, and that OAuth and JOSE; one of its lookups an HTTP
client with a command line of its own. No stage uses them, and each would pay for them at every start.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from contracts.without import asked_first

__all__ = [
    "Application",
    "BaseKafkaException",
    "BaseSink",
    "ConnectionConfig",
    "Consumer",
    "DbClosedError",
    "KafkaBrokerUnavailableError",
    "PartitionAssignmentError",
    "Producer",
    "Serializer",
    "SinkBackpressureError",
]

_LEFT_OUT = ("confluent_kafka.schema_registry", "httpx")


class _Empty(ModuleType):
    """Has every public name that is asked for: a class that nobody makes an object of."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        return type(name, (), {})


class _WithoutThem(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        left_out = any(fullname == name or fullname.startswith(f"{name}.") for name in _LEFT_OUT)
        return ModuleSpec(fullname, self, is_package=True) if left_out else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


try:
    with asked_first(_WithoutThem()):
        from quixstreams import Application
        from quixstreams.exceptions import PartitionAssignmentError
        from quixstreams.kafka import ConnectionConfig, Consumer, Producer
        from quixstreams.kafka.exceptions import BaseKafkaException, KafkaBrokerUnavailableError
        from quixstreams.models.serializers import Serializer
        from quixstreams.sinks import BaseSink, SinkBackpressureError
        from rocksdict import DbClosedError
finally:
    for _name in [name for name, module in sys.modules.items() if isinstance(module, _Empty)]:
        del sys.modules[_name]  # whoever wants the real one finds it
